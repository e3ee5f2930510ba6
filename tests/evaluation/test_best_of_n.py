"""`zephyr eval best-of-n`: the estimate against all subsets, and the command on the embedded
world."""

from __future__ import annotations

import json
import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, write_rows
from zephyr.evaluation.best_of_n import (
    Candidates,
    best_row,
    choose,
    expected_best,
    kl_bound,
    sizes,
    summarise,
)
from zephyr.world.facts import build_world
from zephyr.world.prompts import draw_prompts
from zephyr.world.rules import judge

WORLD = build_world(0)


def run(*arguments: object) -> None:
    """The command, without `main`, which would turn BadInput into a line."""
    cli.run(["eval", "best-of-n", *map(str, arguments)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-9, 9) | st.sampled_from([1.0, 2.0]), min_size=1, max_size=7))
def test_the_estimate_is_the_mean_over_all_subsets(scores: list[float]) -> None:
    """For every k the mean of the highest score of each subset, ties included: the mean for k = 1,
    the maximum for k = n. Fails for ranks that are off by one."""
    scores_PN = np.array([scores, scores[::-1]])
    for k in range(1, len(scores) + 1):
        subsets = [max(subset) for subset in combinations(scores, k)]
        assert expected_best(scores_PN, k) == pytest.approx([np.mean(subsets)] * 2, abs=1e-12)
    assert expected_best(scores_PN, 1)[0] == pytest.approx(np.mean(scores), abs=1e-12)
    assert expected_best(scores_PN, len(scores))[0] == pytest.approx(max(scores))
    for k in (0, len(scores) + 1):
        with pytest.raises(ValueError, match="expected 1 to"):
            expected_best(scores_PN, k)


def test_the_estimate_of_many_answers_is_that_of_their_distribution() -> None:
    """The best of k uniform numbers is k / (k + 1): the estimate of 600 prompts with 16 answers
    is within five of its own standard errors, and its interval covers it. Fails where the best of n
    is told for the best of k, or large binomials lose their digits."""
    scores_PN = np.random.default_rng(0).random((600, 16))
    texts: list[list[str | None]] = [["x"] * 16] * 600
    prompts: list[dict[str, object]] = [{"prompt_id": n, "prompt": ""} for n in range(600)]
    found = summarise(Candidates("m", texts, scores_PN.tolist()), prompts)
    assert list(found["best_of"]) == ["1", "2", "4", "8", "16"]
    for k, of in found["best_of"].items():
        wanted = int(k) / (int(k) + 1)
        assert abs(of["score"] - wanted) < 5 * of["stderr"] < 0.03
        assert of["gain"]["score"] == pytest.approx(of["score"] - scores_PN.mean())
        assert of["kl_bound"] == pytest.approx(math.log(int(k)) - 1 + 1 / int(k))
    assert expected_best(np.random.default_rng(0).random((1, 400)), 200)[0] == pytest.approx(
        200 / 201, abs=0.01
    )
    assert (kl_bound(1), sizes(1), sizes(6), sizes(8)) == (0, [1], [1, 2, 4, 6], [1, 2, 4, 8])


def test_the_best_answer() -> None:
    """The first of equal ones; one without a score is never chosen."""
    assert best_row(["a", "b", "c"], [1.0, 2.0, 2.0]) == {"text": "b", "score": 2.0, "chosen": 1}
    assert best_row(["a", None], [-3.0, None]) == {"text": "a", "score": -3.0, "chosen": 0}
    assert best_row([None], [None]) == {"unanswered": True}
    texts: list[list[str | None]] = [["a", "b"], ["c", None]]
    prompts: list[dict[str, object]] = [{"prompt_id": n, "prompt": ""} for n in "xy"]
    found = summarise(Candidates("m", texts, [[1.0, 3.0], [9.0, None]]), prompts)
    assert found["unscored"] == 1 and found["best_of"]["1"]["score"] == 2
    assert found["best_of"]["2"]["score"] == 3 and found["best_of"]["2"]["n"] == 1


