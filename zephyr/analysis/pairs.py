"""The rows that a run trained on are read again: each pair's texts, by the id that the ledger has.

A row goes the way that it goes in training (`zephyr.data`): `data.columns`, the id or its default,
`data.limit`, the known shapes. Only the tokenizer is left out.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from zephyr.analysis.runs import Run
from zephyr.chat.messages import Message, Messages, calls_of, check_pair, words_of
from zephyr.chat.names import plain
from zephyr.config import BadInput, read_source
from zephyr.data.keys import select
from zephyr.data.ratings import side_ratings
from zephyr.data.rows import Row, check_row, row_id
from zephyr.data.shapes import pair_row
from zephyr.data.sources import RawRow, Source, open_each
from zephyr.progress import track

SOURCES = ("source", "subset", "dataset")  # keys that say where a row comes from, the first counts


class PairText(NamedTuple):
    """What a row says of its pair; None where it does not say it."""

    prompt: str
    chosen: str
    rejected: str
    source: str  # the row's own `source` or `subset`, else the name of its file
    chosen_model: str | None = None
    rejected_model: str | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None


class PairRow(NamedTuple):
    """A row that became a pair.

    raw: as it was read, an object or an undecoded line. fields: as `chat.tokenize_pair` reads it.
    """

    id: str
    raw: RawRow
    fields: Row
    text: PairText


def read_texts(run: Run) -> tuple[dict[str, PairText], list[str]]:
    """Read the texts of the pairs that a run trained on, from its `data.train`, as it is today.

    A run keeps no copy of its data. Nothing is raised where rows are gone: what can't be read has
    no entry.

    Returns: the texts by the ids of the ledger, and a sentence on each thing that can't be read,
        or that has changed since the run.
    """
    if not run.is_dpo:
        return {}, [f"{run.name} is no run of train_dpo.py: it trained on no pairs"]
    texts: dict[str, PairText] = {}
    problems: list[str] = []
    try:
        trained = run.data.get("train.examples")
        total = trained if isinstance(trained, int) else None
        for row in track(pair_rows(run), "texts of pairs", "pairs", total=total):
            texts[row.id] = row.text
    except (BadInput, OSError) as error:
        problems.append(f"texts of pairs can't be read again: {error}")
    changed = _changed_since(run, len(texts))
    if changed and not problems:
        problems.append(changed)
    return texts, problems


def pair_rows(run: Run) -> Iterator[PairRow]:
    """Read the rows of a run's `data.train` that are pairs, in their order.

    Rows that training skips or drops are left out: bad ones, ties, those of weight 0, and the
    second row with an id. A relative path starts where the run was started, if its folder still
    lies under its `run.dir` there; else at the current folder.

    Raises: BadInput for a source that can't be read; OSError.
    """
    columns = _columns(run)
    seen: set[str] = set()
    for source_name, raw in islice(_raw_rows(run), _limit(run)):
        try:
            fields, _, _ = select(check_row(raw.value), columns)
            id = row_id(fields, raw.default_id)
            pair, _ = pair_row(fields)
            text = _pair_text(fields, pair, source_name)
        except (ValueError, RecursionError):  # counted and listed in the run's data.json
            continue
        if id not in seen and pair.get("weight", 1) != 0:
            seen.add(id)
            yield PairRow(id, raw, pair, text)


def source_root(run: Run) -> Path:
    """The folder that the run's relative paths start at."""
    folder, written = run.folder.resolve(), Path(str(run.config.get("run.dir", "")))
    parts = written.parts
    if written.is_absolute() or not parts or ".." in parts:
        return Path()
    if folder.parts[-len(parts) :] != parts:
        return Path()
    return folder.parents[len(parts) - 1]


