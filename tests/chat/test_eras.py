"""Ids of the published runs: the paper's encoding and the handbook's two, on Mistral's tokenizer.

`era_ids.json` was written by the handbook's and TRL's own code (it says which); here the old steps
stand once more, from sentencepiece alone: the template's text, the tokenizer's call, TRL's rules.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest
import torch
from runs import write_lines
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from zephyr.chat import HANDBOOK_TEMPLATE, ZEPHYR_TEMPLATE, encode_pair, eras
from zephyr.config import BadInput
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.tokenizer import from_sentencepiece, load_tokenizer, prepare_tokenizer
from zephyr.data.windows import joined_windows
from zephyr.model.load import load_policy
from zephyr.packing import collate_pairs

GOLDEN = json.loads(Path(__file__).with_name("era_ids.json").read_text(encoding="utf-8"))
LIMITS = {"max_tokens": GOLDEN["max_tokens"], "max_prompt_tokens": GOLDEN["max_prompt_tokens"]}
BOS, EOS = 1, 2
ROLES = {"system": "<|system|>\n", "user": "<|user|>\n", "assistant": "<|assistant|>\n"}
Turns = list[dict[str, str]]
Sides = list[list[int]]


@pytest.fixture(scope="module")
def mistral_file(real_data: Path) -> Path:
    path = real_data / "tokenizers" / "mistral_v1_tokenizer.model"
    if not path.is_file():
        pytest.skip(f"Mistral's tokenizer is not at {path}")
    return path


@pytest.fixture(scope="module")
def mistral(mistral_file: Path) -> PreTrainedTokenizerBase:
    return prepare_tokenizer(from_sentencepiece(mistral_file), "zephyr")


class Old:
    """The tokenizer's call as it was: text between special tokens is encoded by itself, each part
    with a dummy space."""

    def __init__(self, file: Path) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = SentencePieceProcessor(model_file=str(file))

    def plain(self, text: str) -> list[int]:
        return self.model.encode(text)

    def __call__(self, text: str) -> list[int]:
        """Ids with `<s>` and `</s>` recognized wherever they stand."""
        ids = []
        for i, strike in enumerate(text.split("<s>")):
            ids += [BOS] * (i > 0)
            for j, part in enumerate(strike.split("</s>")):
                ids += [EOS] * (j > 0)
                ids += self.plain(part) if part else []
        return ids


def written(turns: Turns) -> str:
    return "".join(f"{ROLES[turn['role']]}{turn['content']}</s>\n" for turn in turns)


def said(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def with_system(turns: Turns) -> Turns:
    empty = {"role": "system", "content": ""}
    return turns if turns[0]["role"] == "system" else [empty, *turns]


def old_a(old: Old, row: Mapping[str, object]) -> Sides:
    """e316174: the first user turn alone, the header stripped, all tokenized apart, no BOS."""
    turns = row["prompt"]
    asked = [turn for turn in turns if turn["role"] == "user"][:1]
    prompt = written([*with_system(turns)[:1], *asked]) + ROLES["assistant"]
    sides = [old(prompt)]
    for name in ("chosen", "rejected"):
        text = written([*turns, said(row[name])][1:])
        if text.startswith(ROLES["assistant"]):
            text = text[len(ROLES["assistant"]) :]
        sides.append([*old(text), EOS])
    return sides


def old_b(old: Old, row: Mapping[str, object]) -> Sides:
    """f0ffa0d: no generation prompt, the header in the response, BOS, and a second EOS."""
    prompt = written(with_system(row["prompt"]))
    ids = old(prompt)
    sides = [[BOS, *ids]]
    for name in ("chosen", "rejected"):
        both = old(prompt + written([said(row[name])]))
        assert both[: len(ids)] == ids
        sides.append([*both[len(ids) :], EOS])
    return sides


def paper(old: Old, row: Mapping[str, object]) -> Sides:
    """What the model is given to answer, and the answer as it goes on; marks in a row's own words
    are words."""
    turns = with_system(row["prompt"])
    prompt_ids = [BOS]
    for i, turn in enumerate(turns):
        break_ = "\n" if i else ""
        prompt_ids += [*old.plain(break_ + ROLES[turn["role"]] + turn["content"]), EOS]
    begun = old.plain("\n" + ROLES["assistant"])
    sides = [prompt_ids + begun]
    for name in ("chosen", "rejected"):
        both = old.plain("\n" + ROLES["assistant"] + row[name])
        assert both[: len(begun)] == begun
        sides.append([*both[len(begun) :], EOS])
    return sides


def cut_as_trl(sides: Sides) -> Sides:
    prompt, chosen, rejected = sides
    most, most_prompt = LIMITS["max_tokens"], LIMITS["max_prompt_tokens"]
    longer = max(len(chosen), len(rejected))
    if len(prompt) + longer > most:
        prompt = prompt[-most_prompt:]
    if len(prompt) + longer > most:
        chosen, rejected = chosen[: most - most_prompt], rejected[: most - most_prompt]
    return [prompt, chosen, rejected]


def cut_keeping_bos(sides: Sides) -> Sides:
    prompt, chosen, rejected = sides
    most, most_prompt = LIMITS["max_tokens"], LIMITS["max_prompt_tokens"]
    if len(prompt) + max(len(chosen), len(rejected)) <= most:
        return sides
    if len(prompt) > most_prompt:
        prompt = [BOS, *prompt[1 - most_prompt :]]
    return [prompt, chosen[: most - len(prompt)], rejected[: most - len(prompt)]]


OLD = {"zephyr": paper, "handbook_a": old_a, "handbook_b": old_b}
CUT = {"zephyr": cut_keeping_bos, "handbook_a": cut_as_trl, "handbook_b": cut_as_trl}


@pytest.mark.parametrize("encoding", OLD)
def test_ids_are_those_of_the_published_code(
    encoding: str, mistral: PreTrainedTokenizerBase, mistral_file: Path
) -> None:
    """Whole and cut: the file, the old steps and `encode_pair` agree. Fails where a BOS, an EOS, a
    header, a turn or a dummy space is elsewhere than it was, or another id is cut."""
    old = Old(mistral_file)
    truncation = "keep_end" if encoding == "zephyr" else "trl_0.7"
    encode = partial(encode_pair, mistral, encoding=encoding, truncation=truncation)
    cut = 0
    for name, case in GOLDEN["pairs"].items():
        row, whole = case["row"], case[f"{encoding} whole"]
        assert OLD[encoding](old, row) == whole, name
        golden_cut = case.get(f"{encoding} cut", whole)
        assert CUT[encoding](whole) == golden_cut, name
        found = encode(row, max_tokens=10000, max_prompt_tokens=5000)
        assert [found.prompt_ids, found.chosen_ids, found.rejected_ids] == whole, name
        found = encode(row, **LIMITS)
        assert [found.prompt_ids, found.chosen_ids, found.rejected_ids] == golden_cut, name
        cut += golden_cut != whole
    assert cut >= 3


def test_what_was_odd() -> None:
    """The quirks in one place, read from the file. Fails where the file lost one, and then the
    test above would say nothing of it."""
    pairs = GOLDEN["pairs"]
    for name, case in pairs.items():
        assert case["handbook_a whole"][0][0] != BOS, "A adds no BOS"
        assert case["handbook_b whole"][0][0] == BOS
        for side in (*case["handbook_a whole"][1:], *case["handbook_b whole"][1:]):
            assert side[-4:] == [EOS, 28705, 13, EOS], name
    header = pairs["single turn"]["handbook_b whole"][1][:7]
    assert all(case["handbook_b whole"][1][:7] == header for case in pairs.values())
    asked, turns = (pairs[name]["handbook_a whole"] for name in ("two turns", "system turn"))
    assert asked[0].count(EOS) == 2 and asked[1].count(EOS) == 4, "later turns: in the response"
    assert turns[1].count(EOS) == 3, "with a system turn, the user's is in the response too"
    assert pairs["long prompt"]["handbook_b cut"][0][0] != BOS, "a cut prompt loses BOS"
    prompt, chosen, _ = pairs["long answer"]["handbook_b cut"]
    assert len(prompt) + len(chosen) < LIMITS["max_tokens"], "a cut answer leaves tokens unused"


def test_windows_are_those_of_trl(mistral: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """`ConstantLengthDataset`: conversations, an EOS behind each, in windows; the last short one is
    left out. Fails where a token is lost between texts, or is no target."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"messages": t} for t in GOLDEN["texts"]])
    size = GOLDEN["window"]
    texts, report = load_texts([str(rows)], mistral, max_tokens=size, targets="all", joined=True)
    windows, report = joined_windows(texts, report, window_tokens=size, seed=None)
    assert [window.ids for window in windows] == GOLDEN["windows"]
    assert all(window.is_target == [False] + [True] * (size - 1) for window in windows)
    tokens = sum(texts.tokens)
    counts = {"windows": 6, "tokens": tokens, "tokens_left_out": tokens - 6 * size}
    assert report["windows"] == counts and 0 < counts["tokens_left_out"] < size
    assert report["quirks"] == ["data.packing: constant_length"]


