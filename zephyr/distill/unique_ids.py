"""The id of a pair becomes one that no other pair of the run has."""

import sqlite3
from itertools import chain, count

from zephyr.distill.binarize_report import Tally


def create_ids(database: sqlite3.Connection) -> None:
    """Make the table of the ids so far."""
    database.execute("create table ids (id text primary key, place text) without rowid")


def unique_id(
    id: str, place: str, database: sqlite3.Connection, tally: Tally, *, numbered: bool = False
) -> str:
    """Return an id that no other pair has.

    Args:
        numbered: an id that comes again gets a number.
    Raises:
        ValueError: if the id comes again and is not to be numbered.
    """
    more = (f"{id}-{n}" for n in count(2)) if numbered else ()
    for name in chain([id], more):
        found = database.execute("select place from ids where id = ?", (name,)).fetchone()
        if not found:
            database.execute("insert into ids values (?, ?)", (name, place))
            tally.add("total", "repeated_ids", int(name != id))
            return name
    raise ValueError(f"{id!r:.80} comes twice, the first time at {found[0]}")
