"""Rounds of a tiny policy: what is asked, scored, chosen and trained; what a second start does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import rounds_writer
from runs import records

from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.model.load import digest
from zephyr.rounds import answers
from zephyr.rounds.config import load_rounds
from zephyr.rounds.folder import read_rows_of
from zephyr.rounds.loop import run_rounds
from zephyr.rounds.processes import Job, Launch
from zephyr.teacher.prompts import turns_of
from zephyr.world.facts import build_world
from zephyr.world.rules import judge

Row = dict[str, object]


class Done(NamedTuple):
    """Two rounds, finished."""

    yaml: Path
    folder: Path
    records: list[Row]

    def rows(self, number: int, name: str) -> list[Row]:
        return read_rows_of(self.folder / f"round-{number}" / name)


def never(job: Job) -> int:
    raise AssertionError(f"{job} is started again")


@pytest.fixture(scope="module")
def done(
    talker: Path, prompts: Path, forked: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Done:
    """Two rounds on two ranks of ZeRO-3, judged by the world."""
    folder = tmp_path_factory.mktemp("two")
    held_out = {"eval__prompts": [str(prompts)], "eval__judge": "world:judge@0"}
    path = rounds_writer(talker, prompts, folder)(**held_out, eval__max_new_tokens=24)
    found = run_rounds(load_rounds(str(path)), forked)
    return Done(path, folder / "rounds", found)


def test_each_round_is_of_its_own_policy(done: Done, talker: Path) -> None:
    """Round 1 samples from the first model, round 2 from what round 1 trained; each training starts
    where the reference is the policy. Fails where a round goes on from an older policy or its pairs
    are those of another round."""
    first, second = done.records
    assert first["weights"] == digest(talker)
    assert second["weights"] == digest(done.folder / "round-1" / "dpo" / "model")
    assert digest(done.folder / "round-2" / "dpo" / "model") != second["weights"]
    for number in (1, 2):
        pairs = done.rows(number, "pairs.jsonl")
        assert pairs and {row["round"] for row in pairs} == {number}
        train = records(done.folder / f"round-{number}" / "dpo")
        assert train[0]["rewards/chosen"] == 0 and abs(train[0]["loss"] - 0.6931472) < 1e-6
        assert sum(record["pairs"] for record in train) == len(pairs)


def test_scores_are_the_judges_and_pairs_follow_them(done: Done) -> None:
    """Against the world's rules, answer by answer; pairs are the best against the worst."""
    world = build_world(0)
    prompts = {row["prompt_id"]: row for row in read_rows_of(Path(prompts_of(done)))}
    scored = done.rows(1, "scored.jsonl")
    assert len(scored) == len(prompts) == 8
    for row in scored:
        assert [c["sample"] for c in row["completions"]] == [0, 1, 2, 3]
        for completion in row["completions"]:
            verdict = judge(prompts[row["prompt_id"]], completion["text"], world)
            assert completion["score"] == verdict.overall
    by_prompt = {row["prompt_id"]: row["completions"] for row in scored}
    pairs = done.rows(1, "pairs.jsonl")
    for pair in pairs:
        scores = [c["score"] for c in by_prompt[pair["prompt_id"]]]
        assert pair["score_chosen"] == max(scores) > min(scores) == pair["score_rejected"]
        texts = [by_prompt[pair["prompt_id"]][n]["text"] for n in pair["samples"]]
        assert texts == [pair["chosen"], pair["rejected"]]
    report = json.loads((done.folder / "round-1" / "pairs.report.json").read_text())
    assert report["pairs"] + sum(report["dropped"].values()) == 8


def prompts_of(done: Done) -> str:
    return load_rounds(str(done.yaml)).prompts.sources[0]


def test_samples_do_not_depend_on_the_processes(done: Done, talker: Path, tmp_path: Path) -> None:
    """The round ran on two ranks; one process gives the same texts. Each answer of a prompt has a
    seed of its own. Fails where a batch depends on who samples it."""
    config = load_rounds(str(done.yaml))
    rows = read_rows_of(Path(prompts_of(done)))
    asked = answers.sampled_questions(config, rows, 1)
    asked += answers.held_out_questions(config, rows)
    assert len({question.request.seed for question in asked}) == 8 * 4 + 1
    work = answers.prepare_parts(tmp_path, asked, digest(talker), config.sampling.batch)
    answers.make_parts(work, str(talker))
    replies = list(answers.read_parts(work, asked, str(talker), digest(talker)))
    texts = [reply.text for reply in replies]
    expected = [row["text"] for row in done.rows(1, "samples.jsonl")]
    expected += [row["text"] for row in read_rows_of(done.folder / "start" / "held_out.jsonl")]
    assert texts == expected and len(set(texts)) > 4


