"""The pairs of all rows become those that are written: so many of a source, or so many with and
without an answer of the policy.

A row that can give either kind of pair gives one. A sample depends on the seed and the pairs' ids,
not on the order of the rows."""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.distill.pair_options import PairOptions

Row = Mapping[str, object]


class Made(NamedTuple):
    """A pair that a row gives, with what is counted once it is written.

    `source`: the row's own, or the command's that the row is from.
    `preference`: how far its scores agree that the chosen answer is the better one: 1, -1, or 0 if
    they can't be compared.
    `longer`: by how much the chosen answer is longer, in the unit of the length limit.
    `inverted`: whether the row's own ratings call the chosen answer worse.
    """

    pair: Row
    place: str
    source: str
    preference: int
    longer: int
    inverted: bool


class Counts(NamedTuple):
    """The rows that can only give a pair with an answer of the policy, only one without, either."""

    only_on: int
    only_off: int
    either: int


def create_pool(database: sqlite3.Connection) -> None:
    """Make the table that holds all pairs until it is known which are written."""
    database.execute(
        "create table pool (number integer primary key, sample text, rank blob, on_pair text, "
        "off_pair text, kept text)"
    )


def store_pairs(
    database: sqlite3.Connection, made: Mapping[str, Made], sample: str | None, seed: int
) -> None:
    """Keep the pairs of one row, by kind. sample: the key of `take` that the row belongs to."""
    id = next(iter(made.values())).pair["id"]
    rank = hashlib.sha256(f"{seed}/sample/{id}".encode()).digest()
    texts = {kind: json.dumps(pair) for kind, pair in made.items()}
    values = (sample, rank, texts.get("on", texts.get("pair")), texts.get("off"))
    database.execute(
        "insert into pool (sample, rank, on_pair, off_pair) values (?, ?, ?, ?)", values
    )


def chosen_pairs(database: sqlite3.Connection, options: PairOptions) -> Iterator[Made | str]:
    """Yield, in the order of the rows, the pair of each row, or why it is not written.

    Raises:
        BadInput: for a source or kind that has fewer pairs than are wanted, naming both numbers.
    """
    if options.mix:
        mix_kinds(database, options)
        reason = "not in the mix"
    else:
        for source, number in options.take.items():
            take_from(database, source, number)
        database.execute("update pool set kept = 'on' where sample is null")
        reason = "not in the sample of its source"
    rows = database.execute("select on_pair, off_pair, kept from pool order by number")
    for on_pair, off_pair, kept in rows:
        if kept is None:
            yield reason
        else:
            yield Made(*json.loads(on_pair if kept == "on" else off_pair))


def take_from(database: sqlite3.Connection, source: str, number: int) -> None:
    """Mark a sample of the pairs of one source."""
    (there,) = database.execute("select count(*) from pool where sample = ?", (source,)).fetchone()
    if there < number:
        raise BadInput(
            f"binarize: --take {source}={number}: its rows give {there} pairs, expected at least "
            f"{number}"
        )
    mark(database, "on", "sample = ?", number, source)


def mix_kinds(database: sqlite3.Connection, options: PairOptions) -> None:
    """Mark so many pairs of each kind. Rows that can give either are shared out in proportion, as
    far as both numbers can then be reached."""
    on, off = options.mix.get("on", 0), options.mix.get("off", 0)
    has_on, has_off = "on_pair is not null", "off_pair is not null"
    only_on, only_off, either = (
        database.execute(f"select count(*) from pool where {where}").fetchone()[0]
        for where in (
            f"{has_on} and off_pair is null",
            f"on_pair is null and {has_off}",
            f"{has_on} and {has_off}",
        )
    )
    require_enough(on, off, Counts(only_on, only_off, either), ", ".join(options.on_policy))
    spare = either - max(0, off - only_off)  # rows of either kind that may be used for `on`
    shared = min(round(on * either / max(1, only_on + either)), spare)
    mark(database, "on", f"{has_on} and {has_off}", shared)
    mark(database, "on", f"{has_on} and off_pair is null", on - shared)
    left = either - shared
    shared = round(off * left / max(1, only_off + left))
    mark(database, "off", f"{has_on} and {has_off} and kept is null", shared)
    mark(database, "off", f"on_pair is null and {has_off}", off - shared)


def require_enough(on: int, off: int, counts: Counts, policy: str) -> None:
    """Raises: BadInput, with the numbers, if there are too few pairs for a mix."""
    for kind, wanted, there, words in (
        ("on", on, counts.only_on + counts.either, f"with an answer of {policy}"),
        ("off", off, counts.only_off + counts.either, f"without an answer of {policy}"),
    ):
        if wanted > there:
            raise BadInput(
                f"binarize: --mix {kind}={wanted}: the rows give {there} pairs {words}, expected "
                f"at least {wanted}"
            )
    if on + off > sum(counts):
        raise BadInput(
            f"binarize: --mix on={on},off={off}: {sum(counts)} rows give a pair, expected at least "
            f"{on + off}, because each gives one"
        )


def mark(database: sqlite3.Connection, kind: str, where: str, number: int, *values: object) -> None:
    """Keep the first `number` pairs by rank that match a condition."""
    database.execute(
        f"update pool set kept = ? where number in (select number from pool where {where} "
        "order by rank limit ?)",
        (kind, *values, number),
    )
