"""A rule on the columns of pairs selects the rows of a new training set."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from zephyr.analysis.pairs import pair_rows
from zephyr.analysis.runs import Run
from zephyr.config import BadInput, read_source
from zephyr.data.rows import Row, parse_line
from zephyr.data.sources import RawRow

if TYPE_CHECKING:
    import pyarrow as pa

Bools = npt.NDArray[np.bool_]
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
ENDS = re.compile(rf"(top|bottom)\s+({NUMBER})\s*(%?)\s+of\s+(\S+)")
BAND = re.compile(rf"band\s+({NUMBER})?\s*\.\.\s*({NUMBER})?\s+of\s+(\S+)")
FORMS = (
    "expected [not] top N|N% of COLUMN, [not] bottom N|N% of COLUMN or [not] band A..B of COLUMN, "
    "joined by `and`"
)


class Term(NamedTuple):
    """`[not] top|bottom|band ... of COLUMN`."""

    negated: bool
    kind: str  # top, bottom, band
    low: float  # of a band; of the others the count, or the share in percent
    high: float
    is_percent: bool
    column: str


def parse_rule(rule: str) -> list[Term]:
    """The terms of a rule, all of which a selected pair meets.

    `top 10% of flip_suspicion`: the pairs with the largest values, a tenth of those that have one;
    `bottom 500 of ref_margin`; `band 0.2..0.8 of similarity`, both ends included, either may be
    missing; `not top 5% of flip_suspicion`: all other pairs. `and` joins several.

    Raises: BadInput for a rule of another form, or of an impossible number.
    """
    return [parse_term(part.strip(), rule) for part in re.split(r"\s+and\s+", rule.strip())]


def parse_term(text: str, rule: str) -> Term:
    """One term of a rule. Raises: as `parse_rule`."""
    where = f"--select {rule!r}"
    negated = re.match(r"not\s", text) is not None
    body = text[3:].strip() if negated else text
    ends, band = ENDS.fullmatch(body), BAND.fullmatch(body)
    if ends:
        kind, number, percent, column = ends.groups()
        size = float(number)
        most = 100 if percent else np.inf
        if not 0 < size <= most or (not percent and size != int(size)):
            raise BadInput(
                f"{where}: {number}{percent} is no part of the pairs, expected a whole number of "
                "pairs, or more than 0% and at most 100%"
            )
        return Term(negated, kind, size, size, bool(percent), column)
    if band and (band[1] or band[2]):
        low, high = float(band[1] or -np.inf), float(band[2] or np.inf)
        if low > high:
            raise BadInput(f"{where}: the band {band[1]}..{band[2]} is empty, expected A <= B")
        return Term(negated, "band", low, high, False, band[3])
    raise BadInput(f"{where}: {text!r} is no rule: {FORMS}")


def select_pairs(table: "pa.Table", rule: str) -> Bools:
    """Which rows of a table of pairs a rule selects, bool [P].

    A pair without a value is never among the top, the bottom or a band, and so always in their
    complement. Of equal values, those of earlier rows come first.

    Raises: BadInput as `parse_rule`, and for a column that is not in the table or holds no
        numbers, naming the nearest.
    """
    selected_P = np.ones(table.num_rows, bool)
    for term in parse_rule(rule):
        values_P = numbers(table, term.column, rule)
        if term.kind == "band":
            met_P = (values_P >= term.low) & (values_P <= term.high)
        else:
            met_P = at_an_end(values_P, term)
        selected_P &= ~met_P if term.negated else met_P
    return selected_P


def at_an_end(values_P: npt.NDArray[np.float64], term: Term) -> Bools:
    """Whether each value is among the largest or the smallest."""
    with_value = np.flatnonzero(~np.isnan(values_P))
    size = round(term.low / 100 * len(with_value)) if term.is_percent else int(term.low)
    keys = values_P[with_value] * (-1 if term.kind == "top" else 1)
    met_P = np.zeros(len(values_P), bool)
    met_P[with_value[np.argsort(keys, kind="stable")[:size]]] = True
    return met_P


def numbers(table: "pa.Table", column: str, rule: str) -> npt.NDArray[np.float64]:
    """A column as float64 [P], NaN for null. Raises: BadInput as `select_pairs`."""
    import pyarrow as pa

    of_numbers = [
        field.name
        for field in table.schema
        if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
    ]
    if column not in of_numbers:
        nearest = difflib.get_close_matches(column, of_numbers, n=1, cutoff=0.0)[0]
        found = "holds no numbers" if column in table.column_names else "is no column"
        hint = "; --ches computes it" if column.startswith("ches") else ""
        raise BadInput(
            f"--select {rule!r}: {column!r} {found}{hint}; the nearest is {nearest}, all are "
            f"{', '.join(of_numbers)}"
        )
    values = table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(values, np.float64)


def selected_rows(
    run: Run, selected: Mapping[str, bool], weight: float | None = None
) -> Iterator[dict[str, object]]:
    """The rows of a run's `data.train` that are selected, as they were read, with every field.

    Args:
        selected: of the id of each pair that was trained, whether the rule selects it. Other rows
            are left out.
        weight: None: selected rows only. A number: all rows that were trained, with `weight` 1
            where the rule selects and this number elsewhere, times the weights that the row and
            its source have.
    Raises: BadInput as `pair_rows`, and for a value that JSON can't hold.
    """
    if weight is not None and "data.columns.weight" in run.config:
        raise BadInput(
            f"--weight: the run's data.columns.weight is {run.config['data.columns.weight']!r}, so "
            "that training would not read the weights; expected a run without this key"
        )
    entries = run.config.get("data.train")
    sources = [read_source(entry) for entry in entries] if isinstance(entries, list) else []
    for row in pair_rows(run):
        if row.id not in selected or (weight is None and not selected[row.id]):
            continue
        whole = whole_row(row.raw)
        if weight is not None:
            given = own_weight(whole) * sources[row.raw.entry].weight
            whole["weight"] = given * (1.0 if selected[row.id] else weight)
        yield whole


def own_weight(row: Row) -> float:
    """The weight that a row has; 1 without one."""
    weight = row.get("weight")
    return float(weight) if isinstance(weight, (int, float)) else 1.0


def whole_row(raw: RawRow) -> dict[str, object]:
    """A row with all its keys. Raises: BadInput for a value that JSON can't hold."""
    row = parse_line(raw.value) if isinstance(raw.value, bytes) else raw.value
    assert isinstance(row, Mapping), "a row that became a pair is an object"
    try:
        json.dumps(row)
    except (TypeError, ValueError) as error:
        raise BadInput(f"{raw.place}: the row can't be written as JSON: {error}") from None
    return dict(row)
