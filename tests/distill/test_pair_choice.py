"""Which pairs are written: delta learning, limits on lengths, samples of sources, and mixes of on-
and off-policy pairs."""

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny import tiny_tokenizer

from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.data.jsonl import write_rows
from zephyr.distill.binarize import binarize
from zephyr.distill.lineage import trace_pair
from zephyr.distill.pair_options import PairOptions, read_mix, read_take

Row = dict[str, object]


def row(number: int, scores: dict[str, float | None], **more: object) -> Row:
    """A prompt with an answer of each model; None: the answer has no score."""
    completions: list[Row] = []
    for model, score in scores.items():
        completion: Row = {"model": model, "text": f"{model} says {number}"}
        completions.append({**completion, **({} if score is None else {"scores": {"a": score}})})
    base: Row = {"prompt_id": f"p{number}", "prompt": f"question {number}"}
    return {**base, "completions": completions, **more}


def made(
    folder: Path, rows: Sequence[Row], rule: str = "paper", seed: int = 42, **options: object
) -> tuple[list[Row], Row]:
    """Pairs and report."""
    write_rows(folder / "rows.jsonl", rows)
    out = folder / "pairs.jsonl"
    report = binarize(
        [folder / "rows.jsonl"], out, rule=rule, seed=seed, options=PairOptions(**options)
    )
    pairs = [json.loads(line) for line in out.read_text().splitlines()]
    dropped = report["dropped"]
    assert report["rows"] == report["pairs"] + sum(dropped.values())
    assert report["stages"]["pairs"]["pairs"] == report["pairs"] == len(pairs)
    return pairs, report


def models(pairs: Sequence[Row]) -> list[tuple[object, object]]:
    return [(pair["chosen_model"], pair["rejected_model"]) for pair in pairs]


def test_delta_needs_two_models_and_no_judge(tmp_path: Path) -> None:
    """Fails where a score is asked for or decides, a prompt without one of the answers is lost
    uncounted, equal texts become a pair, or scores are written that training would read as a
    rating or a tie."""
    rows = [
        row(0, {"big": None, "small": None, "other": None}),
        row(1, {"big": 1, "small": 5}),  # the judge prefers the weaker one
        row(2, {"small": None, "other": 3}),
        row(3, {"big": None, "other": None}),
        row(4, {"big": None}),
    ]
    same: Row = row(5, {"big": None, "small": None})
    same["completions"] = [{**answer, "text": "both"} for answer in same["completions"]]
    pairs, report = made(tmp_path, [*rows, same], "delta", strong=("big",), weak=("small",))
    assert models(pairs) == [("big", "small")] * 2
    assert pairs[0]["chosen"] == "big says 0" and pairs[0]["rejected"] == "small says 0"
    assert not [key for key in pairs[1] if "score" in key] and pairs[1]["rule"] == "delta"
    place = f"{tmp_path}/rows.jsonl"
    assert report["without_answer"] == {
        "strong": {"count": 1, "first": [f"{place}:3"]},
        "weak": {"count": 2, "first": [f"{place}:4", f"{place}:5"]},
    }
    assert report["dropped"]["texts equal"] == 1
    assert report["disagreement"] == {"comparable": 1, "share": 1.0}
    assert report["strong"] == ["big"] and not report["win_rate"]


def test_several_stronger_models_are_drawn_evenly(tmp_path: Path) -> None:
    """Fails where the first name is always taken, or the draw depends on the order of the rows."""
    rows = [row(i, {"w": None, "s1": None, "s2": None, "v": None}) for i in range(400)]
    options = {"strong": ("s1", "s2"), "weak": ("v", "w")}
    pairs, _ = made(tmp_path, rows, "delta", **options)
    assert set(Counter(models(pairs)).values()) <= set(range(70, 131))
    for number in range(0, 400, 10):  # one of the weaker answers is the stronger one's text
        for answer in rows[number]["completions"]:
            answer["text"] = "other" if answer["model"] == "v" else "same"
    assert len(made(tmp_path, rows, "delta", **options)[0]) == 400
    pairs, _ = made(tmp_path, rows, "delta", **options)
    again, _ = made(tmp_path, random.Random(0).sample(rows, 400), "delta", **options)
    assert sorted(map(str, pairs)) == sorted(map(str, again))