def test_command_on_the_embedded_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four answers of a careless answerer, scored by the world's judge: scores by its rules, the
    chosen answers as other commands read them, all answers as `binarize` reads them; they score
    the same again without asking, and with another scorer of their own scores. Fails where a score
    goes to another answer, or all four answers are one."""
    rows = [prompt._asdict() for prompt in draw_prompts(WORLD, "test", 100, 0)[:20]]
    write_rows(tmp_path / "prompts.jsonl", rows)
    prompts = ("--prompts", tmp_path / "prompts.jsonl")
    out = tmp_path / "out"
    run("m=world:careless", *prompts, "--samples", 4, "--scorer", "world:judge", "--out", out)
    table = capsys.readouterr().out.splitlines()
    results = json.loads((out / "results.json").read_text())["m"]
    every = [row for _, row in read_rows([out / "m.candidates.jsonl"])]
    assert len({of["text"] for row in every for of in row["completions"]}) > 40
    means, bests = [], []
    for prompt, row in zip(rows, every):
        scores = [round(2 * judge(prompt, of["text"], WORLD).overall) for of in row["completions"]]
        assert [of["overall"] for of in row["completions"]] == scores
        means.append(np.mean(scores))
        bests.append(max(scores))
    assert results["best_of"]["1"]["score"] == pytest.approx(np.mean(means))
    assert results["best_of"]["4"]["score"] == pytest.approx(np.mean(bests))
    assert np.mean(bests) > np.mean(means)
    assert (
        len(table) == 4 and table[0].split()[0] == "model" and f"{np.mean(bests):.2f} [" in table[3]
    )
    chosen = [row for _, row in read_rows([out / "m.jsonl"])]
    assert [row["score"] for row in chosen] == bests
    ledger = (tmp_path / "out.ledger.jsonl").read_bytes()
    again = tmp_path / "again"
    run("--answers", out / "m.candidates.jsonl", *prompts, "--out", again)
    stored = json.loads((again / "results.json").read_text())["m"]
    assert stored == {**results, "scorer": "stored"}
    line = ("--answers", out / "m.candidates.jsonl", *prompts, "--out", again, "--json")
    capsys.readouterr()
    run(*line, "--scorer", "world:judge", "--ledger", tmp_path / "out.ledger.jsonl")
    assert json.loads(capsys.readouterr().out)["m"] == results
    assert (tmp_path / "out.ledger.jsonl").read_bytes() == ledger
    cli.run(["binarize", str(out / "m.candidates.jsonl"), "--out", str(tmp_path / "pairs.jsonl")])
    pairs = [row for _, row in read_rows([tmp_path / "pairs.jsonl"])]
    assert pairs and all(row["score_chosen"] >= row["score_rejected"] for row in pairs)
    models = (f"best={out / 'm.jsonl'}", "m=world:careless")
    compared = ("--judge", "world:judge", "--out", str(tmp_path / "rate"))
    cli.run(["eval", "win-rate", *models, *map(str, prompts), *compared])
    (pair,) = json.loads((tmp_path / "rate/results.json").read_text())["pairs"].values()
    assert pair["n"] == 20 and pair["win_rate"] < 0.5


@pytest.mark.parametrize(
    "rows,said",
    [
        ([("a", ["x", "y"])], "m: no answer to 1 of 2 prompts in its file, the first is 'b'"),
        ([("a", ["x"]), ("b", ["x"]), ("c", ["x"])], "1 answers in its file.*'c'"),
        ([("a", ["x", "y"]), ("b", ["x"])], "'b' has 1 answers, the first prompt has 2"),
        ([("a", [])], r"m.jsonl.*1.*completions with a text each"),
        ([("a", [3])], r"m.jsonl.*1.*completions with a text each"),
        ([("a", ["x"]), ("a", ["x"])], r"m.jsonl.*2.*each once"),
        ([("a", ["x"]), ("b", ["x"])], "no stored scores.*expected --scorer"),
    ],
)
def test_bad_answers_are_named(
    tmp_path: Path, rows: list[tuple[str, list[object]]], said: str
) -> None:
    """Each would else end in figures about other answers than the user thinks."""
    write_rows(tmp_path / "prompts.jsonl", ({"prompt_id": n, "prompt": n} for n in "ab"))
    write_rows(
        tmp_path / "m.jsonl",
        ({"prompt_id": n, "completions": [{"text": text} for text in of]} for n, of in rows),
    )
    prompts = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path / "out")
    with pytest.raises(BadInput, match=said):
        run("--answers", tmp_path / "m.jsonl", *prompts)


def test_answers_without_a_score_are_no_result(tmp_path: Path) -> None:
    """Fails where a table of nothing is printed, and the command ends as if all were well."""
    prompts = [{"prompt_id": "a", "prompt": "What is it?"}]
    found = Candidates("m", [["x", None]], [[3.0, None]])
    with pytest.raises(BadInput, match="m: no prompt has answers and scores of all its samples"):
        choose([found], prompts, None, lambda *_: [], tmp_path, open_teacher=lambda *_: None)


def test_bad_options_are_named(tmp_path: Path) -> None:
    """Fails where eight equal answers are scored, or a file is written over."""
    write_rows(tmp_path / "prompts.jsonl", [{"prompt_id": "a", "prompt": "a"}])
    prompts = ("--prompts", tmp_path / "prompts.jsonl", "--out", tmp_path)
    scored = {"prompt_id": "a", "completions": [{"text": "x", "overall": 1}]}
    write_rows(tmp_path / "m.candidates.jsonl", [scored])
    for line, said in (
        (("world:careless", "--scorer", "world:judge", "--temperature", 0), "would be the same"),
        (("world:careless",), "--scorer: required"),
        ((), "a MODEL or --answers: required"),
        (("--answers", tmp_path / "m.candidates.jsonl"), "would be written over"),
        ((tmp_path / "m.candidates.jsonl", "--scorer", "world:judge"), "expected prompt_id"),
    ):
        with pytest.raises(BadInput, match=said):
            run(*line, *prompts)
