"""Ids and targets of conversations with the tiny tokenizer alone: what needs no data from
outside."""

from __future__ import annotations

import pytest
from tiny import tiny_tokenizer
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import PreTrainedTokenizerFast

from zephyr.chat import (
    EncodedPair,
    encode_messages,
    encode_pair,
    encode_prompt,
    encode_text,
    truncate_pair,
)
from zephyr.chat.template import ZEPHYR_TEMPLATE
from zephyr.data.tokenizer import prepare_tokenizer

BOS, EOS = 1, 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return prepare_tokenizer(tiny_tokenizer())


def turns(*contents: str) -> list[dict[str, str]]:
    return [
        {"role": ("user", "assistant")[i % 2], "content": content}
        for i, content in enumerate(contents)
    ]


def test_a_pair_is_prompt_and_two_ended_answers(tokenizer: Tokenizer) -> None:
    """Fails where sides change places, an answer lacks its EOS or has a space in front, BOS is
    missing or doubled, or the prompt is not the one that a model is given to answer."""
    pair = encode_pair(
        tokenizer, {"id": "7", "prompt": "Hi", "chosen": "a good one", "rejected": "bad"}
    )
    text = "<|system|>\n</s>\n<|user|>\nHi</s>\n<|assistant|>\n"
    assert (
        pair.prompt_ids
        == [BOS, *tokenizer(text, add_special_tokens=False).input_ids]
        == encode_prompt(tokenizer, turns("Hi"))
    )
    assert pair.id == "7" and pair.chosen_ids[-1] == pair.rejected_ids[-1] == EOS
    assert [tokenizer.decode(ids[:-1]) for ids in (pair.chosen_ids, pair.rejected_ids)] == [
        "a good one",
        "bad",
    ]
    assert EOS not in pair.chosen_ids[:-1] and pair.prompt_ids.count(EOS) == 2


def test_bos_written_by_the_template_is_the_only_one(tokenizer: Tokenizer) -> None:
    """Fails where a template's own BOS is doubled, in a prompt or a conversation."""
    with_bos = "{{ bos_token }}" + ZEPHYR_TEMPLATE
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b"}
    assert (
        encode_pair(tokenizer, row, template=with_bos).prompt_ids
        == encode_pair(tokenizer, row).prompt_ids
    )
    messages = turns("Hi", "a", "and?", "b")
    assert encode_messages(tokenizer, messages, template=with_bos) == encode_messages(
        tokenizer, messages
    )
    assert encode_messages(tokenizer, messages).ids.count(BOS) == 1


def test_targets_are_the_answers_and_their_eos(tokenizer: Tokenizer) -> None:
    """Fails where the user's words, a tag or BOS are trained on, an EOS is not, or `all` leaves out
    more than the first token."""
    messages = turns("first question", "one", "second", "two three")
    text = encode_messages(tokenizer, messages, id="x")
    whole = tokenizer.apply_chat_template(messages, chat_template=ZEPHYR_TEMPLATE, tokenize=False)
    assert text.id == "x" and text.ids == [
        BOS,
        *tokenizer(whole, add_special_tokens=False).input_ids,
    ]
    assert (
        tokenizer.decode([i for i, flag in zip(text.ids, text.is_target) if flag])
        == "one</s>two three</s>"
    )
    for turn, answer in ((1, "one"), (3, "two three")):
        pair = encode_pair(
            tokenizer, {"prompt": messages[:turn], "chosen": answer, "rejected": "no"}
        )
        end = len(pair.prompt_ids)
        assert (
            text.ids[:end] == pair.prompt_ids
            and text.ids[end : end + len(pair.chosen_ids)] == pair.chosen_ids
        )
    every = encode_messages(tokenizer, messages, targets="all")
    assert every.ids == text.ids and every.is_target == [False] + [True] * (len(text.ids) - 1)
    cut = encode_messages(tokenizer, messages, max_tokens=20)
    assert (cut.ids, cut.is_target) == (text.ids[:20], text.is_target[:20])
    with pytest.raises(ValueError, match="targets is 'some'"):
        encode_messages(tokenizer, messages, targets="some")


def test_plain_text_is_bos_text_eos(tokenizer: Tokenizer) -> None:
    """Fails where a text has no end, is cut at its beginning, or its first token is a target, which
    nothing predicts."""
    text = encode_text(tokenizer, "The river flows.", id="x")
    words = tokenizer("The river flows.", add_special_tokens=False).input_ids
    assert text == ("x", [BOS, *words, EOS], [False] + [True] * (len(words) + 1))
    assert encode_text(tokenizer, "The river flows.", max_tokens=3).ids == [BOS, *words[:2]]