def test_answers_may_come_one_a_row(tmp_path: Path) -> None:
    """What a server wrote for each model, a file a model. Fails where the answers to a prompt are
    not found again over the files, or pairwise rows keep their verdict under `delta`."""
    for model, text in (("big", "a longer answer"), ("small", "short")):
        rows = [
            {"prompt_id": str(n), "prompt": f"q{n}", "model": model, "completion": f"{text} {n}"}
            for n in range(3)
        ]
        write_rows(tmp_path / f"{model}.jsonl", rows)
    pair = {"prompt": "q", "model_a": "small", "completion_a": "x", "model_b": "big"}
    pair |= {"completion_b": "y", "preference": 1.0, "prompt_id": "9"}
    write_rows(tmp_path / "pairwise.jsonl", [pair])
    report = binarize(
        [tmp_path / f"{name}.jsonl" for name in ("small", "big", "pairwise")],
        tmp_path / "out.jsonl",
        rule="delta",
        options=PairOptions(strong=("big",), weak=("small",)),
    )
    pairs = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(p["chosen"], p["rejected"]) for p in pairs] == [
        ("y", "x"),
        *((f"a longer answer {n}", f"short {n}") for n in range(3)),
    ]
    assert report["shapes"] == {"single completions": 6, "AlpacaEval preferences": 1, "feedback": 3}
    assert not report["keys_not_read"]


def test_lengths_may_not_differ_by_more(tmp_path: Path) -> None:
    """Fails where the limit is one off, holds for longer chosen answers only, counts characters, or
    pairs before and after it are not told apart."""
    rows = []
    for number, (long, short) in enumerate([(5, 3), (3, 5), (6, 3), (3, 6)]):
        made_row = row(number, {"a": 5, "b": 1}, source=f"s{number % 2}")
        texts = ["word " * long, "term " * short]
        answers = zip(made_row["completions"], texts)
        made_row["completions"] = [{**answer, "text": text} for answer, text in answers]
        rows.append(made_row)
    pairs, report = made(tmp_path, rows, max_length_difference=2)
    assert [pair["id"] for pair in pairs] == ["p0", "p1"]
    assert report["dropped"] == {"lengths differ by more than 2 words": 2}
    assert report["stages"]["made"]["chosen"] == {"a": 4}
    assert report["stages"]["within_length"]["rejected"] == {"b": 2}
    assert report["by_source"]["s0"] == {"rows": 2, "made": 2, "within_length": 1, "pairs": 1}
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    lengths = [
        len(tiny_tokenizer().encode(w * 5, add_special_tokens=False)) for w in ("word ", "term ")
    ]
    _, report = made(
        tmp_path, rows[:1], max_length_difference=10**6, tokenizer=str(tmp_path / "tokenizer")
    )
    assert report["max_length_difference"]["unit"] == "tokens" and min(lengths) > 5
    assert report["stages"]["made"]["mean_longer"] > 2


