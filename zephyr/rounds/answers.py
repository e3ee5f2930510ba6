"""Prompts become answers of the policy: by processes of this package, or by a server.

Every answer has a seed of its own, which depends on the seed of the config, the round, the prompt
and the number of the answer. Processes of this package sample in batches that are fixed before they
start: a batch is one file, whole or not there, so that neither the number of processes nor a kill
changes an answer.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.data.jsonl import save_report, write_rows
from zephyr.progress import Bar
from zephyr.rounds.config import RoundsConfig
from zephyr.rounds.folder import read_rows_of
from zephyr.teacher import Budget, Ledger, Reply, Request, Teacher, ask
from zephyr.teacher.local import batching_key
from zephyr.teacher.prompts import Row, read_prompts, turns_of
from zephyr.training import ranks

PARTS = "parts"  # folder of the batches that are done
REQUESTS = "requests.jsonl"


class Question(NamedTuple):
    """What the policy is asked. `sample`: number of the answer among those of its prompt; -1 for
    the greedy answer to a held-out prompt."""

    row: Row
    sample: int
    request: Request


def read_all_prompts(sources: Sequence[str]) -> list[Row]:
    """The prompt rows of the sources. Raises: BadInput, also where there is none."""
    rows = list(read_prompts(sources))
    if not rows:
        raise BadInput(f"{', '.join(sources)}: expected prompts, found no row")
    return rows


def prompts_of_round(config: RoundsConfig, rows: Sequence[Row], number: int) -> list[Row]:
    """The prompts of a round: all, or the next ones in an order that the seed decides.

    Raises: BadInput where there are not enough for all rounds.
    """
    count = config.prompts.per_round
    if count is None:
        return list(rows)
    if count * config.rounds > len(rows):
        raise BadInput(
            f"prompts.per_round: {config.rounds} rounds of {count} prompts need "
            f"{count * config.rounds}, and there are {len(rows)}"
        )
    order = list(rows)
    random.Random(config.seed).shuffle(order)
    return order[(number - 1) * count : number * count]


def seed_of(seed: int, number: int, prompt_id: str, sample: int) -> int:
    """The seed of one answer, from 0 to 2**31 - 1."""
    key = json.dumps([seed, number, prompt_id, sample]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:4], "big") >> 1


def sampled_questions(config: RoundsConfig, rows: Sequence[Row], number: int) -> list[Question]:
    """The questions of a round."""
    sampling = config.sampling
    questions = []
    for row in rows:
        for sample in range(sampling.samples):
            request = Request(
                tuple(turns_of(row["prompt"])),
                sampling.max_new_tokens,
                sampling.temperature,
                sampling.top_p,
                seed_of(config.seed, number, str(row["prompt_id"]), sample),
            )
            questions.append(Question(row, sample, request))
    return questions


def held_out_questions(config: RoundsConfig, rows: Sequence[Row]) -> list[Question]:
    """The questions of an evaluation: one greedy answer to each prompt."""
    limit = config.eval.max_new_tokens
    return [Question(row, -1, Request(tuple(turns_of(row["prompt"])), limit)) for row in rows]


def write_answers(
    questions: Sequence[Question],
    replies: Sequence[Reply],
    samples: Path | None,
    held_out: Path | None,
    report: Mapping[str, object],
) -> None:
    """Write the answers, and a report beside each file: it marks the file as done.

    Args: samples, held_out: None where there is none, or it is done already.
    """
    for path, is_held_out in ((held_out, True), (samples, False)):
        if path is None:
            continue
        rows = [
            answer_row(question, reply)
            for question, reply in zip(questions, replies, strict=True)
            if (question.sample < 0) == is_held_out
        ]
        write_rows(path, rows)
        tokens = sum(int(str(row["completion_tokens"])) for row in rows)
        refused = sum(row.get("unanswered", False) is True for row in rows)
        cut = sum(row["finish_reason"] == "length" for row in rows)
        counts = {"answers": len(rows), "refused": refused, "cut": cut, "tokens": tokens}
        save_report(path, {**report, **counts})


def answer_row(question: Question, reply: Reply) -> Row:
    """An answer as a row: `text`, or `unanswered` and why."""
    row: Row = {
        "prompt_id": question.row["prompt_id"],
        "sample": question.sample,
        "seed": question.request.seed,
        "call": reply.digest,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "finish_reason": reply.finish_reason,
    }
    if reply.text is None:
        return {**row, "unanswered": True, "error": reply.error}
    return {**row, "text": reply.text}


# -- by processes of this package


def prepare_parts(folder: Path, questions: Sequence[Question], weights: str, batch: int) -> Path:
    """Write the requests in the order of their batches. Returns: the folder of this work, which
    belongs to these requests and weights.

    No batch holds samples and held-out answers: the batches of either are the same where the
    others are there already, after a kill or in a run of more rounds.

    Args: weights: digest of the policy. batch: requests of a part.
    """
    rows: list[dict[str, object]] = []
    first = 0
    for is_held_out in (False, True):
        group = [question.request for question in questions if (question.sample < 0) == is_held_out]
        for number, request in enumerate(sorted(group, key=batching_key)):
            part = first + number // batch
            rows.append({**request.payload(), "part": part, "weights": weights})
        first += -(-len(group) // batch)
    key = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    work = folder / PARTS / key
    if not (work / REQUESTS).exists():
        write_rows(work / REQUESTS, rows)
    return work


def part_path(work: Path, part: int) -> Path:
    return work / f"part-{part:06}.jsonl"


def count_parts(work: Path) -> tuple[int, int]:
    """How many parts there are, and how many are done."""
    count = len(read_requests(work))
    return count, sum(part_path(work, part).exists() for part in range(count))


def read_requests(work: Path) -> list[list[Request]]:
    """The requests of each part, as `prepare_parts` wrote them."""
    names = [name for name in Request._fields if name != "about"]
    parts: list[list[Request]] = []
    for row in read_rows_of(work / REQUESTS):
        if row["part"] == len(parts):
            parts.append([])
        parts[-1].append(Request(**{name: row[name] for name in names}))  # type: ignore[arg-type]
    return parts


def make_parts(work: Path, model: str) -> None:
    """Sample the parts that are missing; every rank of torchrun takes every so manyth part."""
    from zephyr.model.load import digest
    from zephyr.teacher.local import generate_replies
    from zephyr.teacher.spec import load_chat_model

    parts = read_requests(work)
    weights = str(read_rows_of(work / REQUESTS)[0]["weights"])
    numbers = range(ranks.rank(), len(parts), ranks.world_size())
    missing = [part for part in numbers if not part_path(work, part).exists()]
    if not missing:
        return
    if digest(model) != weights:
        raise BadInput(f"model {model}: its weights changed since the round began")
    lm, tokenizer = load_chat_model(model)
    with Bar("sample", len(numbers), "batches", initial=len(numbers) - len(missing)) as bar:
        for part in bar.track(missing):
            share = parts[part]
            found = {r.digest: r for r in generate_replies(lm, tokenizer, share, model, weights)}
            identity = f"{model} {weights}"
            replies = [found[request.digest(identity)] for request in share]
            write_part(part_path(work, part), replies)


def write_part(path: Path, replies: Sequence[Reply]) -> None:
    """Write a part, whole or not at all, on any rank."""
    from zephyr.data.jsonl import json_line
    from zephyr.training.files import write_atomic

    write_atomic(path, b"".join(json_line(reply._asdict()) for reply in replies))


def read_parts(
    work: Path, questions: Sequence[Question], model: str, weights: str
) -> Iterator[Reply]:
    """The replies to the questions, in their order. Raises: BadInput where a part is missing."""
    count, done = count_parts(work)
    if done < count:
        raise BadInput(f"{work}: {count - done} of {count} batches are missing")
    found = {
        str(row["digest"]): Reply(**row)  # type: ignore[arg-type]  # `write_part` wrote it
        for part in range(count)
        for row in read_rows_of(part_path(work, part))
    }
    identity = f"{model} {weights}"
    for question in questions:
        yield found[question.request.digest(identity)]


def remove_parts(folder: Path) -> None:
    """Remove the parts, once what they became is written."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)


# -- by a server


def ask_server(teacher: Teacher, questions: Sequence[Question], ledger: Path) -> list[Reply]:
    """The server's replies, each kept in the ledger as it arrives."""
    with Ledger(ledger) as held:
        of_teacher = partial(ask, ledger=held, budget=Budget())
        return of_teacher(teacher, [question.request for question in questions])
