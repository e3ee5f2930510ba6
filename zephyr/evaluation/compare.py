"""A judge's replies about two answers, one per order of showing them, become one verdict, and many
verdicts a win rate."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from zephyr.evaluation.statistics import agreement, length_controlled, mean_with_interval

VERDICT = re.compile(r"\[\[([ABC])\]\]")
CONSISTENT = {
    ("A", "B"): 1.0,
    ("B", "A"): 0.0,
    ("tie", "tie"): 0.5,
}  # points of the answer shown as A, then as B
FIRST_WON = {"A": 0.5, "tie": 0.25, "B": 0.0}  # of the two calls of a comparison


def parse_verdict(text: str) -> str | None:
    """Which of two answers a reply prefers, "A", "B" or "tie" (written [[A]], [[B]], [[C]]); None
    unless it states exactly one of them."""
    found = set(VERDICT.findall(text))
    return {"A": "A", "B": "B", "C": "tie"}[found.pop()] if len(found) == 1 else None


class Comparison(NamedTuple):
    """An answer against another: verdicts with this one shown first, as A, and second; lengths in
    characters, this one's first."""

    shown_first: str | None
    shown_second: str | None
    lengths: tuple[int, int]
    was_judged: bool = True  # False: equal texts, which are a tie without a call

    def points(self) -> float | None:
        """1 where this answer is preferred in both orders, 0 where the other is, else 0.5, a tie;
        None without both verdicts."""
        return None if None in self[:2] else CONSISTENT.get(self[:2], 0.5)


def summarise(
    rows: Sequence[Comparison | None], labels: Sequence[float | None]
) -> dict[str, object]:
    """The win rate of a model over another and what belongs to it, each number with `n`, `stderr`
    and `ci95`.

    Args: rows: one per prompt; None: a model gave no answer. labels: points by people, None where
    there is no label. Returns: `win_rate`; `unparsed` and `unanswered` prompts are left out;
    `decided`: without ties; `consistent`: prompts with one verdict in both orders; `position_bias`:
    the calls won by what is shown first, a tie counts half; with labels, `agreement` and
    `kappa`."""
    read = [
        (row, row.points(), label)
        for row, label in zip(rows, labels, strict=True)
        if row and row.points() is not None
    ]
    points, asked = [point for _, point, _ in read], [row for row, *_ in read if row.was_judged]
    by_people = [(label, point) for _, point, label in read if label is not None]
    return {
        **mean_with_interval("win_rate", points),
        "wins": points.count(1.0),
        "ties": points.count(0.5),
        "losses": points.count(0.0),
        "unparsed": len(rows) - rows.count(None) - len(read),
        "unanswered": rows.count(None),
        "decided": mean_with_interval("share", [float(p != 0.5) for p in points]),
        "of_decided": mean_with_interval("win_rate", [p for p in points if p != 0.5]),
        "consistent": mean_with_interval("share", [float(row[:2] in CONSISTENT) for row in asked]),
        "position_bias": mean_with_interval(
            "first_won", [FIRST_WON[row.shown_first] + FIRST_WON[row.shown_second] for row in asked]
        ),
        "length_controlled": length_controlled(
            points, [row.lengths[0] - row.lengths[1] for row, *_ in read]
        ),
        "lengths": [
            mean_with_interval("mean", [float(row.lengths[side]) for row, *_ in read])
            for side in (0, 1)
        ],
        **(agreement(*zip(*by_people)) if by_people else {}),
    }