def test_a_sample_of_a_source(tmp_path: Path) -> None:
    """Fails where the sample is the first rows, depends on their order or not on the seed, another
    source is sampled too, or a source that is short is filled up in silence."""
    rows = [row(i, {"a": 5, "b": 1}, source="xyz"[i % 3]) for i in range(90)]
    take = {"x": 10, "y": 30}
    pairs, report = made(tmp_path, rows, take=take)
    ids = [str(pair["id"]) for pair in pairs]
    assert Counter(pair["source"] for pair in pairs) == {"x": 10, "y": 30, "z": 30}
    assert ids == sorted(ids, key=lambda id: int(id[1:])) and report["take"] == take
    assert report["dropped"] == {"not in the sample of its source": 20}
    assert report["by_source"]["x"] == {"rows": 30, "made": 30, "within_length": 30, "pairs": 10}
    of_x = {pair["id"] for pair in pairs if pair["source"] == "x"}
    assert of_x != {f"p{n}" for n in range(0, 30, 3)}
    shuffled = random.Random(1).sample(rows, 90)
    assert {pair["id"] for pair in made(tmp_path, shuffled, take=take)[0]} == set(ids)
    assert {pair["id"] for pair in made(tmp_path, rows, seed=1, take=take)[0]} != set(ids)
    whole = str(tmp_path / "rows.jsonl")
    assert len(made(tmp_path, rows, take={whole: 7})[0]) == 7
    before = (tmp_path / "pairs.jsonl").read_bytes()
    with pytest.raises(BadInput, match="--take x=31: its rows give 30 pairs, expected at least 31"):
        made(tmp_path, rows, take={"x": 31})
    with pytest.raises(BadInput, match=r"--take w=1: no pair is of .* expected one of .*, x, y, z"):
        made(tmp_path, rows, take={"w": 1})
    assert (tmp_path / "pairs.jsonl").read_bytes() == before


def test_on_and_off_policy_pairs(tmp_path: Path) -> None:
    """Tulu 3's mix. Fails where an on-policy pair has no answer of the policy, an off-policy pair
    has one, a prompt gives two pairs, the numbers are not those that were asked for although they
    can be reached, or the better answer is not the chosen one."""
    both = [row(i, {"sft": i % 5, "a": 2.5, "b": 1.5}) for i in range(40)]
    only_off = [row(i, {"a": 2, "b": 1}) for i in range(40, 50)]
    only_on = [row(i, {"sft": 2, "b": 1}) for i in range(50, 60)]
    rows = [*both, *only_off, *only_on]
    for on, off in ((50, 10), (10, 50), (25, 35), (20, 20), (0, 5), (7, 0)):
        pairs, report = made(tmp_path, rows, on_policy=("sft",), mix={"on": on, "off": off})
        assert sum("sft" in pair for pair in models(pairs)) == on
        assert len(pairs) == on + off == len({pair["prompt_id"] for pair in pairs})
        assert report["on_policy"]["pairs"] == {"on": on, "off": off}
        assert all(pair["score_chosen"] > pair["score_rejected"] for pair in pairs)
    pairs, report = made(tmp_path, rows, on_policy=("sft",))
    assert len(pairs) == 50 and all("sft" in pair for pair in models(pairs))
    assert report["dropped"] == {"no answer of sft": 10}
    chosen, _ = made(tmp_path, rows, on_policy=("sft",), on_policy_side="chosen")
    rejected, report = made(
        tmp_path, rows, "best-vs-worst", on_policy=("sft",), on_policy_side="rejected"
    )
    assert {pair[0] for pair in models(chosen)} == {"sft"} == {pair[1] for pair in models(rejected)}
    assert (
        len(chosen) + len(rejected) == 50 and report["dropped"]["the answer of sft is not rejected"]
    )
    for mix, words in (
        ({"on": 51}, "--mix on=51: the rows give 50 pairs with an answer of sft"),
        ({"off": 51}, "--mix off=51: the rows give 50 pairs without an answer of sft"),
        ({"on": 31, "off": 31}, "60 rows give a pair, expected at least 62"),
    ):
        with pytest.raises(BadInput, match=words):
            made(tmp_path, rows, on_policy=("sft",), mix=mix)