def test_held_out_answers_change_no_batch_of_samples(done: Done, tmp_path: Path) -> None:
    """Fails where a kill between both files, or a run of more rounds that finds the held-out
    answers there, would sample in other batches, whose logits have other last digits."""
    config = load_rounds(str(done.yaml))
    rows = read_rows_of(Path(prompts_of(done)))
    asked = answers.sampled_questions(config, rows, 1)
    both = [*answers.held_out_questions(config, rows), *asked]
    alone, beside = (
        answers.read_requests(answers.prepare_parts(tmp_path, of, "w", 8)) for of in (asked, both)
    )
    assert beside[: len(alone)] == alone and len(beside) > len(alone)


def test_nothing_is_done_twice(done: Done) -> None:
    """A second start launches nothing, and changes no file that a round made."""
    before = {path: path.read_bytes() for path in done.folder.rglob("*.jsonl")}
    assert run_rounds(load_rounds(str(done.yaml)), never) == done.records
    assert {path: path.read_bytes() for path in done.folder.rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("sampling.samples=5", r"sampling.samples was 4, it is 5"),
        ("train.overrides=[beta=0.2]", r"train.overrides was \[\], it is \['beta=0.2'\]"),
        ("pairs.choose=random", r"pairs.choose was 'best_worst', it is 'random'"),
    ],
)
def test_other_settings_are_refused(change: str, said: str, done: Done) -> None:
    """Both values are named, and the folder stays as it was."""
    before = (done.folder / "config.yaml").read_bytes()
    with pytest.raises(BadInput, match=said):
        run_rounds(load_rounds(str(done.yaml), [change]), never)
    assert (done.folder / "config.yaml").read_bytes() == before


def test_a_changed_file_is_refused(done: Done, tmp_path: Path) -> None:
    """Samples that somebody edited, and prompts that are others: named, with what to do."""
    copy = Path(shutil.copytree(done.folder, tmp_path / "copy"))
    samples = copy / "round-2" / "samples.jsonl"
    samples.write_text(samples.read_text().replace('"sample": 0', '"sample": 9', 1))
    with pytest.raises(BadInput, match="dir was"):
        run_rounds(load_rounds(str(done.yaml), [f"dir={copy}"]), never)
    held = (copy / "config.yaml").read_text().replace(str(done.folder), str(copy))
    (copy / "config.yaml").write_text(held)
    with pytest.raises(BadInput, match=r"round-2/samples.jsonl was changed since it was written"):
        run_rounds(load_rounds(str(done.yaml), [f"dir={copy}"]), never)
    more = tmp_path / "more.jsonl"
    more.write_text(Path(prompts_of(done)).read_text().replace("?", "!"))
    Path(prompts_of(done)).rename(tmp_path / "kept")
    try:
        shutil.copy(more, prompts_of(done))
        with pytest.raises(BadInput, match="prompts is not what the run began with: it was"):
            run_rounds(load_rounds(str(done.yaml)), never)
    finally:
        (tmp_path / "kept").rename(prompts_of(done))


def test_records_and_page(done: Done) -> None:
    """A record a round with what was paid; the page links the page of each training."""
    lines = read_rows_of(done.folder / "rounds.jsonl")
    assert lines == json.loads(json.dumps(done.records))
    for record in lines:
        assert record["answers"] == record["scores"] == 32 and record["requests"] == 4 * 32
        assert record["mean_chosen"] > record["mean_score"] > record["mean_rejected"]
        assert record["win_rate_n"] == 8 and 0 <= record["win_rate"] <= 1
        assert record["steps"] >= 1 and record["loss"] > 0
        reasons = [row["finish_reason"] for row in done.rows(record["round"], "samples.jsonl")]
        assert record["cut"] == reasons.count("length")
    page = (done.folder / "report.html").read_text()
    assert "round-2/dpo/report.html" in page and "win rate over the start" in page
    assert (done.folder / "round-2" / "dpo" / "report.html").exists()


