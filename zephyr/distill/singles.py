"""Rows that hold one completion each become feedback rows: the completions of one prompt id are one
row, once all rows are read."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from zephyr.chat import Messages, check_messages
from zephyr.config import BadInput
from zephyr.data.keys import SYSTEMS
from zephyr.data.rows import row_id, text
from zephyr.data.sources import RawRow
from zephyr.distill.binarize_report import Tally
from zephyr.distill.completions import read_score
from zephyr.distill.pairwise import Row
from zephyr.distill.unique_ids import unique_id

# keys of the row that training reads from a pair
CARRIED_KEYS = ("system", "history", "tools", "weight")
# fields of a row that is one scored completion
SINGLE = {"idx", "response_source", "gpt4_score", "prompt", "response"}
# of such a row: the judge's prompt, which holds the prompt and the response again
JUDGE_PROMPT_KEY = "instruction"
# fields of a row that is one completion without a score, beside one of ANSWER_TEXTS
ANSWER = {"prompt_id", "prompt", "model"}
ANSWER_TEXTS = ("completion", "response", "text")
ANSWER_WORDS = "model, prompt, prompt_id and one of completion, response, text"


class Completion(NamedTuple):
    """One answer to a prompt. rest: the row's other keys."""

    prompt_id: str
    prompt: str | Messages
    model: str
    text: str
    scores: dict[str, float | None]
    source: str | None
    rest: dict[str, object]


def create_singles(database: sqlite3.Connection) -> None:
    """Make the table of single completions."""
    database.execute(
        "create table singles (idx text, model text, place text, entry int, answer text)"
    )


def read_completion(row: Row, tally: Tally) -> Completion | None:
    """Return the completion of a row that is one, else None.

    Raises:
        ValueError: naming a bad field.
    """
    texts = [key for key in ANSWER_TEXTS if key in row]
    if row.keys() >= SINGLE:
        given = row["gpt4_score"] if isinstance(row["gpt4_score"], list) else [row["gpt4_score"]]
        scores = {str(n): read_score(score, "gpt4_score") for n, score in enumerate(given)}
        if JUDGE_PROMPT_KEY in row:
            tally.add("unread", JUDGE_PROMPT_KEY)
        known = SINGLE | {"source", "dataset", JUDGE_PROMPT_KEY}
        id_key, model_key, text_key = "idx", "response_source", "response"
    elif row.keys() >= ANSWER and len(texts) == 1 and "completions" not in row:
        scores = {}
        id_key, model_key, text_key = "prompt_id", "model", texts[0]
        known = ANSWER | {"source", "dataset", text_key}
    else:
        return None
    prompt = row["prompt"]
    return Completion(
        row_id(row, field=id_key),
        check_messages(prompt, last="user") if isinstance(prompt, list) else text(row, "prompt"),
        text(row, model_key),
        text(row, text_key),
        scores,
        source_of(row),
        {key: value for key, value in row.items() if key not in known},
    )


def store_completion(
    completion: Completion, raw: RawRow, database: sqlite3.Connection, tally: Tally
) -> None:
    """Store a completion until all rows are read. Raises: ValueError for a second one of the same
    prompt and model."""
    of = completion.prompt_id, completion.model
    stored = completion._asdict()
    del stored["prompt_id"]
    unique_id(json.dumps(of), raw.place, database, tally)
    database.execute(
        "insert into singles values (?, ?, ?, ?, ?)",
        (*of, raw.place, raw.entry, json.dumps(stored)),
    )
    tally.add("shapes", "single completions")


def grouped_completions(database: sqlite3.Connection, tally: Tally) -> Iterator[RawRow]:
    """Yield the stored completions as feedback rows, each with its place and no default id. The
    completions are in the order of the models' names."""
    stored = database.execute("select * from singles order by idx, model")
    for idx, group in groupby(stored, key=itemgetter(0)):
        places, entries, completions = [], [], []
        for _, _, place, entry, completion in group:
            places.append(place)
            entries.append(entry)
            completions.append(json.loads(completion))
        first = completions[0]
        if any(completion["prompt"] != first["prompt"] for completion in completions):
            # e.g. the prompt holds the model's own earlier answer
            tally.add("total", "rows")
            tally.add("dropped", "prompts differ")
            continue
        shared = shared_keys([completion.pop("rest") for completion in completions], places)
        row = {**shared, "prompt_id": idx, "prompt": first["prompt"], "source": first["source"]}
        yield RawRow(places[0], "", {**row, "completions": completions}, entries[0])


def shared_keys(rows: Sequence[Row], places: Sequence[str]) -> Row:
    """Return the other keys of the rows of one group, each with its first value.

    Raises:
        BadInput: if a key that a pair carries, like `system`, differs.
    """
    shared: dict[str, object] = {}
    for row in rows:
        for key, value in row.items():
            shared.setdefault(key, value)
    for key in shared:
        if key not in (*CARRIED_KEYS, *SYSTEMS):
            continue
        for row, place in zip(rows, places):
            if row.get(key) != rows[0].get(key):
                raise BadInput(
                    f"{place}: `{key}` is not that of {places[0]}, which has the same idx, "
                    "expected one value for all of its completions"
                )
    return shared


def source_of(row: Row) -> str | None:
    """Return the name of the data set that a row is from, if it has one."""
    source = row.get("source", row.get("dataset"))
    return source if isinstance(source, str) else None
