"""The work of a command is divided over shards that run apart. Here are the names of their files,
the prompts of each, and what the report of a shard must say so that the shards can be merged."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from zephyr.teacher.prompts import Row, turns_of

MOST_SHARDS = 100_000
PART_NAME = r"{stem}\.shard-(\d+)-of-(\d+)"


class Shard(NamedTuple):
    """One of `of` shards; `number`: which, from 0."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def parse_shard(text: str) -> Shard:
    """`I/N` as a shard. Raises: ValueError unless 0 <= I < N."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    number, of = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 0 <= number < of <= MOST_SHARDS:
        raise ValueError(
            f"{text!r} is no shard I/N: expected 0 <= I < N <= {MOST_SHARDS}, as 0/8 for the first "
            "of eight"
        )
    return Shard(number, of)


def shard_path(out: Path, shard: Shard, suffix: str = "") -> Path:
    """The file of a shard beside OUT: `feedback.shard-2-of-8.jsonl` for `feedback.jsonl`.

    Args: suffix: of the file; "": OUT's own.
    """
    return out.with_name(f"{out.stem}.shard-{shard.number}-of-{shard.of}{suffix or out.suffix}")


def shard_ledgers(out: Path, of: int) -> list[Path]:
    """The ledgers of all shards of OUT, whether they exist or not."""
    return [shard_path(out, Shard(number, of), ".ledger.jsonl") for number in range(of)]


def other_ledgers(out: Path, shard: Shard) -> list[Path]:
    """The ledgers beside OUT that may hold replies which were paid for before: its own, and those
    of shards of another number."""
    name = re.compile(PART_NAME.format(stem=re.escape(out.stem)) + r"\.ledger\.jsonl")
    found = []
    for path in sorted(out.parent.glob("*.ledger.jsonl")):
        match = name.fullmatch(path.name)
        if match and int(match[2]) != shard.of:
            found.append(path)
    own = out.with_suffix(".ledger.jsonl")
    return [own, *found] if own.is_file() else found


def parts_beside(out: Path) -> list[Path]:
    """The files of shards beside OUT, in the order of their names."""
    name = re.compile(PART_NAME.format(stem=re.escape(out.stem)) + r"(\.jsonl|\.arrow)")
    return sorted(path for path in out.parent.glob("*") if name.fullmatch(path.name))


def prompts_of_shard(prompts: Iterable[Row], shard: Shard) -> Iterator[Row]:
    """Yield the prompts of a shard, every `shard.of`-th of them.

    Prompts of the same turns, which lead to the same requests, are in one shard: otherwise two
    shards would pay for the same reply. They count as one.
    """
    numbers: dict[bytes, int] = {}
    for row in prompts:
        turns = [turn for turn in turns_of(row["prompt"]) if turn["role"] != "system"]
        key = hashlib.sha256(json.dumps(turns).encode()).digest()
        if numbers.setdefault(key, len(numbers)) % shard.of == shard.number:
            yield row


def describe_shard(
    shard: Shard, call: Mapping[str, object], inputs: Mapping[str, str]
) -> dict[str, object]:
    """The entry `shard` of a report.

    Args:
        call: the command and its options, which are the same for all shards.
        inputs: digests of what the command reads, by name.
    """
    return {"number": shard.number, "of": shard.of, "call": dict(call), "inputs": dict(inputs)}
