"""The parts of a round, one after the other: answers, scores, pairs, training, evaluation.

Each is a function of files that makes a file; one that is there already is not made again."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import save_report, write_json, write_rows
from zephyr.evaluation.compare import summarise
from zephyr.evaluation.scorers import Score, scored
from zephyr.evaluation.win_rate import judge_pairs, judge_panel
from zephyr.progress import info
from zephyr.rounds import answers
from zephyr.rounds.choose import best_rows, mean_scores, pair_rows
from zephyr.rounds.config import RoundsConfig, Scoring
from zephyr.rounds.folder import RoundsFolder, is_done, read_rows_of, wait_until_free
from zephyr.rounds.processes import STOPPED, Job, Launch, Stopped
from zephyr.rounds.server import serving
from zephyr.teacher import Budget, Ledger, Reply, Teacher, ask
from zephyr.teacher.prompts import Row
from zephyr.teacher.spec import open_teacher
from zephyr.training import ranks
from zephyr.training.files import READ_ERRORS, read_json

SAMPLES, SCORED, PAIRS = "samples.jsonl", "scored.jsonl", "pairs.jsonl"
HELD_OUT, WIN_RATE = "held_out.jsonl", "win_rate.json"
WORK = "work.json"  # how the processes of a part ended


class Rounds(NamedTuple):
    """What all rounds share."""

    config: RoundsConfig
    folder: RoundsFolder
    prompts: Sequence[Row]
    held_out: Sequence[Row]
    launch: Launch

    def scorer(self, number: int) -> str:
        """The scorer of a round."""
        if self.config.scoring.scorer == "policy":
            return f"hf:{self.folder.policy(self.config, number - 1)}"
        return self.config.scoring.scorer


# -- answers


def answer(rounds: Rounds, number: int) -> None:
    """Let the policy that the round starts from answer the round's prompts, and the held-out ones.

    Args: number: of the round, from 1; one more than there are: held-out prompts only.
    """
    from zephyr.model.load import digest

    config, folder = rounds.config, rounds.folder
    samples = folder.round(number) / SAMPLES if number <= config.rounds else None
    held_out = folder.round(number - 1) / HELD_OUT if rounds.held_out else None
    samples = None if samples and is_done(samples) else samples
    held_out = None if held_out and is_done(held_out) else held_out
    questions = []
    if samples:
        rows = answers.prompts_of_round(config, rounds.prompts, number)
        questions += answers.sampled_questions(config, rows, number)
    if held_out:
        questions += answers.held_out_questions(config, rounds.held_out)
    scores_here = config.scoring.scorer == "policy" and config.server.command is not None
    needs_scores = number <= config.rounds and not is_done(folder.round(number) / SCORED)
    if not questions and not (scores_here and needs_scores):
        return
    work = folder.round(number if samples else number - 1)
    work.mkdir(parents=True, exist_ok=True)
    model = folder.policy(config, number - 1)
    weights = digest(model)
    report = {"command": "rounds", "model": model, "weights": weights, "seed": config.seed}
    write = partial(answers.write_answers, questions, samples=samples, held_out=held_out)
    if config.server.command is None:
        write(replies=sample_here(rounds, work, questions, model, weights), report=report)
        answers.remove_parts(work)
        return
    log, lock = work / "server.log", folder.lock_number
    with serving(config.server, model, weights, log, lock) as teacher:
        ledger = work / "answers.ledger.jsonl"
        write(replies=answers.ask_server(teacher, questions, ledger), report=report)
        if scores_here and number <= config.rounds:
            score(rounds, number, teacher)


def sample_here(
    rounds: Rounds, work: Path, questions: Sequence[answers.Question], model: str, weights: str
) -> list[Reply]:
    """The replies of processes that load the model."""
    parts = answers.prepare_parts(work, questions, weights, rounds.config.sampling.batch)
    count, done = answers.count_parts(parts)
    if done < count:
        info(f"{work}: {model} answers, {done} of {count} batches are there")
        run_job(rounds, work, ["sample", str(parts), model])
    return list(answers.read_parts(parts, questions, model, weights))


def run_job(rounds: Rounds, work: Path, arguments: Sequence[str]) -> None:
    """Run `zephyr.rounds.work` in all processes. Raises: BadInput with what it says; Stopped."""
    result = work / WORK
    result.unlink(missing_ok=True)
    log = work / "work.log"
    words = [*arguments, str(result)]
    code = rounds.launch(Job("zephyr.rounds.work", words, rounds.config.train.processes, log))
    require_success(code, result, f"{arguments[0]} in {work}", log)


def require_success(code: int, status: Path, what: str, log: Path) -> None:
    """Raises: BadInput or Stopped, with the message in the status file, where a job failed."""
    if code == 0:
        return
    try:
        found = read_json(status)
    except READ_ERRORS:
        found = {}
    why = str(found.get("message", f"it ended with code {code}"))
    if STOPPED in (code, found.get("code")):
        raise Stopped(why)
    raise BadInput(f"{what}: {why}; its log is {log}")


# -- scores


def score(rounds: Rounds, number: int, teacher: Teacher | None = None) -> None:
    """Score the answers of a round.

    Args: teacher: the judge, where it is the policy on its server.
    """
    out = rounds.folder.round(number) / SCORED
    if is_done(out):
        return
    wait_until_free(rounds.folder.ledger)
    scorer = rounds.scorer(number)
    if teacher is None and loads_models(scorer):
        run_job(rounds, out.parent, ["score", str(rounds.folder.path), str(number)])
    else:
        write_scores(rounds, number, teacher)


def loads_models(scorer: str) -> bool:
    """Whether a scorer or judge loads models on this machine. Processes that end ask it, so that
    training has their memory; then all replies are in the ledger."""
    return scorer.partition(":")[0] in ("hf", "rm", "implicit")


def write_scores(rounds: Rounds, number: int, teacher: Teacher | None = None) -> None:
    """Ask for the scores that are missing, and write a row a prompt. A collective under torchrun.

    A row has the form of `zephyr feedback`: `zephyr lineage` and `zephyr binarize` read it too.
    """
    config, folder, path = rounds.config, rounds.folder, rounds.folder.round(number)
    sampled = read_rows_of(path / SAMPLES)
    about = read_json(path / "samples.report.json")
    prompts = {str(row["prompt_id"]): row for row in rounds.prompts}
    given = [row for row in sampled if "text" in row]
    items = [{**prompts[str(row["prompt_id"])], "text": row["text"]} for row in given]
    scoring = config.scoring

    def judge(spec: str) -> Teacher:
        return teacher or open_judge(spec, scoring)

    with ledger_of(rounds) as ask_once:
        found = scored(
            rounds.scorer(number),
            items,
            ask_once,
            open_teacher=judge,
            judged_by=scoring.judged_by,
            templates=Path(scoring.templates) if scoring.templates else None,
            seed=config.seed,
            judge_tokens=scoring.max_tokens,
        )
    rows = scored_rows(given, found, prompts, rounds.scorer(number), about)
    write_rows(path / SCORED, rows)
    values = [one.value for one in found if math.isfinite(one.value)]
    if ranks.rank() == 0:
        save_report(
            path / SCORED,
            {
                "command": "rounds",
                "sources": [SAMPLES],
                "scorer": rounds.scorer(number),
                "ledger": os.path.relpath(folder.ledger, path),
                "answers": len(items),
                "scores": len(values),
                "mean": fmean(values) if values else None,
                "requests": sum(len(one.calls) for one in found),
            },
        )


def open_judge(spec: str, scoring: Scoring) -> Teacher:
    """The judge that scores or compares. Raises: BadInput, as `open_teacher`."""
    return open_teacher(
        spec,
        concurrency=scoring.concurrency,
        timeout_seconds=scoring.timeout_seconds,
        retries=scoring.tries - 1,
        key_variable=scoring.key_variable,
    )


def scored_rows(
    given: Sequence[Row],
    found: Sequence[Score],
    prompts: Mapping[str, Row],
    scorer: str,
    about: Mapping[str, object],
) -> list[Row]:
    """A row a prompt, with its answers and their scores.

    Args: given: the answers. found: their scores. prompts: by id. about: the report of the answers.
    """
    rows: dict[str, Row] = {}
    for sample, of_sample in zip(given, found):
        id = str(sample["prompt_id"])
        value = of_sample.value if math.isfinite(of_sample.value) else None
        completion = {
            "model": about["model"],
            "sample": sample["sample"],
            "text": sample["text"],
            "call": sample["call"],
            "finish_reason": sample["finish_reason"],
            "score": value,
            "scores": {"score": value},
            "critique": of_sample.text,
            "critique_calls": of_sample.calls,
        }
        row = rows.setdefault(
            id,
            {
                "prompt_id": id,
                "prompt": prompts[id]["prompt"],
                "judge": scorer,
                "policy": about["model"],
                "weights": about["weights"],
                "completions": [],
            },
        )
        completions = row["completions"]
        assert isinstance(completions, list)
        completions.append(completion)
    return list(rows.values())


# -- pairs


def choose(rounds: Rounds, number: int) -> None:
    """Choose the pairs of a round, or the best answers. Raises: BadInput where there is none."""
    config, path = rounds.config, rounds.folder.round(number)
    out = path / PAIRS
    if is_done(out):
        return
    dropped: Counter[str] = Counter()
    rows = read_rows_of(path / SCORED)
    if config.method == "sft":
        made = list(best_rows(rows, number, config.seed, dropped))
    else:
        made = list(pair_rows(config.pairs, rows, number, config.seed, dropped))
    if not made:
        raise BadInput(f"{path / SCORED}: no prompt gives a pair: {json.dumps(dict(dropped))}")
    write_rows(out, made)
    digest = str(read_json(path / "scored.report.json")["sha256"])
    save_report(
        out,
        {
            "command": "rounds",
            "sources": [str(path / SCORED)],
            "digests": {SCORED: digest},
            "rule": config.pairs.choose if config.method == "dpo" else "best",
            "seed": config.seed,
            "prompts": len(rows),
            "pairs": len(made),
            "dropped": dict(sorted(dropped.items())),
            **mean_scores(made),
        },
    )


# -- training


def train(rounds: Rounds, number: int) -> None:
    """Train on the pairs of the round; a training that was stopped goes on from its checkpoint.

    Raises: BadInput with the training's message; Stopped where it saved and stopped.
    """
    run = rounds.folder.run(rounds.config, number)
    if is_finished(run):
        return
    wait_until_free(run / "lock")
    keys = training_keys(rounds, number)
    overrides = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    arguments = [str(rounds.folder.path / "train.yaml"), *overrides]
    script, log = f"train_{rounds.config.method}.py", run.parent / "train.log"
    info(f"round {number}: {script} trains in {run}; its log is {log}")
    code = rounds.launch(Job(script, arguments, rounds.config.train.processes, log))
    require_success(code, run / "status.json", f"round {number}: {script}", log)
    if not is_finished(run):
        raise BadInput(f"round {number}: {script} ended without a model in {run}; see {log}")


def training_keys(rounds: Rounds, number: int) -> dict[str, object]:
    """The keys of the training config that the rounds set."""
    config, folder = rounds.config, rounds.folder
    # The newest first: `data.limit` of the training config leaves out the oldest.
    first = 1 if config.pairs.use == "all" else number
    keys: dict[str, object] = {
        "model": folder.policy(config, number - 1),
        "data.train": [str(folder.round(k) / PAIRS) for k in range(number, first - 1, -1)],
        "run.dir": str(folder.run(config, number)),
        "run.resume": "auto",
    }
    if config.reference == "first" and number > 1:
        keys["reference.model"] = config.model
    return keys


def is_finished(run: Path) -> bool:
    """Whether a training is finished and its model written."""
    try:
        return read_json(run / "status.json")["code"] == 0 and (run / "model").is_dir()
    except READ_ERRORS:
        return False


# -- evaluation


def compare_with_start(rounds: Rounds, number: int) -> None:
    """Let the judge compare the held-out answers of the policy after a round with the first
    policy's, in both orders."""
    config, folder = rounds.config, rounds.folder
    path = folder.round(number)
    if config.eval.judge is None or (path / WIN_RATE).exists():
        return
    wait_until_free(folder.ledger)
    if loads_models(config.eval.judge):
        run_job(rounds, path, ["compare", str(folder.path), str(number)])
    else:
        write_win_rate(rounds, number)


def write_win_rate(rounds: Rounds, number: int) -> None:
    """Ask the judge, and write the win rate. A collective under torchrun."""
    config, folder = rounds.config, rounds.folder
    assert config.eval.judge is not None
    texts = [held_out_texts(folder.round(k) / HELD_OUT) for k in (number, 0)]
    judge = open_judge(config.eval.judge, config.scoring)
    with ledger_of(rounds) as ask_judge:
        panel = judge_panel(judge, ask_judge, seed=config.seed)
        compared, _ = judge_pairs(panel, rounds.held_out, *texts)
    write_json(folder.round(number) / WIN_RATE, summarise(compared, [None] * len(compared)))


def held_out_texts(path: Path) -> list[str | None]:
    return [str(row["text"]) if "text" in row else None for row in read_rows_of(path)]


@contextlib.contextmanager
def ledger_of(rounds: Rounds) -> Iterator[partial[list[Reply]]]:
    """`ask` with the ledger of all rounds and the budget of the config."""
    scoring = rounds.config.scoring
    budget = Budget(scoring.budget_requests, scoring.budget_tokens)
    with Ledger(rounds.folder.ledger) as ledger:
        yield partial(ask, ledger=ledger, budget=budget)