@pytest.mark.parametrize("said", ["a</s>b", "<s>x", "</</s>s>", "</s>"])
def test_special_tokens_in_words_stay_words(said: str, tokenizer: Tokenizer) -> None:
    """In the user's words and in an answer. Fails where somebody's text ends a turn, or comes back
    as another."""
    pair = encode_pair(tokenizer, {"prompt": said, "chosen": said, "rejected": "no"})
    assert (
        pair.prompt_ids.count(EOS) == 2
        and pair.prompt_ids.count(BOS) == 1
        and pair.chosen_ids.count(EOS) == 1
    )
    assert tokenizer.decode(pair.chosen_ids[:-1]) == said
    text = encode_messages(tokenizer, turns(said, said))
    assert (
        sum(flag for i, flag in zip(text.ids, text.is_target) if i == EOS) == 1
        and encode_text(tokenizer, said).ids.count(EOS) == 1
    )


def test_what_is_no_conversation_to_train_on_is_refused(tokenizer: Tokenizer) -> None:
    """Half a surrogate pair, a prompt without a question, and templates that do not end an answer
    with EOS, or end it in the middle. Fails where such rows train on what no model would be
    asked."""
    with pytest.raises(ValueError, match=r"U\+D83D"):
        encode_pair(tokenizer, {"prompt": "\ud83d", "chosen": "a", "rejected": "b"})
    with pytest.raises(ValueError, match="ends with an assistant turn"):
        encode_prompt(tokenizer, turns("a", "b"))
    endless = ZEPHYR_TEMPLATE.replace(
        "'<|assistant|>\n'  + message['content'] + eos_token",
        "'<|assistant|>\n'  + message['content']",
    )
    broken = ZEPHYR_TEMPLATE.replace(
        "message['content'] + eos_token }}\n{% endif",
        "bos_token + message['content'] + eos_token }}\n{% endif",
    )
    assert ZEPHYR_TEMPLATE not in (endless, broken)
    for template in (endless, broken):
        with pytest.raises(ValueError, match="would not know where to stop"):
            encode_pair(
                tokenizer, {"prompt": "q", "chosen": "a", "rejected": "b"}, template=template
            )


def test_the_longer_side_decides_what_is_cut() -> None:
    """Whichever it is; and a prompt that has no BOS keeps its end alone. Fails where the length of
    one side is taken."""
    pair = EncodedPair("x", [BOS, *range(10, 20)], [30, EOS], [*range(40, 49), EOS])
    for sides in (pair, pair._replace(chosen_ids=pair.rejected_ids, rejected_ids=pair.chosen_ids)):
        assert truncate_pair(sides, max_tokens=21, max_prompt_tokens=5, bos_id=BOS) is sides
        cut = truncate_pair(sides, max_tokens=14, max_prompt_tokens=5, bos_id=BOS)
        assert cut[:4] == ("x", [BOS, 16, 17, 18, 19], sides.chosen_ids[:9], sides.rejected_ids[:9])
    headless = pair._replace(prompt_ids=[*range(9, 20)])
    cut = truncate_pair(headless, max_tokens=14, max_prompt_tokens=5, bos_id=BOS)
    assert cut.prompt_ids == [15, 16, 17, 18, 19]


def merging_tokenizer() -> Tokenizer:
    """Bytes, special tokens, and one merge: two line breaks, wherever they meet."""
    vocabulary = {"<unk>": 0, "<s>": BOS, "</s>": EOS}
    vocabulary |= {c: 3 + i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary["\u010a\u010a"] = len(vocabulary)  # a byte-level "\n\n"
    core = Core(models.BPE(vocabulary, [("\u010a", "\u010a")], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=core, **names))


def test_an_answer_does_not_merge_with_its_prompt() -> None:
    """The prompt ends in a line break, and the tokenizer has a token of two. Fails where an answer
    that begins with one loses it to the prompt, whose ids would not be those of generation."""
    tokenizer = merging_tokenizer()
    assert len(tokenizer("a\n\nb", add_special_tokens=False).input_ids) == 3
    prompt_ids = encode_prompt(tokenizer, turns("q"))
    for answer in ("\nline", "\n\n\nlines", " space", "plain"):
        pair = encode_pair(tokenizer, {"prompt": "q", "chosen": answer, "rejected": "no"})
        assert pair.prompt_ids == prompt_ids
        assert tokenizer.decode(pair.chosen_ids[:-1]) == answer
