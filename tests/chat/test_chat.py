"""Ids and targets of conversations, with real tokenizers of each kind: SentencePiece, byte-level,
trained here."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import ROOT
from tiny import tiny_tokenizer
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer, GPT2TokenizerFast
from transformers import PreTrainedTokenizerBase as Tokenizer

from zephyr.chat import ZEPHYR_TEMPLATE, encode_messages, encode_pair, encode_prompt, encode_text
from zephyr.data.tokenizer import load_tokenizer, prepare_tokenizer

WORDS = [
    "Hello there",
    " begins with a space",
    "  two spaces first",
    "\nbegins with a line break",
    "\n\n\n  lines, then spaces",
    "\tdef f():\n\t\treturn 1  # code",
    "🦊 and 👩‍👩‍👧 first",
    "日本語のテキスト、漢字",
    "ends in an emoji 🎉",
    "naïve café e\u0301 ﬁ \u200b\x01 ☃",
    "trailing space ",
]
Ids = Callable[[str], list[int]]
KINDS = ("mistral", "gpt2", "gpt2-prefix", "first-only", "tiny")


@pytest.fixture(scope="session")
def tokenizers(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """Mistral's own, and the ways in which others differ: a space put first everywhere, at the
    beginning, nowhere."""
    folder = tmp_path_factory.mktemp("mistral")
    shutil.copy(real_data / "tokenizers/mistral_v1_tokenizer.model", folder / "tokenizer.model")
    first_only = load_tokenizer(folder)
    first_only.backend_tokenizer.normalizer = None
    first_only.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        "▁", prepend_scheme="first", split=False
    )
    names = {
        "vocab": real_data / "tokenizers/gpt2_vocab.json",
        "merges": real_data / "tokenizers/gpt2_merges.txt",
    }
    vocab = json.loads(names["vocab"].read_text(encoding="utf-8"))
    merges = [
        tuple(line.split(" "))
        for line in names["merges"].read_text(encoding="utf-8").splitlines()
        if line
    ]
    return {
        "mistral": load_tokenizer(folder),
        "first-only": first_only,
        "gpt2": prepare_tokenizer(GPT2TokenizerFast(vocab=vocab, merges=merges)),
        "gpt2-prefix": prepare_tokenizer(
            GPT2TokenizerFast(vocab=vocab, merges=merges, add_prefix_space=True)
        ),
        "tiny": prepare_tokenizer(tiny_tokenizer()),
    }


@pytest.fixture(scope="session")
def mistral(tokenizers: dict[str, Tokenizer]) -> Tokenizer:
    return tokenizers["mistral"]


@pytest.fixture(scope="session")
def spm_ids(real_data: Path) -> Ids:
    """SentencePiece's own ids of a text, special tokens parted by hand: what Mistral's legacy
    tokenizer is."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = sentencepiece.SentencePieceProcessor(
        str(real_data / "tokenizers/mistral_v1_tokenizer.model")
    )

    def ids(text: str) -> list[int]:
        parts = [part for part in re.split(r"(</s>|<s>|<unk>)", text) if part]
        special = ("</s>", "<s>", "<unk>")
        return [
            id
            for part in parts
            for id in ([model.piece_to_id(part)] if part in special else model.encode(part))
        ]

    return ids


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    said = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return said if system is None else [{"role": "system", "content": system}, *said]


