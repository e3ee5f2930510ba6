"""What a load of rows read, cut, dropped and skipped: counted while rows are encoded, logged in a
few lines."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from zephyr.chat import EncodedPair
from zephyr.config import QUIRK, BadInput, DataSource, quirks
from zephyr.data.workers import Encoded, Options

if TYPE_CHECKING:
    from typing_extensions import NotRequired

MAX_EXAMPLES = 5  # rows that the report names for each warning, and the log for skipped rows
WEIGHTED = "a weight other than 1"
PAIR_SIDES = ("prompt", "chosen", "rejected")
TEXT_SIDES = ("text",)


class CutRows(TypedDict):
    """Rows of which a side was truncated, and the tokens lost by it."""

    rows: int
    tokens: int


class Warned(TypedDict):
    """Rows with a warning, and the places of the first `MAX_EXAMPLES` of them."""

    rows: int
    first: list[str]


class SkippedRow(TypedDict):
    """A bad row that `on_bad_row: skip` left out."""

    place: str
    reason: str


class Windows(TypedDict):
    """Windows of `windows.joined_windows`, all tokens of the texts, and those that fill none."""

    windows: int
    tokens: int
    tokens_left_out: int


class SourceRows(TypedDict):
    """An entry of `data.train` or `data.eval`, the rows that were read of it, and its examples."""

    path: str
    limit: int | None
    weight: float
    rows_read: int
    examples: int


class Report(TypedDict):
    """The report of a load, as JSON holds it (`data.json` in the run folder).

    rows_read = examples + rows_skipped + all of `dropped`. by_source: the counts of each entry of
    the list. scored: examples whose row rates both answers. inverted: places of those whose chosen
    answer is rated lower. mean_preference: mean margin of the scored examples. weighted: pairs with
    another weight than 1. weight: of all pairs together. columns: rows in which each field of
    `data.columns` was found. keys_not_read: key -> rows that have it. also_in_train,
    begins_in_train: of `data.eval` only
    (`encode.count_prompt_overlap`). quirks: options that reproduce published quirks, where one is
    on. windows: where texts were joined."""

    kind: str
    sources: list[str]
    by_source: list[SourceRows]
    rows_read: int
    examples: int
    rows_skipped: int
    skipped: list[SkippedRow]
    scored: int
    inverted: list[str]
    mean_preference: float | None
    weighted: Warned | None
    weight: float
    columns: dict[str, int]
    keys_not_read: dict[str, int]
    warnings: dict[str, Warned]
    dropped: dict[str, int]
    tokens: dict[str, int]
    cut: dict[str, CutRows]
    also_in_train: NotRequired[int]
    begins_in_train: NotRequired[int]
    quirks: NotRequired[list[str]]
    windows: NotRequired[Windows]


@dataclass
class Tally:
    """The counts of a load so far."""

    totals: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)  # reason -> rows
    unread: Counter[str] = field(default_factory=Counter)  # key -> rows
    found: Counter[str] = field(default_factory=Counter)  # field of `data.columns` -> rows
    warned: Counter[str] = field(default_factory=Counter)  # warning -> rows
    first: dict[str, list[str]] = field(default_factory=dict)  # warning -> first places
    skipped: list[SkippedRow] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    preference_sum: float = 0.0  # of the mean margin of each scored example
    weight_sum: float = 0.0  # of the pairs
    places: dict[str, str] = field(default_factory=dict)  # id -> place of the row
    seen: set[bytes] = field(default_factory=set)  # digests of examples: by ids, and by words
    read: Counter[int] = field(default_factory=Counter)  # entry -> rows
    kept: Counter[int] = field(default_factory=Counter)  # entry -> examples

    def warn(self, warning: str, place: str) -> None:
        """Count a warning; keep the place if it is one of the first `MAX_EXAMPLES`."""
        self.warned[warning] += 1
        places = self.first.setdefault(warning, [])
        if self.warned[warning] <= MAX_EXAMPLES:
            places.append(place)

    def add(self, item: Encoded, sides: tuple[str, ...]) -> None:
        """Count an example that is kept. sides: `PAIR_SIDES` or `TEXT_SIDES`."""
        self.totals["examples"] += 1
        self.kept[item.entry] += 1
        self.unread.update(item.unread)
        self.found.update(item.found)
        if item.margins:
            self.totals["scored"] += 1
            self.preference_sum += sum(item.margins) / len(item.margins)
            if min(item.margins) < 0:
                self.inverted.append(item.place)
        for side, ids, lost in zip(sides, _side_ids(item), item.truncated_tokens):
            self.totals[f"{side} tokens"] += len(ids)
            self.totals[f"{side} rows cut"] += lost > 0
            self.totals[f"{side} lost"] += lost
        for suspicion in item.suspicions:
            self.warn(suspicion, item.place)
        self._warn_of_duplicates(item)
        if isinstance(item.example, EncodedPair):
            self.weight_sum += item.example.weight
            if item.example.weight != 1:
                self.warn(WEIGHTED, item.place)

    def _warn_of_duplicates(self, item: Encoded) -> None:
        ids, words = _side_ids(item), item.text_digests
        same = {_ids_digest(*ids), b"".join(words)}  # equal as ids (maybe once cut), or as words
        if not same.isdisjoint(self.seen):
            self.warn("the same example again", item.place)
        if len(ids) == 3:
            prompt, chosen, rejected = ids
            exchanged = {_ids_digest(prompt, rejected, chosen), words[0] + words[2] + words[1]}
            if not exchanged.isdisjoint(self.seen):
                self.warn(
                    "the opposite of an earlier pair, chosen and rejected exchanged", item.place
                )
        self.seen |= same


def _side_ids(item: Encoded) -> list[list[int]]:
    """The ids of prompt, chosen and rejected, or of the whole text."""
    example = item.example
    if isinstance(example, EncodedPair):
        return [example.prompt_ids, example.chosen_ids, example.rejected_ids]
    return [example.ids]


def _ids_digest(*sides: Sequence[int]) -> bytes:
    """128 bits of lists of ids."""
    digest = hashlib.blake2b(digest_size=16)
    for side in sides:
        ids = np.asarray(side, np.int32)
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.digest()


def finish_report(
    entries: Sequence[DataSource],
    sources: list[str],
    sides: tuple[str, ...],
    tally: Tally,
    options: Options,
) -> Report:
    """The report of a load that is done. sources: the names of all files and datasets.

    Raises: BadInput naming the sources if no example is left, or if no row has a field that
        `data.columns` names."""
    totals = tally.totals
    names = ", ".join(sources)
    if not totals["examples"]:
        raise BadInput(_nothing_left(names, sides, tally))
    for name, path in options.columns:
        if path is not None and not tally.found[name]:
            raise BadInput(
                f"data.columns.{name}: no row of {names} has {path!r}, expected a field of the "
                "rows, or null"
            )
    warnings: dict[str, Warned] = {
        warning: {"rows": tally.warned[warning], "first": first}
        for warning, first in tally.first.items()
    }
    weighted = warnings.pop(WEIGHTED, None)
    mean_preference = tally.preference_sum / totals["scored"] if totals["scored"] else None
    truncation = options.truncation or "keep_end"  # texts have none
    on = quirks({"data.encoding": options.encoding, "data.truncation": truncation})
    report: Report = {
        "kind": "pairs" if sides == PAIR_SIDES else "texts",
        "sources": sources,
        "by_source": [
            {
                "path": entry.path,
                "limit": entry.limit,
                "weight": entry.weight,
                "rows_read": tally.read[n],
                "examples": tally.kept[n],
            }
            for n, entry in enumerate(entries)
        ],
        "rows_read": totals["rows"],
        "examples": totals["examples"],
        "rows_skipped": len(tally.skipped),
        "skipped": tally.skipped,
        "scored": totals["scored"],
        "inverted": tally.inverted,
        "mean_preference": mean_preference,
        "weighted": weighted,
        "weight": tally.weight_sum,
        "columns": dict(tally.found),
        "keys_not_read": dict(sorted(tally.unread.items())),
        "warnings": warnings,
        "dropped": dict(tally.dropped),
        "tokens": {side: totals[f"{side} tokens"] for side in sides},
        "cut": {
            side: {"rows": totals[f"{side} rows cut"], "tokens": totals[f"{side} lost"]}
            for side in sides
        },
    }
    if on:
        report["quirks"] = on
    return report


def _nothing_left(names: str, sides: tuple[str, ...], tally: Tally) -> str:
    kind = "pair" if sides == PAIR_SIDES else "text"
    reasons = "; ".join(tally.dropped)
    message = (
        f"no {kind} is left of the {tally.totals['rows']} rows of {names}: "
        f"{len(tally.skipped)} bad, {tally.dropped.total()} dropped ({reasons})"
    )
    if tally.skipped:
        first = tally.skipped[0]
        message += f"; the first bad row is {first['place']}: {first['reason']}"
    return message


def format_report(report: Report) -> str:
    """The report in a few lines for the log, with the first `MAX_EXAMPLES` skipped rows."""
    warnings = [f"  warning: {warning}" for warning in report_warnings(report)]
    return "\n".join([*_count_lines(report), *warnings, *_skipped_lines(report)])


def format_counts(report: Report) -> str:
    """As `format_report`, without the warnings."""
    return "\n".join([*_count_lines(report), *_skipped_lines(report)])


def _count_lines(report: Report) -> Iterator[str]:
    sources = ", ".join(report["sources"])
    yield (
        f"{report['kind']}: {report['examples']:,} of {report['rows_read']:,} rows from {sources}"
    )
    if len(report["by_source"]) > 1 or weighs_or_limits(report["by_source"][0]):
        for source in report["by_source"]:
            yield (
                f"  {source['path']}: {source['examples']:,} of {source['rows_read']:,} rows, "
                f"weight {source['weight']:g}"
            )
    for side, cut in report["cut"].items():
        yield (
            f"  {side}: {report['tokens'][side]:,} tokens; cut in {cut['rows']:,} rows, "
            f"{cut['tokens']:,} tokens lost"
        )
    windows = report.get("windows")
    if windows:
        yield (
            f"  joined and cut into {windows['windows']:,} windows; {windows['tokens_left_out']:,} "
            "tokens at the end left out"
        )
    weighted = report["weighted"]
    if weighted:
        yield (
            f"  weights: {weighted['rows']:,} pairs have another weight than 1, the first at "
            f"{weighted['first'][0]}; all together weigh {report['weight']:,.6g}"
        )
    for reason, rows in report["dropped"].items():
        if rows:
            yield f"  dropped, {reason}: {rows:,}"
    if report["keys_not_read"]:
        keys = [f"{key} ({rows:,} rows)" for key, rows in report["keys_not_read"].items()]
        yield f"  keys not read: {', '.join(keys)}"


def weighs_or_limits(source: SourceRows) -> bool:
    return source["weight"] != 1 or source["limit"] is not None


def report_warnings(report: Report) -> Iterator[str]:
    """What in the rows may not be meant so, a sentence each."""
    examples, inverted = report["examples"], report["inverted"]
    for quirk in report.get("quirks", []):
        yield f"{quirk} {QUIRK}"
    for warning, rows in report["warnings"].items():
        yield f"{warning}: {rows['rows']:,} rows, the first at {rows['first'][0]}"
    if inverted:
        yield (
            "the chosen answer is rated below the rejected one: "
            f"{len(inverted):,} of {report['scored']:,} rows with scores, "
            f"the first at {inverted[0]}"
        )
    also, begins = report.get("also_in_train", 0), report.get("begins_in_train", 0)
    if also:
        yield (
            f"{also:,} of {examples:,} have a prompt that is in data.train too: "
            "they measure no generalisation"
        )
    if begins:
        yield (
            f"{begins:,} of {examples:,} begin with a question that is in data.train "
            "too, and go on otherwise"
        )


def _skipped_lines(report: Report) -> Iterator[str]:
    if report["skipped"]:
        yield f"  bad rows left out: {len(report['skipped']):,}"
    for row in report["skipped"][:MAX_EXAMPLES]:
        yield f"    {row['place']}: {row['reason']}"