def _raw_rows(run: Run) -> Iterator[tuple[str, RawRow]]:
    """All rows of all sources, each with the name of its source.

    A default id holds the path as the config has it where two files share a name.
    """
    specs = run.config.get("data.train")
    if not isinstance(specs, list) or not specs:
        raise BadInput(f"{run.folder}/config.yaml: data.train is {specs!r}, expected a list")
    root = source_root(run)
    entries = [read_source(entry) for entry in specs]
    rooted: list[str] = []
    moved: dict[str, str] = {}  # path from the run's root -> the path in the config
    for spec in (entry.path for entry in entries):
        path = Path(spec if (root / spec).exists() else spec.partition(":")[0])
        is_below = not path.is_absolute() and (root / path).exists()
        rooted.append(str(root / spec) if is_below else spec)
        if is_below:
            moved[str(root / path)] = str(path)
    for number, (entry, group) in enumerate(zip(entries, open_each(rooted))):
        rows = (row for source in group for row in _moved_rows(source, moved))
        for name, raw in islice(rows, entry.limit):
            yield name, raw._replace(entry=number)


def _moved_rows(source: Source, moved: Mapping[str, str]) -> Iterator[tuple[str, RawRow]]:
    """The rows of a source, with the default ids that they had where the run read them."""
    path_now = next((path for path in moved if source.name.startswith(path)), "")
    for raw in source.rows():
        id = moved.get(path_now, "") + raw.default_id.removeprefix(path_now)
        yield source.name, raw._replace(default_id=id)


def _columns(run: Run) -> dict[str, str | None]:
    prefix = "data.columns."
    return {
        name.removeprefix(prefix): None if path is None else str(path)
        for name, path in run.config.items()
        if name.startswith(prefix)
    }


def _limit(run: Run) -> int | None:
    limit = run.config.get("data.limit")
    return limit if isinstance(limit, int) else None


def _changed_since(run: Run, found: int) -> str:
    """A sentence where the rows of today can't be those of the run; "" where they may be."""
    trained = run.data.get("train.examples")
    if not isinstance(trained, int):
        return ""
    dropped = [
        count
        for name, count in run.data.items()
        if name.startswith("train.dropped.both sides equal once encoded") and isinstance(count, int)
    ]
    if trained <= found <= trained + sum(dropped):
        return ""
    return (
        f"the rows of data.train have changed since the run: it trained on {trained:,} pairs, "
        f"{found:,} are found now, so that texts may be missing or another pair's"
    )


def _pair_text(fields: Row, pair: Row, source_name: str) -> PairText:
    """Raises: ValueError for answers that are no pair."""
    texts = check_pair(pair)
    named = {plain(str(key)): value for key, value in fields.items()}
    own = [named[key] for key in SOURCES if isinstance(named.get(key), str) and named[key]]
    ratings = side_ratings({**fields, "chosen": pair["chosen"], "rejected": pair["rejected"]})
    return PairText(
        prompt=conversation_text(texts.prompt),
        chosen=turn_text(texts.chosen),
        rejected=turn_text(texts.rejected),
        source=str(own[0]) if own else source_name,
        chosen_model=_model(named, "chosen"),
        rejected_model=_model(named, "rejected"),
        score_chosen=ratings[0] if ratings else None,
        score_rejected=ratings[1] if ratings else None,
    )


def _model(named: Row, side: str) -> str | None:
    """The model that wrote a side, of keys in their plain spelling."""
    for key in (f"{side}_model", f"model_{side}", f"{side}_model_name"):
        value = named.get(key)
        if isinstance(value, str) and value:
            return value
    return None


def conversation_text(turns: Messages) -> str:
    """The words of a prompt: of a single user turn as they are, else each turn after its role."""
    if len(turns) == 1:
        return turn_text(turns[0])
    return "\n\n".join(f"{turn['role']}: {turn_text(turn)}" for turn in turns)


def turn_text(turn: Message) -> str:
    """The words of a turn, and after them the JSON of each tool call in it."""
    calls = [json.dumps(call, ensure_ascii=False) for call in calls_of(turn)]
    return "\n".join(filter(None, (words_of(turn), *calls)))
