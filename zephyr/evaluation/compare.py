"""A judge's replies about two answers, one per order of showing them, become one verdict, and many
verdicts become a win rate."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from zephyr.evaluation.statistics import agreement, length_controlled, mean_with_interval

VERDICT = re.compile(r"\[\[([ABC])\]\]")
# Points of the answer that is shown as A, then as B.
CONSISTENT = {("A", "B"): 1.0, ("B", "A"): 0.0, ("tie", "tie"): 0.5}
FIRST_WON = {"A": 0.5, "tie": 0.25, "B": 0.0}  # share of the two calls that the first answer wins


def parse_verdict(text: str) -> str | None:
    """Which of two answers a reply prefers, "A", "B" or "tie" (written [[A]], [[B]], [[C]]); None
    unless it states exactly one of them."""
    found = set(VERDICT.findall(text))
    return {"A": "A", "B": "B", "C": "tie"}[found.pop()] if len(found) == 1 else None


class Comparison(NamedTuple):
    """An answer against another: the verdict with this one shown first, as A, and the verdict with
    it shown second; lengths in characters, this one's first."""

    shown_first: str | None
    shown_second: str | None
    lengths: tuple[int, int]
    was_judged: bool = True  # False: equal texts, which are a tie without a call

    def points(self) -> float | None:
        """1 if this answer is preferred in both orders, 0 if the other is, else 0.5, a tie; None
        without both verdicts."""
        if self.shown_first is None or self.shown_second is None:
            return None
        return CONSISTENT.get((self.shown_first, self.shown_second), 0.5)

    def first_won(self) -> float:
        """The share of the two calls that was won by the answer shown first; a tie counts half.
        Both verdicts must be there."""
        assert self.shown_first is not None and self.shown_second is not None
        return FIRST_WON[self.shown_first] + FIRST_WON[self.shown_second]


def summarise(
    rows: Sequence[Comparison | None], labels: Sequence[float | None]
) -> dict[str, object]:
    """The win rate of a model over another and what belongs to it, each with n, stderr and ci95.

    Args:
        rows: one per prompt; None: a model gave no answer.
        labels: points by people; None: no label.

    Returns:
        win_rate: over prompts with both verdicts.
        unparsed, unanswered: prompts that are left out.
        decided: share of prompts that are no tie; of_decided: the win rate of these.
        consistent: share of judged prompts with one verdict in both orders.
        position_bias: share of calls won by what is shown first; a tie counts half.
        length_controlled: the win rate at equal lengths; lengths: means of both models.
        agreement, kappa: of the judge with people, if there are labels."""
    read: list[Comparison] = []
    points: list[float] = []
    by_people: list[tuple[float, float]] = []  # (label, points)
    for row, label in zip(rows, labels, strict=True):
        value = None if row is None else row.points()
        if row is None or value is None:
            continue
        read.append(row)
        points.append(value)
        if label is not None:
            by_people.append((label, value))
    judged = [row for row in read if row.was_judged]
    differences = [row.lengths[0] - row.lengths[1] for row in read]
    return {
        **mean_with_interval("win_rate", points),
        "wins": points.count(1.0),
        "ties": points.count(0.5),
        "losses": points.count(0.0),
        "unparsed": len(rows) - rows.count(None) - len(read),
        "unanswered": rows.count(None),
        "decided": mean_with_interval("share", [float(p != 0.5) for p in points]),
        "of_decided": mean_with_interval("win_rate", [p for p in points if p != 0.5]),
        "consistent": mean_with_interval("share", [float(row[:2] in CONSISTENT) for row in judged]),
        "position_bias": mean_with_interval("first_won", [row.first_won() for row in judged]),
        "length_controlled": length_controlled(points, differences),
        "lengths": [
            mean_with_interval("mean", [float(row.lengths[side]) for row in read])
            for side in (0, 1)
        ],
        **(agreement(*zip(*by_people)) if by_people else {}),
    }
