"""`[NAME=]WHAT` of every `zephyr eval`: names, paths with `=`, and digests of answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from zephyr import cli
from zephyr.config import BadInput
from zephyr.data.jsonl import write_rows
from zephyr.evaluation.academic import model_folders
from zephyr.evaluation.answers import (
    answers_digest,
    open_contender,
    open_contenders,
    require_own_names,
    split_name,
)
from zephyr.evaluation.arena_games import read_stored_judgments
from zephyr.evaluation.benchmarks import stored_turns
from zephyr.evaluation.best_of_n import read_candidates

PROMPTS = [{"prompt_id": "1", "prompt": "?"}]


def test_a_path_that_is_there_is_never_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file a=b.jsonl beside another b.jsonl, and a folder a=b, as every command reads them.
    Fails where the other is read under the name a."""
    monkeypatch.chdir(tmp_path)
    for path, text in (("a=b.jsonl", "right"), ("b.jsonl", "wrong")):
        write_rows(Path("plain", path), [{**PROMPTS[0], "text": text}])
        write_rows(Path("best", path), [{**PROMPTS[0], "completions": [{"text": text}]}])
        turns = {"question_id": 1, "model_id": text, "choices": [{"turns": [text, text]}]}
        write_rows(Path("bench", path), [turns])
        messages = [{"role": "assistant", "content": {"answer": text}}]
        write_rows(Path("arena", path), [{"uid": "1", "messages": messages}])
    judgment = {"uid": "1", "category": "c", "judge": "j", "model": "a=b", "baseline": "z"}
    write_rows(tmp_path / "judged.jsonl", [{**judgment, "games": [{}, {}]}])

    monkeypatch.chdir(tmp_path / "plain")
    contender = open_contender("a=b.jsonl", lambda spec: pytest.fail(spec))
    assert contender.name == "a_b.jsonl" and contender.stored == {"1": "right"}
    monkeypatch.chdir(tmp_path / "best")
    candidates = read_candidates("a=b.jsonl", PROMPTS, tmp_path)
    assert candidates.name == "a=b" and candidates.texts == [["right"]]
    monkeypatch.chdir(tmp_path / "bench")
    assert stored_turns(["a=b.jsonl"]) == {"right": {1: ("right", "right")}}
    monkeypatch.chdir(tmp_path / "arena")
    stored = read_stored_judgments([str(tmp_path / "judged.jsonl")], ["a=b.jsonl"], [])
    assert stored.texts == {"a=b": {"1": "right"}}
    for name in ("a=b", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_folders(["a=b", "n=a=b", "hf:a=b"]) == {"a=b": "a=b", "n": "a=b", "hf:a=b": "a=b"}
    assert split_name("m=openai:m@http://h/?a=b") == ("m", "openai:m@http://h/?a=b")
    assert split_name("openai:m@http://h/?a=b") == ("", "openai:m@http://h/?a=b")


@pytest.mark.parametrize("command", ["win-rate", "alpaca-eval", "mt-bench", "ifeval", "best-of-n"])
@pytest.mark.parametrize("other", ["A", "a"])
def test_names_are_told_apart_without_case(command: str, other: str, tmp_path: Path) -> None:
    """Two models of one name, or of two that some file systems take for one: nobody is asked, and
    the message has both. Fails where the files of one would be written over by the other's."""
    write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    task = {"key": 1, "prompt": "?", "instruction_id_list": ["x"], "kwargs": [{}]}
    write_rows(tmp_path / "tasks.jsonl", [task])
    question = {"question_id": 1, "category": "stem", "turns": ["?", "?"]}
    write_rows(tmp_path / "question.jsonl", [question])
    judge, prompts = ["--judge", "world:judge"], ["--prompts", str(tmp_path / "prompts.jsonl")]
    options = {
        "win-rate": [*judge, *prompts],
        "alpaca-eval": [*judge, *prompts, "--baseline", "world:evasive"],
        "mt-bench": [*judge, "--bench-dir", str(tmp_path)],
        "ifeval": ["--prompts", str(tmp_path / "tasks.jsonl")],
        "best-of-n": ["--scorer", "world:judge", *prompts],
    }[command]
    out, models = tmp_path / "out", ["a=world:terse", f"{other}=world:expert"]
    said = rf"one name: a \(a=world:terse\) and {other} \({other}=world:expert\); give one another"
    with pytest.raises(BadInput, match=said):
        cli.run(["eval", command, *models, *options, "--out", str(out)])
    assert not list(tmp_path.glob("out/**/*"))


def test_stored_answers_have_names_of_their_own(tmp_path: Path) -> None:
    """Files that were judged: two of one name would be one, and only the last be checked. Fails
    where that is not said."""
    for model in ("A", "a"):
        row = {"question_id": 1, "model_id": model, "choices": [{"turns": ["x", "y"]}]}
        write_rows(tmp_path / f"of_{model}.jsonl", [row])
    files = [str(tmp_path / f"of_{model}.jsonl") for model in ("A", "a")]
    with pytest.raises(BadInput, match=r"one name: A \(.*of_A.jsonl: A\) and a \(.*of_a.jsonl: a"):
        stored_turns(files)
    with pytest.raises(BadInput, match="two models have one name: m .*of_A.jsonl.* and M "):
        read_stored_judgments([], [f"m={files[0]}", f"M={files[1]}"], [])
    with pytest.raises(BadInput, match="two models have one name"):
        model_folders([f"m={tmp_path}", f"M={tmp_path}"])
    with pytest.raises(BadInput, match="two models have one name: x .* and X "):
        open_contenders([f"x={files[0]}", f"X={files[1]}"], lambda spec: pytest.fail(spec))
    require_own_names(["a", "b"], files)


def test_digests_of_answers_stay() -> None:
    """Digests in results of before are found again: of texts, of turns, without an answer, in any
    order. Fails where their form changes."""
    pairs: list[tuple[object, object]] = [(2, "x"), ("1", None), (3, ["a", "b"])]
    wanted = "c79b2bce37d81b8db6c47f14cf635b4d851b2447e91809de56c16068769a5d1e"
    assert answers_digest(pairs) == answers_digest(reversed(pairs)) == wanted
