"""Prompts become feedback rows: several teachers answer each prompt, and a judge rates every answer
in four aspects and as a whole. Without a judge, rows hold the answers alone.

As in UltraFeedback (Cui et al. 2023, arXiv:2310.01377): the answerers are drawn from a pool, each
with a principle as its system turn; one request per aspect shows all answers in a random order; one
request per answer asks for a critique. A reply that cannot be parsed is requested again, then kept
as text.

A prompt row has `prompt` (a text, or turns that end with the user's), `messages` (read up to the
last user turn) or `instruction`. `system` and `history` are part of what is asked; `tools` and
other keys that mean something are errors; all other keys are counted in the report. `prompt_id` is
the row's own or the SHA-256 of the prompt. `source` and `reference` (facts for the judge of
truthfulness) are copied to the feedback row.

A feedback row has `prompt_id`, `prompt`, `completions`, `judge`, `order` and `calls` by aspect, and
`unparsed` replies if there are any. A completion has `model`, `principle`, `text`, `call`, `scores`
({aspect: 1 to 5 or None}), `overall` (1 to 10 or None), `critique`, `rationales` and
`critique_calls`."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import require_output, write_rows
from zephyr.data.sources import open_sources
from zephyr.distill.shards import Shard, describe_shard, prompts_of_shard
from zephyr.teacher import Reply, Request, Teacher
from zephyr.teacher.panel import (
    Ask,
    Judgement,
    Panel,
    ask_judge,
    critique_request,
    ratings_request,
)
from zephyr.teacher.prompts import Row, read_prompts, turns_of
from zephyr.teacher.rubric import ASPECTS, Critique, Rating, parse_critique, parse_ratings
from zephyr.teacher.templates import digests, load_templates

TEMPLATES = (
    "principles",
    "judge_system",
    *(f"judge_{aspect}" for aspect in ASPECTS),
    "judge_again",
    "critique",
)
PROMPT_BATCH_SIZE = 256  # prompts that are answered and judged together
MAX_LISTED = 100  # prompt ids of `left_out` in the report


@dataclass
class FeedbackRun:
    """Who answers and judges, and what was counted so far. `panel`: None: nobody judges."""

    answerers: Sequence[Teacher]
    ask: Ask
    panel: Panel | None
    templates: Mapping[str, str]
    seed: int
    max_tokens: int
    per_prompt: int
    principles: bool
    shard: Shard | None = None  # None: all prompts
    counts: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)  # ids of prompts with too few answers
    unread: Counter[str] = field(default_factory=Counter)  # rows by key that nothing reads


class AnsweredPrompt(NamedTuple):
    """A prompt row and its completions so far: `model`, `principle`, then `text` and `call`."""

    row: Row
    completions: list[Row]

    @property
    def id(self) -> str:
        return str(self.row["prompt_id"])


class Draw(NamedTuple):
    """One answer that is to be requested: who is asked what, and the completion it belongs to."""

    answerer: int
    request: Request
    completion: Row


def collect_feedback(
    sources: Sequence[str],
    out: Path,
    answerers: Sequence[Teacher],
    judge: Teacher | None,
    ask: Ask,
    *,
    per_prompt: int = 4,
    seed: int = 0,
    principles: bool = True,
    max_tokens: int = 1024,
    templates: Path | None = None,
    shard: Shard | None = None,
) -> Row:
    """Write one feedback row per prompt to `out`. The same replies give the same file to the byte.

    Args:
        sources: of the prompt rows, `path-or-hub-id[:split]`.
        out: a .jsonl file.
        answerers: the pool, of different names.
        judge: rates the answers; None: the rows have no scores.
        ask: returns the replies of a teacher in the order of the requests.
        per_prompt: answers per prompt, at least 2.
        seed: of the draws of answerers, principles and orders, and of sampling.
        principles: whether answerers get a principle as system turn. A prompt with a system turn of
            its own gets none.
        max_tokens: of each answer and each reply of the judge.
        templates: a folder of the user's templates.
        shard: answer its prompts only. The file and the report are those of a shard, which
            `merge.merge` reads.
    Returns:
        The report.
    Raises:
        BadInput: for a bad prompt row (with file and line), a prompt id that comes twice, too few
            answerers, or if no prompt gets two answers. What `ask` raises.
    """
    check_answerers(answerers, per_prompt)
    texts = load_feedback_templates(templates)
    require_output(out, sources)
    panel = None if judge is None else Panel(judge, ask, texts, seed, max_tokens)
    run = FeedbackRun(answerers, ask, panel, texts, seed, max_tokens, per_prompt, principles, shard)
    run.counts["rows"] = write_rows(out, feedback_rows(run, sources))
    report: Row = {
        "command": "feedback",
        "sources": list(map(str, sources)),
        "digests": {source.name: source.digest for source in open_sources(list(sources))},
        "answerers": [answerer.identity or answerer.name for answerer in answerers],
        "judge": None if judge is None else judge.identity or judge.name,
        "per_prompt": per_prompt,
        "seed": seed,
        "principles": principles,
        "max_tokens": max_tokens,
        "templates": digests(texts),
        **run.counts,
        "left_out": run.left_out[:MAX_LISTED],
        "keys_not_read": dict(sorted(run.unread.items())),
    }
    if shard is not None:
        report["shard"] = shard_entry(run, shard, sources, judge, templates)
    return report


def shard_entry(
    run: FeedbackRun,
    shard: Shard,
    sources: Sequence[str],
    judge: Teacher | None,
    templates: Path | None,
) -> Row:
    """What a shard's report says of the call of `collect_feedback`, for `merge.merge`."""
    call = {
        "command": "feedback",
        "sources": list(map(str, sources)),
        "answerers": [[teacher.name, teacher.identity] for teacher in run.answerers],
        "judge": None if judge is None else [judge.name, judge.identity],
        "per_prompt": run.per_prompt,
        "seed": run.seed,
        "principles": run.principles,
        "max_tokens": run.max_tokens,
        "templates": None if templates is None else str(templates),
    }
    return describe_shard(shard, call, feedback_inputs(sources, templates))