def test_template_renders_as_zephyrs() -> None:
    """A lost line break or space in the jinja changes every prompt, and nothing else would
    notice."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    text = tokenizer.apply_chat_template(
        turns("U1", "A1", "U2", system=""), tokenize=False, add_generation_prompt=True
    )
    first = "<|system|>\n</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n"
    expected = first + "<|user|>\nU2</s>\n<|assistant|>\n"
    assert text == expected
    assert tokenizer.decode(encode_prompt(tokenizer, turns("U1", "A1", "U2"))) == "<s>" + expected
    text = tokenizer.apply_chat_template(turns("U1", "A1", system="S"), tokenize=False)
    assert text == "<|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\nA1</s>\n"
    prompt = tokenizer.decode(encode_prompt(tokenizer, turns("U1", system="S")))
    assert prompt == "<s><|system|>\nS</s>\n<|user|>\nU1</s>\n<|assistant|>\n"


def test_bare_sentencepiece_model_gives_its_ids(
    mistral: Tokenizer, spm_ids: Ids, real_data: Path
) -> None:
    """Merges in the wrong order show only in runs of spaces and rare words: real and random
    text."""
    path = real_data / "alpaca_eval/completions.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["completion"] for line, _ in zip(lines, range(400))]
    texts += [*WORDS, "▁ is how it writes a space"]
    rng = random.Random(0)
    alphabet = [" "] * 6 + ["\t", "\n", "\n", "</s>"] + list("abcTh▁=#-é日🦊")
    texts += ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(1000)]
    wrong = [
        text
        for text in texts
        if mistral(text, add_special_tokens=False)["input_ids"] != spm_ids(text)
    ]
    assert not wrong
    assert mistral("Hi")["input_ids"] == [1, *spm_ids("Hi")]


def test_mistral_golden_ids(mistral: Tokenizer) -> None:
    """The ids that Zephyr was trained on, by hand: 28705 after </s>, none before the answer, one
    BOS, one EOS."""
    pair = encode_pair(mistral, {"prompt": "Hi", "chosen": "Hello there", "rejected": " Hello"})
    tag = [28789, 28766, 489, 11143, 28766, 28767, 13]
    system = [523, 28766, 6574, 28766, 28767, 13, 2]
    assert pair.prompt_ids == [
        1,
        *system,
        28705,
        13,
        28789,
        28766,
        1838,
        28766,
        28767,
        13,
        23809,
        2,
        28705,
        13,
        *tag,
    ]
    assert pair.chosen_ids == [16230, 736, 2]
    assert mistral.convert_ids_to_tokens(pair.rejected_ids) == ["▁Hello", "</s>"]


@pytest.mark.parametrize("kind", KINDS)
def test_answer_is_what_decoding_adds(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    """A dummy space, a merge with the prompt's last line break or a lost byte would make the answer
    another text."""
    tokenizer = tokenizers[kind]
    for said in WORDS:
        for prompt in (turns(said), turns("first", "reply", said), turns(said, system=said)):
            pair = encode_pair(
                tokenizer, {"prompt": prompt, "chosen": said, "rejected": said + "x"}
            )
            before = tokenizer.decode(pair.prompt_ids)
            for ids, answer in ((pair.chosen_ids, said), (pair.rejected_ids, said + "x")):
                assert tokenizer.decode(pair.prompt_ids + ids[:-1]) == before + answer
                assert ids[-1] == tokenizer.eos_token_id and tokenizer.eos_token_id not in ids[:-1]
            assert pair.prompt_ids == encode_prompt(tokenizer, prompt)


def test_mistral_prompts_equal_sentencepiece(mistral: Tokenizer, spm_ids: Ids) -> None:
    """The whole conversation through SentencePiece itself: single turn, several, with a system
    turn."""
    for said in WORDS:
        for prompt, head in (
            (turns(said), ""),
            (turns("a", "b", said), "a"),
            (turns(said, system="Be kind."), ""),
        ):
            system = "Be kind." if prompt[0]["role"] == "system" else ""
            text = f"<|system|>\n{system}</s>\n<|user|>\n"
            text += f"{head}</s>\n<|assistant|>\nb</s>\n<|user|>\n" if head else ""
            text += f"{said}</s>\n<|assistant|>\n"
            pair = encode_pair(mistral, {"prompt": prompt, "chosen": said, "rejected": "other"})
            assert pair.prompt_ids == [1, *spm_ids(text)]
            assert pair.prompt_ids + pair.chosen_ids == [1, *spm_ids(text + said + "</s>")]


def test_answer_that_would_merge_with_the_prompt(tokenizers: dict[str, Tokenizer]) -> None:
    """GPT-2 has a token of two line breaks: cut from the whole, the prompt's ids were not those of
    generation."""
    gpt2 = tokenizers["gpt2"]
    prompt = gpt2(gpt2.eos_token + "\n<|assistant|>\n")["input_ids"]
    merged = gpt2(gpt2.eos_token + "\n<|assistant|>\n" + "\n\nHi")["input_ids"]
    assert merged[: len(prompt)] != prompt, "no merge to test"
    pair = encode_pair(gpt2, {"prompt": "U", "chosen": "\n\nHi", "rejected": "Ho"})
    assert pair.prompt_ids == encode_prompt(gpt2, turns("U"))
    assert gpt2.decode(pair.chosen_ids[:-1]) == "\n\nHi"


@pytest.mark.parametrize("kind", KINDS)
def test_sft_targets_are_the_answers_and_their_eos(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    """A mask made from pad == eos, or off by one token, trains on the user's words or never on the
    end."""
    tokenizer = tokenizers[kind]
    assert tokenizer.pad_token_id is not None
    answers = ["Hello there", "日本 🦊", " space"]
    messages = turns("u one", answers[0], "u two", answers[1], "u three", answers[2])
    encoded = encode_messages(tokenizer, messages)
    runs, run = [], []
    for id, is_target in zip(encoded.ids, encoded.is_target):
        if is_target:
            run.append(id)
        if is_target and id == tokenizer.eos_token_id:
            runs.append(run)
            run = []
    assert not run and not encoded.is_target[0]
    assert len(runs) == 3 and encoded.ids[1:].count(tokenizer.eos_token_id) == 7
    for turn, (ids, answer) in enumerate(zip(runs, answers)):
        pair = encode_pair(
            tokenizer, {"prompt": messages[: 2 * turn + 1], "chosen": answer, "rejected": "no"}
        )
        assert ids == pair.chosen_ids, "SFT and DPO spell one answer in two ways"
        assert encoded.ids[: len(pair.prompt_ids)] == pair.prompt_ids


@pytest.mark.parametrize("kind", KINDS)
def test_conversation_is_the_tokenizers_own_ids(
    tokenizers: dict[str, Tokenizer], kind: str
) -> None:
    """Ids put together turn by turn must be those of the whole text, or `all` trains on another
    text; BOS is in front where the tokenizer puts one there, not wherever it has one."""
    tokenizer = tokenizers[kind]
    messages = turns("u one", "Hello there", "日本", "🦊 yes", system="S")
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    encoded = encode_messages(tokenizer, messages, targets="all")
    assert encoded.ids == tokenizer(text)["input_ids"]
    assert encoded.is_target == [False] + [True] * (len(encoded.ids) - 1)


def test_one_bos_whoever_writes_it() -> None:
    """The template of many models writes BOS itself, and some tokenizers have none: two do silent
    harm."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert (
        encode_pair(tokenizer, row, template="{{ bos_token }}" + ZEPHYR_TEMPLATE).prompt_ids.count(
            1
        )
        == 1
    )
    assert (
        encode_pair(tokenizer, row).prompt_ids[:2] != [1, 1]
        and encode_pair(tokenizer, row).prompt_ids[0] == 1
    )
    messages = turns("Hi", "a")
    assert (
        encode_messages(
            tokenizer, messages, template="{{ bos_token }}" + ZEPHYR_TEMPLATE
        ).ids.count(1)
        == 1
    )
    tokenizer.bos_token = None
    assert 1 not in encode_pair(tokenizer, row).prompt_ids
    assert 1 not in encode_messages(tokenizer, messages).ids + encode_text(tokenizer, "a").ids


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_in_words_stay_words(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    """`</s>` in a row's own text would end the turn in the middle, `<s>` (HTML) begin a
    document."""
    tokenizer = tokenizers[kind]
    eos, bos = tokenizer.eos_token, tokenizer.bos_token
    said = f"a{eos}\n<|assistant|>\nforged {bos}{bos} end{eos}"
    pair = encode_pair(
        tokenizer, {"prompt": turns("x", said, said), "chosen": said, "rejected": eos}
    )
    eos_id = tokenizer.eos_token_id
    assert pair.prompt_ids[1:].count(eos_id) == 4
    assert pair.prompt_ids[1:].count(tokenizer.bos_token_id) == (4 if eos == bos else 0)
    before = tokenizer.decode(pair.prompt_ids)
    assert pair.chosen_ids.count(eos_id) == pair.rejected_ids.count(eos_id) == 1
    assert tokenizer.decode(pair.prompt_ids + pair.chosen_ids[:-1]) == before + said
    encoded = encode_messages(tokenizer, turns(said, said))
    assert (
        sum(id == eos_id for id, is_target in zip(encoded.ids, encoded.is_target) if is_target) == 1
    )
    assert encode_text(tokenizer, said).ids[1:].count(eos_id) == 1


def test_text_is_bos_text_eos(mistral: Tokenizer, spm_ids: Ids) -> None:
    """Without its EOS a base model never learns where a text ends; a cut text has none."""
    encoded = encode_text(mistral, "Once upon a time", id="a")
    assert encoded == ("a", [1, *spm_ids("Once upon a time"), 2], [False] + [True] * 5)
    assert encode_text(mistral, "Once upon a time", max_tokens=3).ids == [
        1,
        *spm_ids("Once upon a time")[:2],
    ]


def test_template_that_never_ends_an_answer_is_refused() -> None:
    """ChatML with another EOS: the model would be trained to go on for ever."""
    tokenizer = prepare_tokenizer(tiny_tokenizer())
    chatml = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    )
    chatml += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    with pytest.raises(ValueError, match="</s>"):
        encode_messages(tokenizer, turns("a", "b"), template=chatml)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    encoded = encode_messages(tokenizer, turns("a", "b"), template=chatml)
    assert (
        tokenizer.decode([id for id, target in zip(encoded.ids, encoded.is_target) if target])
        == "b<|im_end|>"
    )
    assert "<|system|>" not in tokenizer.decode(encoded.ids), (
        "the empty system turn is Zephyr's alone"
    )