def test_lineage_of_a_pair(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    """From a pair back to the policy, the scores and the paid requests, and on to its step."""
    pair = done.rows(2, "pairs.jsonl")[0]
    assert main(["lineage", pair["id"], "--run", str(done.folder / "round-2" / "dpo")]) == 0
    said = capsys.readouterr().out
    assert str(done.folder / "round-1" / "dpo" / "model") in said
    assert f"score {pair['score_chosen']}" in said and "  step " in said
    assert said.count(" scored: judge") == 16 and f"weights {pair['policy_digest'][:16]}" in said


def test_costs_are_told_before(
    done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--dry-run` counts samples, requests and steps, and writes nothing."""
    line = ["rounds", str(done.yaml), f"dir={tmp_path / 'none'}", "--dry-run"]
    assert main([*line, "prompts.per_round=3", "pairs.use=all", "rounds=2"]) == 0
    said = capsys.readouterr().out
    assert "12 answers a round, 24 in all, at most 576 tokens sampled" in said
    assert "96 requests" in said and "at most 1, 2 steps" in said
    assert "24 greedy answers" in said and "32 requests to world:judge@0" in said
    assert not (tmp_path / "none").exists()
    assert main([*line, "prompts.per_round=5"]) == 2
    assert "2 rounds of 5 prompts need 10, and there are 8" in capsys.readouterr().err


def test_prompts_of_a_round_come_once(done: Done) -> None:
    """Disjoint slices that the seed decides; turns as the policy gets them."""
    config = load_rounds(str(done.yaml), ["prompts.per_round=4"])
    rows = answers.read_all_prompts(config.prompts.sources)
    slices = [answers.prompts_of_round(config, rows, number) for number in (1, 2)]
    ids = [row["prompt_id"] for part in slices for row in part]
    assert len(set(ids)) == 8 and ids != [row["prompt_id"] for row in rows]
    (question, *_) = answers.sampled_questions(config, slices[1], 2)
    assert list(question.request.messages) == turns_of(slices[1][0]["prompt"])


def test_the_first_policy_as_reference(done: Done, forked: Launch, tmp_path: Path) -> None:
    """Round 2 again with the first policy as reference: its rewards begin away from 0, and its
    log-probs where the other run's began."""
    folder = tmp_path / "rounds"
    shutil.copytree(done.folder / "round-1", folder / "round-1")
    shutil.copytree(done.folder / "start", folder / "start")
    policy = folder / "round-1" / "dpo" / "model"
    changes = [f"dir={folder}", "reference=first", "eval.prompts=[]", "eval.judge=null"]
    run_rounds(load_rounds(str(done.yaml), changes), forked)
    ours = records(folder / "round-2" / "dpo")[0]
    other = records(done.folder / "round-2" / "dpo")[0]
    assert digest(policy) == done.records[1]["weights"]
    assert ours["rewards/margins"] != 0.0 and other["rewards/margins"] == 0.0
    assert ours["logps/chosen"] == other["logps/chosen"]


def test_rejection_sampling(done: Done, forked: Launch, tmp_path: Path) -> None:
    """`method: sft` trains on the best answer to each prompt, with the samples of the other run."""
    folder = tmp_path / "rounds"
    for name in ("samples.jsonl", "samples.report.json"):
        (folder / "round-1").mkdir(parents=True, exist_ok=True)
        shutil.copy(done.folder / "round-1" / name, folder / "round-1")
    text = Path(load_rounds(str(done.yaml)).train.config).read_text()
    sft = tmp_path / "sft.yaml"
    lines = [line for line in text.splitlines() if not line.startswith(("reference", "  dir: "))]
    sft.write_text("\n".join(lines).replace("pairs_per_step", "windows_per_step"))
    changes = [f"dir={folder}", "method=sft", f"train.config={sft}", "rounds=1", "eval.judge=null"]
    run_rounds(load_rounds(str(done.yaml), [*changes, "eval.prompts=[]"]), forked)
    rows = read_rows_of(folder / "round-1" / "pairs.jsonl")
    assert len(rows) == 8 and all(len(row["messages"]) == 2 for row in rows)
    best = {pair["prompt_id"]: pair["chosen"] for pair in done.rows(1, "pairs.jsonl")}
    scores = {pair["prompt_id"]: pair["score_chosen"] for pair in done.rows(1, "pairs.jsonl")}
    of_sft = {row["prompt_id"]: row for row in rows}
    assert best and all(of_sft[id]["score_chosen"] == score for id, score in scores.items())
    assert (folder / "round-1" / "sft" / "model").is_dir()


def test_a_scorer_is_opened_before_anything_is_sampled(done: Done, tmp_path: Path) -> None:
    """A reward model that is not there, and a world's judge of other facts under the same SPEC."""
    changes = [f"dir={tmp_path / 'new'}", "scoring.scorer=rm:./nowhere"]
    with pytest.raises(BadInput, match=r"\./nowhere: no such folder"):
        run_rounds(load_rounds(str(done.yaml), changes), never)
    copy = Path(shutil.copytree(done.folder, tmp_path / "copy"))
    for name in ("config.yaml", "identity.json"):
        text = (copy / name).read_text().replace(str(done.folder), str(copy))
        (copy / name).write_text(
            text.replace('"scorer": "judge ', '"scorer": "judge of other facts ')
        )
    with pytest.raises(
        BadInput, match="scorer is not what the run began with: it was judge of other"
    ):
        run_rounds(load_rounds(str(done.yaml), [f"dir={copy}"]), never)
