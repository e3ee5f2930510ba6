"""Feedback rows become pairs by a rule."""

import json
from collections import Counter
from pathlib import Path

import pytest

from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.data.binarize import RULES, binarize
from zephyr.data.feedback import collect_feedback
from zephyr.data.jsonl import read_rows, write_rows


def row(number: int, scores: tuple[float, ...] = (2, 5, 3, 4), texts: str = "abcd") -> dict[str, object]:
    completions = [{"model": f"m{i}", "text": t, "scores": {"honesty": s, "helpfulness": s}, "overall": 11 - s}
                   for i, (s, t) in enumerate(zip(scores, texts))]
    return {"prompt_id": f"p{number}", "prompt": f"question {number}", "completions": completions}


def test_paper_takes_the_best_mean_and_a_uniform_other() -> None:
    """The highest mean aspect score, not the overall (which points the other way here), against each other equally often."""
    pairs, report = binarize([row(i) for i in range(3000)], rule="paper", seed=0)
    assert {pair["chosen"] for pair in pairs} == {"b"} and report["chosen"] == {"m1": 3000}
    counts = Counter(pair["rejected"] for pair in pairs)
    assert set(counts) == set("acd")
    assert all(abs(n - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for n in counts.values())
    assert pairs[0] | {"rejected": "", "score_rejected": 0} == {
        "id": "p0", "prompt": "question 0", "chosen": "b", "rejected": "", "score_chosen": 5.0, "score_rejected": 0}


def test_pairs_do_not_depend_on_the_order_of_rows() -> None:
    """A generator shared by rows would give other pairs for another number of workers."""
    rows = [row(i, (1, 1, 1, 1)) for i in range(200)]
    pairs, _ = binarize(rows, rule="paper", seed=5)
    parts = [pair for part in (rows[150:], rows[:150]) for pair in binarize(part, rule="paper", seed=5)[0]]
    assert sorted(parts, key=lambda p: p["id"]) == sorted(pairs, key=lambda p: p["id"])
    assert binarize(rows, rule="paper", seed=6)[0] != pairs


def test_ties_for_the_best_are_drawn_evenly() -> None:
    """Taking the first of the best would favour whoever answers first."""
    pairs, _ = binarize([row(i, (5, 5, 1, 1)) for i in range(2000)], rule="paper", seed=0)
    assert abs(Counter(pair["chosen"] for pair in pairs)["a"] - 1000) < 5 * 500**0.5


def test_identical_answers_make_no_pair() -> None:
    """A pair of two equal texts has no gradient, and training refuses it."""
    pairs, report = binarize([row(0, texts="bbbb"), row(1, texts="bbxb")], rule="paper", seed=0)
    assert [pair["id"] for pair in pairs] == ["p1"] and {pairs[0]["chosen"], pairs[0]["rejected"]} == {"b", "x"}
    assert report["identical"] == 1 and report["rows"] == 2


def test_a_further_rule_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table is the extension point that the docstring promises."""
    monkeypatch.setitem(RULES, "first", lambda completions, rng: RULES["paper"](completions[:2], rng))
    assert binarize([row(0)], rule="first", seed=0)[0][0]["rejected"] == "a"


def test_bad_feedback_is_refused_by_name() -> None:
    """A row without scores would otherwise end in a traceback far from its cause."""
    lonely, unscored = row(3), row(4)
    lonely["completions"] = lonely["completions"][:1]
    unscored["completions"][2]["scores"] = {}
    for rows, word in (([{"prompt": "x"}], "prompt_id"), ([lonely], "p3"), ([row(0), unscored], "row 2.*scores")):
        with pytest.raises(BadInput, match=word):
            binarize(rows, rule="paper", seed=0)
    with pytest.raises(BadInput, match="paper"):
        binarize([row(0)], rule="papr", seed=0)


def test_feedback_asks_every_answerer_and_hides_its_name_from_the_judge() -> None:
    """Two prompts of one id would share a seed, and one answerer gives nothing to compare."""
    answerers = {"loud": lambda p: f"{p['prompt']}!", "calm": lambda p: f"{p['prompt']}."}
    prompts = [{"prompt_id": "1", "prompt": "hi"}, {"prompt_id": "2", "prompt": "ho"}]
    rows = list(collect_feedback(prompts, answerers, lambda p, text: ({"honesty": len(text)}, float(len(text)))))
    assert [c["text"] for c in rows[1]["completions"]] == ["ho!", "ho."]
    assert rows[0]["completions"][0] == {"model": "loud", "text": "hi!", "scores": {"honesty": 3}, "overall": 3.0}
    with pytest.raises(BadInput, match="twice"):
        list(collect_feedback([*prompts, prompts[0]], answerers, lambda p, text: ({}, 0.0)))
    with pytest.raises(BadInput, match="at least 2"):
        list(collect_feedback(prompts, {"loud": answerers["loud"]}, lambda p, text: ({}, 0.0)))


def test_rows_survive_their_file_and_bad_lines_are_named(tmp_path: Path) -> None:
    """U+2028 is a line break to str.splitlines: rows must end at newlines alone."""
    write_rows(tmp_path / "deep" / "rows.jsonl", [{"text": "one\u2028line"}, {"text": "two"}])
    assert [r["text"] for r in read_rows(tmp_path / "deep" / "rows.jsonl")] == ["one\u2028line", "two"]
    for content, word in (('{"a": 1}\n{"a"', ":2: no JSON"), ("[1]\n", ":1: an object")):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(BadInput, match=word):
            list(read_rows(tmp_path / "bad.jsonl"))


def test_commands_lead_from_seed_to_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quickstart's own commands, and code 2 with one line where the input is bad."""
    world = tmp_path / "world"
    assert main(["world", str(world), "--seed", "3"]) == 0
    assert main(["feedback", str(world), "--prompts", "validation", "--out", str(tmp_path / "f.jsonl")]) == 0
    assert main(["binarize", str(tmp_path / "f.jsonl"), "--rule", "paper", "--out", str(tmp_path / "p.jsonl")]) == 0
    pairs = list(read_rows(tmp_path / "p.jsonl"))
    assert len(pairs) > 300 and all(pair["score_chosen"] >= pair["score_rejected"] for pair in pairs)
    report = json.loads(capsys.readouterr().out.strip().splitlines()[-1].split(": ", 1)[1])
    assert report["pairs"] == len(pairs) and set(report["chosen"]) == {"expert", "terse", "careless", "evasive"}
    assert main(["binarize", str(tmp_path / "f.jsonl"), "--rule", "best", "--out", str(tmp_path / "q.jsonl")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: binarisation rule 'best'") and error.count("\n") == 1