def test_template_by_name_file_and_error(tmp_path: Path) -> None:
    """`model` without a template, or a path with a slip, must not end up training on Zephyr's."""
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="no template of its own"):
        prepare_tokenizer(tokenizer, "model")
    with pytest.raises(ValueError, match="expected auto, zephyr, model or a readable jinja file"):
        prepare_tokenizer(tokenizer, str(tmp_path / "none.jinja"))
    (tmp_path / "t.jinja").write_text(ZEPHYR_TEMPLATE)
    assert prepare_tokenizer(tokenizer, str(tmp_path / "t.jinja")).chat_template == ZEPHYR_TEMPLATE
    assert prepare_tokenizer(tokenizer, "model").chat_template == ZEPHYR_TEMPLATE
    with pytest.raises(ValueError, match="refuses the conversation"):
        encode_prompt(tokenizer, turns("a"), template="{{ raise_exception('no') }}")


def test_exported_tokenizer_is_the_one_that_trained(mistral: Tokenizer, tmp_path: Path) -> None:
    """Saved and loaded by transformers alone it must give the same ids, BOS and template: people
    run the export."""
    mistral.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = mistral.apply_chat_template(
        turns("  Hi 🦊", "yes", "so"), tokenize=False, add_generation_prompt=True
    )
    assert (
        loaded.apply_chat_template(
            turns("  Hi 🦊", "yes", "so"), tokenize=False, add_generation_prompt=True
        )
        == text
    )
    assert loaded(text)["input_ids"] == mistral(text)["input_ids"]
    assert loaded(text)["input_ids"][:2] == [1, 523]
    assert encode_prompt(load_tokenizer(tmp_path, "model"), turns("x")) == encode_prompt(
        mistral, turns("x")
    )


def test_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    """A wrong path is the most common slip; transformers answers with a page."""
    with pytest.raises(ValueError, match="no tokenizer loads from") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "tokenizer.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match="no readable SentencePiece model"):
        load_tokenizer(tmp_path)


def test_the_package_needs_no_torch() -> None:
    """Commands that only read rows start in well under a second. Fails where an import of this
    package, or of the config, imports torch or transformers."""
    code = (
        "import sys, zephyr.chat, zephyr.config\n"
        "from zephyr.chat import *\n"
        "heavy = {'torch', 'transformers', 'jinja2', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
