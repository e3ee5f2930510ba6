"""What `feedback` and `self-instruct` will ask for, before anything is asked."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from zephyr.data.jsonl import report_path
from zephyr.distill.feedback import (
    FeedbackRun,
    check_answerers,
    draw_answerers,
    load_feedback_templates,
)
from zephyr.distill.shards import Shard, prompts_of_shard
from zephyr.distill.task_pool import SAMPLING
from zephyr.distill.tasks import ALPACA_LENGTH, ALPACA_SHOWN, NUM_NEW
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.forecast import (
    BYTES_PER_TOKEN,
    Load,
    Measured,
    forecast_lines,
    measure_ledgers,
    message_tokens,
)
from zephyr.teacher.panel import MAX_REASKS, Panel, critique_request, ratings_request
from zephyr.teacher.prompts import read_prompts
from zephyr.teacher.rubric import ASPECTS
from zephyr.teacher.shares import open_existing
from zephyr.training.files import READ_ERRORS, as_dict, read_json

Prices = Mapping[str, tuple[float, float]]


def feedback_costs(
    run: FeedbackRun, sources: Sequence[str], ledgers: Sequence[Path], prices: Prices
) -> Iterator[str]:
    """Yield what a run of `feedback` will take, a line each. Nothing is asked.

    Args:
        run: whose `ask` is not called. Its shard: the share of one is told beside all.
        ledgers: that hold replies which are paid for; those of a shard, of other runs too.
        prices: by model, (prompt, completion) per million tokens.
    Raises:
        BadInput: for a bad prompt row.
    """
    measured = measure_ledgers(ledgers)
    prompts = list(read_prompts(sources))
    of = 1 if run.shard is None else run.shard.of
    yield f"{len(prompts):,} prompts{shard_sizes(prompts, run.shard)}"
    opened = open_existing(ledgers)
    asked: Counter[str] = Counter()
    reads: Counter[str] = Counter()
    paid = 0
    for row in prompts:
        for draw in draw_answerers(run, row):
            teacher = run.answerers[draw.answerer]
            digest = draw.request.digest(teacher.identity or teacher.name)
            if any(digest in ledger for ledger in opened):
                paid += 1
                continue
            asked[teacher.name] += 1
            reads[teacher.name] += round(message_tokens(draw.request.messages))
    if paid:
        yield f"{paid:,} of {paid + asked.total():,} answers are in the ledger"
    loads = [
        Load(teacher.name, asked[teacher.name], 0, reads[teacher.name], run.max_tokens)
        for teacher in run.answerers
    ]
    if run.panel is not None:
        loads.append(judge_load(run, prompts, measured))
    yield from forecast_lines(loads, measured, prices, of)


def plan_feedback(
    answerers: Sequence[Teacher],
    judge: Teacher | None,
    *,
    per_prompt: int,
    seed: int,
    principles: bool,
    max_tokens: int,
    templates: Path | None,
    shard: Shard | None,
) -> FeedbackRun:
    """A run for `feedback_costs` with the arguments of `collect_feedback`. Raises: BadInput."""
    check_answerers(answerers, per_prompt)
    texts = load_feedback_templates(templates)
    panel = None if judge is None else Panel(judge, ask_nobody, texts, seed, max_tokens)
    return FeedbackRun(
        answerers, ask_nobody, panel, texts, seed, max_tokens, per_prompt, principles, shard
    )


def ask_nobody(teacher: Teacher, requests: Sequence[Request]) -> list[Reply]:
    raise AssertionError("a dry run asks nobody")


def shard_sizes(prompts: Sequence[dict[str, object]], shard: Shard | None) -> str:
    """The prompts of the smallest and the largest shard, as text; "" without shards."""
    if shard is None:
        return ""
    sizes = [
        sum(1 for _ in prompts_of_shard(prompts, Shard(number, shard.of)))
        for number in {0, shard.of - 1}
    ]
    return f", {min(sizes):,} to {max(sizes):,} in each of {shard.of} shards"


def judge_load(
    run: FeedbackRun, prompts: Sequence[dict[str, object]], measured: Mapping[str, Measured]
) -> Load:
    """The judge's requests if every prompt is answered by all: ratings, and a critique of each
    answer. Replies of the judge in the ledger count as some of these."""
    panel = run.panel
    assert panel is not None
    known = [measured[t.name].writes for t in run.answerers if t.name in measured]
    answer = sum(known) / len(known) if known else run.max_tokens
    reads = 0.0
    for row in prompts:
        texts = [""] * run.per_prompt
        rated = sum(
            message_tokens(ratings_request(panel, row, aspect, texts).messages)
            for aspect in ASPECTS
        )
        critiqued = message_tokens(critique_request(panel, row, "").messages)
        reads += rated + run.per_prompt * (critiqued + (len(ASPECTS) + 1) * answer)
    calls = len(prompts) * (len(ASPECTS) + run.per_prompt)
    name = panel.judge.name
    paid = min(calls, measured[name].replies) if name in measured else 0
    left = calls - paid
    return Load(name, left, left * MAX_REASKS, reads * left / max(1, calls), run.max_tokens)


def self_instruct_costs(
    out: Path,
    teacher: str,
    n: int,
    variant: str,
    turns: int,
    ledgers: Sequence[Path],
    prices: Prices,
    shards: int,
) -> Iterator[str]:
    """Yield what a run of `self-instruct` will take, a line each. Nothing is asked.

    Which instructions stay is not known before: without an earlier run of the same OUT, whose
    report tells requests a row, these are the requests if no filter removes anything.

    Args: as `self_instruct`; ledgers, prices: as `feedback_costs`; shards: their number.
    """
    kinds = fewest_requests(variant, n, turns)
    requests = sum(kinds.values())
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    yield f"{n:,} rows: at least {requests:,} requests ({listed})"
    writes = sum(count * SAMPLING[kind].max_tokens for kind, count in kinds.items())
    measured = measure_ledgers(ledgers)
    before = read_yield(out, variant)
    if before is not None:
        rows, spent = before
        requests = max(round(spent * n / rows), requests)
        yield (
            f"about {requests:,} requests, as {report_path(out)} tells: {spent:,} for {rows:,} rows"
        )
    paid = measured[teacher].replies if teacher in measured else 0
    limit = -(-writes // max(1, sum(kinds.values())))
    left = max(0, requests - paid)
    load = Load(teacher, left, 0, left * limit / BYTES_PER_TOKEN, limit)
    yield from forecast_lines([load], measured, prices, shards)


def fewest_requests(variant: str, n: int, turns: int) -> dict[str, int]:
    """Requests by kind if no filter removes anything and every instruction gives one row."""
    if variant == "dialogue":
        return {"opening": n, "answer": n * turns, "user_turn": n * (turns - 1)}
    if variant == "alpaca":
        return {"alpaca": -(-n // (ALPACA_LENGTH - ALPACA_SHOWN))}
    return {"instructions": -(-n // NUM_NEW), "classify": n, "instances": n}


def read_yield(out: Path, variant: str) -> tuple[int, int] | None:
    """Rows and requests of an earlier run, by its report; None without one of this variant."""
    try:
        report = read_json(report_path(out))
        rows, spent = int(str(report["rows"])), int(str(as_dict(report["spent"])["requests"]))
    except (*READ_ERRORS, ValueError):
        return None
    return (rows, spent) if report.get("variant") == variant and rows > 0 and spent > 0 else None
