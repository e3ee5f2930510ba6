"""What requests will take, before one is paid for: tokens, cost and time, by what the replies in a
ledger took."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from zephyr.teacher.ledger import ledger_lines
from zephyr.teacher.request import Message

BYTES_PER_TOKEN = 4  # of English, about
LONGEST_GAP_SECONDS = 60.0  # between two replies of a teacher; after a longer one nobody asked it


class Load(NamedTuple):
    """Requests to a teacher that are not yet paid for.

    requests: their number if none has to be repeated. repeats: the most that may be repeated.
    reads: about how many tokens they have, where no reply tells. max_tokens: of a reply.
    """

    teacher: str
    requests: int
    repeats: int
    reads: float
    max_tokens: int


class Measured(NamedTuple):
    """Means over the replies of a teacher in ledgers.

    seconds: of a reply, with as many requests at a time as were asked; None: not known.
    """

    replies: int
    reads: float
    writes: float
    seconds: float | None


class Forecast(NamedTuple):
    """What the requests to a teacher will take. None: not known."""

    requests: int
    reads: float
    writes: float
    most_writes: int
    seconds: float | None


def measure_ledgers(paths: Sequence[Path]) -> dict[str, Measured]:
    """What the replies of each teacher took, by its name."""
    found: dict[str, list[tuple[float, int, int]]] = {}
    for path in paths:
        for line in ledger_lines(path):
            row = json.loads(line)
            if row["digest"]:
                at = datetime.fromisoformat(row["time"]).timestamp()
                tokens = int(row["prompt_tokens"]), int(row["completion_tokens"])
                found.setdefault(str(row["teacher"]), []).append((at, *tokens))
    return {teacher: mean_of(replies) for teacher, replies in found.items()}


def mean_of(replies: Sequence[tuple[float, int, int]]) -> Measured:
    """The means of replies: when each arrived, and its prompt and completion tokens."""
    times = sorted(at for at, _, _ in replies)
    gaps = [later - at for at, later in pairwise(times)]
    gaps = [gap for gap in gaps if gap <= LONGEST_GAP_SECONDS]
    count = len(replies)
    return Measured(
        count,
        sum(reads for _, reads, _ in replies) / count,
        sum(writes for _, _, writes in replies) / count,
        sum(gaps) / len(gaps) if gaps else None,
    )


def forecast(load: Load, measured: Measured | None) -> Forecast:
    """What a load will take: as the measured replies did, else at most."""
    most_writes = (load.requests + load.repeats) * load.max_tokens
    if measured is None:
        longest = load.requests * load.max_tokens
        return Forecast(load.requests, load.reads, longest, most_writes, None)
    seconds = None if measured.seconds is None else load.requests * measured.seconds
    reads, writes = load.requests * measured.reads, load.requests * measured.writes
    return Forecast(load.requests, reads, writes, most_writes, seconds)


def forecast_lines(
    loads: Sequence[Load],
    measured: Mapping[str, Measured],
    prices: Mapping[str, tuple[float, float]],
    shards: int,
) -> Iterator[str]:
    """Yield what each load and all together will take, and a shard's part of it, a line each."""
    found = [forecast(load, measured.get(load.teacher)) for load in loads]
    for load, what in zip(loads, found):
        known = measured.get(load.teacher)
        again = f" (and at most {load.repeats:,} again)" if load.repeats else ""
        writes = f"up to {what.most_writes:,}"
        if known:
            writes = f"about {what.writes:,.0f} as {known.replies:,} replies did, {writes}"
        yield (
            f"{load.teacher}: {load.requests:,} requests{again}; reads about {what.reads:,.0f} "
            f"tokens, writes {writes}"
        )
    requests, tokens = sum(w.requests for w in found), sum(w.reads + w.writes for w in found)
    yield f"all: {requests:,} requests, about {tokens:,.0f} tokens{share(tokens, shards)}"
    yield cost_line(loads, found, prices, shards)
    seconds = [what.seconds for what in found if what.requests]
    known_seconds = [s for s in seconds if s is not None]
    if len(known_seconds) < len(seconds):
        yield (
            "time: not known without replies of each teacher in the ledger: run the command on 100 "
            "rows first, with OUT's ledger as --ledger; nothing is paid for twice"
        )
    else:
        hours = sum(known_seconds) / 3600
        yield (
            f"time: about {hours:,.2f} h at the speed of the replies in the ledger"
            f"{share(hours, shards, ' h')}"
        )


def cost_line(
    loads: Sequence[Load],
    found: Sequence[Forecast],
    prices: Mapping[str, tuple[float, float]],
    shards: int,
) -> str:
    """The cost of all loads whose teachers have a price."""
    if not prices:
        return "cost: not known without --price MODEL=PROMPT,COMPLETION"
    about = most = 0.0
    for load, what in zip(loads, found):
        of_prompt, of_completion = prices.get(load.teacher, (0.0, 0.0))
        about += (what.reads * of_prompt + what.writes * of_completion) / 1e6
        most += (what.reads * of_prompt + what.most_writes * of_completion) / 1e6
    free = sorted({load.teacher for load in loads} - set(prices))
    without = f"; without {', '.join(free)}, which have no price" if free else ""
    return (
        f"cost: about {about:,.2f}, {most:,.2f} if each reply has full length"
        f"{share(about, shards)}{without}; --budget-cost is the limit"
    )


def share(amount: float, shards: int, unit: str = "") -> str:
    """The part of a shard, as text; "" for one."""
    if shards == 1:
        return ""
    text = f"{amount / shards:,.2f}" if amount < 1000 else f"{amount / shards:,.0f}"
    return f", {text}{unit} for each of {shards} shards"


def message_tokens(messages: Sequence[Message]) -> float:
    """About how many tokens messages have."""
    texts = (str(message["content"]) for message in messages)
    return sum(len(text.encode("utf-8", "backslashreplace")) for text in texts) / BYTES_PER_TOKEN