def test_options_that_contradict_each_other(tmp_path: Path) -> None:
    """Fails where an option that the rule does not read is accepted and ignored."""
    for rule, options, words in (
        ("delta", {"strong": ("a",)}, r"expected --strong MODEL and --weak MODEL, got .*\['a'\]"),
        ("paper", {"weak": ("a",)}, "belong to rule delta, the rule is paper"),
        ("delta", {"strong": ("a", "b"), "weak": ("b",)}, "b is both --strong and --weak"),
        ("paper", {"max_length_difference": -1}, "expected an integer >= 0, got -1"),
        ("paper", {"tokenizer": "t"}, "counts for --max-length-difference, which is missing"),
        ("paper", {"mix": {"on": 1}}, "expected --on-policy MODEL"),
        ("paper", {"on_policy_side": "chosen"}, "expected --on-policy MODEL"),
        ("paper", {"on_policy": ("a",), "mix": {"on": 1}, "take": {"x": 1}}, "both fix how many"),
    ):
        with pytest.raises(BadInput, match=words):
            made(tmp_path, [row(0, {"a": 2, "b": 1})], rule, **options)
    for text in ("x", "x=", "=3", "x=0", "x=1.5"):
        with pytest.raises(BadInput, match="expected SOURCE=N"):
            read_take([text])
    assert read_take(["a=b=3", "c=1"]) == {"a=b": 3, "c": 1} and read_mix("off=2") == {"off": 2}
    for text in ("on", "on=1,on=2", "of=2", "on=0,off=0", ""):
        with pytest.raises(BadInput, match="expected on=N,off=M"):
            read_mix(text)


def test_models_that_no_row_names(tmp_path: Path) -> None:
    """A name with another spelling than the rows' own. Fails where its prompts are only counted as
    left out, where one of several names may be wrong, or where the earlier file is replaced."""
    rows = [row(0, {"big_model": None, "small": None})]
    made(tmp_path, rows, "delta", strong=("big_model",), weak=("small",))
    before = (tmp_path / "pairs.jsonl").read_bytes()
    for rule, options, words in (
        ("delta", {"strong": ("big-model",), "weak": ("small",)}, "--strong big-model: no row"),
        ("delta", {"strong": ("big_model",), "weak": ("small", "tiny")}, "--weak tiny: no row"),
        ("paper", {"on_policy": ("sft",)}, "--on-policy sft: no row"),
        ("paper", {"on_policy": ("sft",), "mix": {"off": 1}}, "--on-policy sft: no row"),
    ):
        with pytest.raises(BadInput, match=f"{words} has an .* one of big_model, small"):
            made(tmp_path, rows, rule, **options)
    assert (tmp_path / "pairs.jsonl").read_bytes() == before


def test_the_command_and_the_story_of_a_pair(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where an option of the command does not reach the rule, or the lineage of a pair is
    silent about what left other pairs out."""
    rows = [row(i, {"big": None, "small": None, "sft": None}, source="s") for i in range(9)]
    source, out = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    write_rows(source, rows)
    given = ["--rule", "delta", "--strong", "big", "--weak", "small", "--weak", "sft"]
    given += ["--max-length-difference", "3", "--on-policy", "sft", "--mix", "on=4,off=3"]
    assert main(["binarize", str(source), *given, "--out", str(out)]) == 0
    assert "7 pairs of 9 rows; left out: not in the mix 2" in capsys.readouterr().out
    ids = [json.loads(line)["id"] for line in out.read_text().splitlines()]
    story = "\n".join(trace_pair(ids[0], out, None))
    for words in (
        "rule      delta, seed 42",
        "stronger big, weaker small, sft",
        "lengths at most 3 words apart: 18 of 18 pairs",
        "on-policy sft (side: any): 4 pairs with its answer, 3 without",
        f"chosen    big: big says {ids[0][1:]}",
    ):
        assert words in story, story
    argument = ["--rule", "delta", "--strong", "big", "--weak", "small", "--take", "s=4"]
    assert main(["binarize", str(source), *argument, "--out", str(out)]) == 0
    first = json.loads(out.read_text().splitlines()[0])["id"]
    assert "4 of 9 pairs of s" in "\n".join(trace_pair(first, out, None))