def feedback_inputs(sources: Sequence[str], templates: Path | None) -> dict[str, str]:
    """The digests of what `collect_feedback` reads, by name."""
    of_sources = {source.name: source.digest for source in open_sources(list(sources))}
    texts = digests(load_feedback_templates(templates))
    return {**of_sources, **{f"template {name}": digest for name, digest in texts.items()}}


def check_answerers(answerers: Sequence[Teacher], per_prompt: int) -> None:
    """Raises: BadInput for too few answerers, or two of one name."""
    names = [answerer.name for answerer in answerers]
    if not 2 <= per_prompt <= len(answerers) or len(set(names)) < len(names):
        raise BadInput(
            f"feedback compares answers: expected at least {max(2, per_prompt)} answerers of "
            f"different names, got {', '.join(names)}; servers of one model are one answerer: "
            "pool:MODEL@URL,URL"
        )


def load_feedback_templates(folder: Path | None) -> dict[str, str]:
    """Load `TEMPLATES`. Raises: BadInput, also for principles that are not lines `name: text`."""
    texts = load_templates(TEMPLATES, folder)
    lines = texts["principles"].splitlines()
    if not lines or not all(": " in line for line in lines):
        raise BadInput(f"templates {folder}: principles.txt: expected lines `name: text`")
    return texts


def feedback_rows(run: FeedbackRun, sources: Sequence[str]) -> Iterator[Row]:
    """Yield the feedback rows of all prompts, or of those of the shard.

    Raises: BadInput if no prompt gets two answers. A shard may have none.
    """
    prompts = read_prompts(sources, run.unread)
    if run.shard is not None:
        prompts = prompts_of_shard(prompts, run.shard)
    while batch := list(islice(prompts, PROMPT_BATCH_SIZE)):
        yield from rows_of_answers(run, collect_answers(run, batch))
    if run.shard is None and run.counts["prompts"] == run.counts["too_few_answers"]:
        raise BadInput(
            f"{', '.join(map(str, sources))}: no prompt got two answers: {json.dumps(run.counts)}"
        )


def rows_of_answers(run: FeedbackRun, answered: Sequence[AnsweredPrompt]) -> Iterator[Row]:
    """Return the feedback rows of answered prompts, judged if there is a judge."""
    if run.panel is None:
        return (answered_row(prompt) for prompt in answered)
    return judge_answers(run, run.panel, answered)


def collect_answers(run: FeedbackRun, prompts: Iterable[Row]) -> list[AnsweredPrompt]:
    """Return the prompts with their completions. Prompts with fewer than two texts are left out and
    counted."""
    answered = [AnsweredPrompt(row, []) for row in prompts]
    by_answerer: dict[int, list[Draw]] = {}
    for prompt in answered:
        for draw in draw_answerers(run, prompt.row):
            prompt.completions.append(draw.completion)
            by_answerer.setdefault(draw.answerer, []).append(draw)
    for answerer, draws in by_answerer.items():
        requests = [draw.request for draw in draws]
        replies = run.ask(run.answerers[answerer], requests)
        for draw, reply in zip(draws, replies):
            add_reply(run, draw.completion, reply)
    answered = [
        AnsweredPrompt(prompt.row, [answer for answer in prompt.completions if answer["text"]])
        for prompt in answered
    ]
    too_few = [prompt.id for prompt in answered if len(prompt.completions) < 2]
    run.left_out += too_few
    run.counts["prompts"] += len(answered)
    run.counts["too_few_answers"] += len(too_few)
    return [prompt for prompt in answered if len(prompt.completions) > 1]


def draw_answerers(run: FeedbackRun, row: Row) -> list[Draw]:
    """Draw the answerers of a prompt and their principles, by the seed and the prompt id only."""
    rng = random.Random(f"{run.seed}/{row['prompt_id']}/answerers")
    lines = run.templates["principles"].splitlines()
    turns = turns_of(row["prompt"])
    with_principle = run.principles and turns[0]["role"] == "user"
    draws = []
    for answerer in sorted(rng.sample(range(len(run.answerers)), run.per_prompt)):
        name, principle = rng.choice(lines).split(": ", 1)
        system = [{"role": "system", "content": principle}] if with_principle else []
        request = Request(
            (*system, *turns),
            max_tokens=run.max_tokens,
            temperature=1.0,
            seed=run.seed,
            about={"task": "answer", "row": row},
        )
        completion: Row = {
            "model": run.answerers[answerer].name,
            "principle": name if with_principle else None,
        }
        draws.append(Draw(answerer, request, completion))
    return draws