def test_windows_on_disk_and_in_any_order(tiny: Path, tmp_path: Path) -> None:
    """All tokens of all rows but the last few, once each: in the order of `datasets`' shuffle, and
    the same again from the cache. Fails where a row's mask is lost, or rows over the borders of
    what is read at a time are doubled."""
    datasets = pytest.importorskip("datasets")
    turns = [
        [{"role": "user", "content": f"{i} " * (i + 1)}, {**said(f"answer {i}"), "train": i != 3}]
        for i in range(9)
    ]
    rows = write_lines(tmp_path / "rows.jsonl", [{"messages": t} for t in turns])
    tokenizer = load_tokenizer(tiny, "zephyr")
    texts, report = load_texts([str(rows)], tokenizer, targets="all", joined=True)
    settings = {"window_tokens": 16, "seed": 42}
    found, _ = joined_windows(texts, report, **settings, cache_dir=tmp_path / "cache")
    again, _ = joined_windows(texts, report, **settings, cache_dir=tmp_path / "cache")
    assert found.table.equals(again.table) and len(set(found.ids)) == len(found)
    order = list(datasets.Dataset.from_dict({"i": range(9)}).shuffle(seed=42)["i"])
    assert order != sorted(order)
    stream = [token for i in order for token in texts[i].ids]
    flags = [flag for i in order for flag in texts[i].is_target]
    assert [token for window in found for token in window.ids] == stream[: 16 * len(found)]
    for number, window in enumerate(found):
        assert window.is_target == [False, *flags[16 * number + 1 : 16 * number + 16]]
    assert flags.count(False) > 0 and len(stream) - 16 * len(found) < 16
    with pytest.raises(BadInput, match="hold .* tokens, expected at least one window"):
        joined_windows(texts, report, window_tokens=10**6, seed=None)