def add_reply(run: FeedbackRun, completion: Row, reply: Reply) -> None:
    """Add an answerer's reply to its completion, and count the replies without a whole answer."""
    text = (reply.text or "").strip()
    is_cut = reply.finish_reason == "length"
    completion["text"] = text
    completion["call"] = reply.digest
    if is_cut:
        completion["finish_reason"] = reply.finish_reason
    run.counts["cut"] += is_cut
    run.counts["refused"] += reply.text is None
    run.counts["empty"] += reply.text is not None and not text


def judge_answers(
    run: FeedbackRun, panel: Panel, prompts: Sequence[AnsweredPrompt]
) -> Iterator[Row]:
    """Yield the feedback rows of answered prompts.

    The judge's requests of all prompts are made together: first the ratings, then the critiques.
    """
    orders = [draw_orders(run, prompt) for prompt in prompts]
    rating_requests = [
        ratings_request(
            panel,
            prompt.row,
            aspect,
            [str(prompt.completions[n]["text"]) for n in order[aspect]],
        )
        for prompt, order in zip(prompts, orders)
        for aspect in ASPECTS
    ]
    critique_requests = [
        critique_request(panel, prompt.row, str(completion["text"]))
        for prompt in prompts
        for completion in prompt.completions
    ]
    ratings = iter(ask_judge(panel, rating_requests, parse_all_ratings))
    critiques = iter(ask_judge(panel, critique_requests, lambda text, _: parse_critique(text)))
    for prompt, order in zip(prompts, orders):
        yield feedback_row(
            run,
            panel.judge.name,
            prompt,
            order,
            {aspect: next(ratings) for aspect in ASPECTS},
            list(islice(critiques, len(prompt.completions))),
        )


def parse_all_ratings(text: str, about: Mapping[str, object]) -> list[Rating] | None:
    """Return the ratings of all texts of a request, or None."""
    texts = about["texts"]
    assert isinstance(texts, list)
    return parse_ratings(text, len(texts))


def draw_orders(run: FeedbackRun, prompt: AnsweredPrompt) -> dict[str, list[int]]:
    """Draw the order in which the judge reads the completions, for each aspect."""
    count = len(prompt.completions)
    return {
        aspect: random.Random(f"{run.seed}/{prompt.id}/{aspect}").sample(range(count), count)
        for aspect in ASPECTS
    }


def answered_row(prompt: AnsweredPrompt) -> Row:
    """Return the row of a prompt that nobody has judged."""
    row: Row = {"prompt_id": prompt.row["prompt_id"], "prompt": prompt.row["prompt"]}
    for key in ("source", "reference"):
        if key in prompt.row:
            row[key] = prompt.row[key]
    return {**row, "completions": prompt.completions}


def feedback_row(
    run: FeedbackRun,
    judge: str,
    prompt: AnsweredPrompt,
    order: dict[str, list[int]],
    ratings: dict[str, Judgement[list[Rating]]],
    critiques: Sequence[Judgement[Critique]],
) -> Row:
    """Return the row of a prompt.

    Args:
        judge: its name.
        order: by aspect, the completions in the order in which the judge rated them.
        ratings: by aspect, in that order.
        critiques: in the order of the completions.
    """
    unparsed = {
        aspect: ratings[aspect].text for aspect in ASPECTS if ratings[aspect].parsed is None
    }
    for n, (completion, critique) in enumerate(zip(prompt.completions, critiques)):
        if critique.parsed is None:
            unparsed[f"critique {completion['model']}"] = critique.text
        by_aspect: dict[str, Rating | None] = {}
        for aspect in ASPECTS:
            parsed = ratings[aspect].parsed
            by_aspect[aspect] = parsed[order[aspect].index(n)] if parsed else None
        add_judgements(completion, by_aspect, critique)
    run.counts["unparsed"] += len(unparsed)
    row = answered_row(prompt)
    row["judge"] = judge
    row["order"] = order
    row["calls"] = {aspect: ratings[aspect].calls for aspect in ASPECTS}
    if unparsed:
        row["unparsed"] = unparsed
    return row


def add_judgements(
    completion: Row, by_aspect: dict[str, Rating | None], critique: Judgement[Critique]
) -> None:
    """Add the judge's scores and reasons to a completion; None where a reply was not parsed."""
    parsed = critique.parsed
    completion["scores"] = {
        aspect: rating.points if rating else None for aspect, rating in by_aspect.items()
    }
    completion["overall"] = parsed.points if parsed else None
    completion["critique"] = parsed.feedback if parsed else None
    completion["rationales"] = {
        aspect: rating.rationale if rating else None for aspect, rating in by_aspect.items()
    }
    completion["critique_calls"] = critique.calls