@pytest.mark.parametrize("encoding", eras.ERAS)
@pytest.mark.parametrize("sharing", [True, False])
def test_shared_prompts_equal_the_plain_forward(encoding: str, sharing: bool, tiny: Path) -> None:
    """Log-probs of all response tokens, header and both EOS included, against transformers' eager
    forward of each sequence, in float32. Fails where a shared prompt ends elsewhere than the
    encoding says."""
    tokenizer = load_tokenizer(tiny, "zephyr")
    rows = [case["row"] for case in GOLDEN["pairs"].values()]
    pairs = [encode_pair(tokenizer, row, encoding=encoding, template=None) for row in rows[:5]]
    plain = AutoModelForCausalLM.from_pretrained(tiny, attn_implementation="eager").eval()

    @torch.no_grad()
    def alone(prompt: list[int], response: list[int]) -> Tensor:
        ids_N = torch.tensor(prompt + response)
        logits_NV = plain(input_ids=ids_N[None], use_cache=False).logits[0].float()
        logp_TV = logits_NV.log_softmax(-1)[len(prompt) - 1 : -1]
        return logp_TV.gather(-1, ids_N[len(prompt) :, None]).squeeze(-1)

    expected = [alone(pair.prompt_ids, pair.chosen_ids) for pair in pairs]
    expected += [alone(pair.prompt_ids, pair.rejected_ids) for pair in pairs]
    with torch.no_grad():
        found = load_policy(tiny)(collate_pairs(pairs, range(5), prefix_sharing=sharing))
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)


def test_a_wrong_combination_is_refused(tiny: Path, tmp_path: Path) -> None:
    """Another template, a tokenizer without BOS, an unknown name. Fails where the marks of another
    template would be stripped as Zephyr's."""
    rows = write_lines(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
    tokenizer = load_tokenizer(tiny, "zephyr")
    for template in (ZEPHYR_TEMPLATE, HANDBOOK_TEMPLATE):
        tokenizer.chat_template = template
        assert len(load_pairs([str(rows)], tokenizer, encoding="handbook_b")[0]) == 1
    tokenizer.chat_template = ZEPHYR_TEMPLATE.replace("<|user|>", "<|human|>")
    with pytest.raises(BadInput, match="handbook_a needs Zephyr's chat template.*: zephyr"):
        load_pairs([str(rows)], tokenizer, encoding="handbook_a")
    tokenizer.chat_template = ZEPHYR_TEMPLATE
    with pytest.raises(BadInput, match="encoding is 'handbook_c', expected 'zephyr', 'handbook_a'"):
        load_pairs([str(rows)], tokenizer, encoding="handbook_c")
    tokenizer.bos_token = None
    with pytest.raises(BadInput, match="handbook_b puts BOS first, and the tokenizer has none"):
        load_pairs([str(rows)], tokenizer, encoding="handbook_b")
