"""What the pairs taught, by group: pairs of one source, or with the same two writers.

Shape letters: V visits, P pairs (see `zephyr.analysis.visits`).
"""

from collections.abc import Iterator, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

from zephyr.analysis.flips import flip_suspicion
from zephyr.analysis.pairs import PairText
from zephyr.report.pair_figures import PairsOf
from zephyr.report.text import percent, plural, signed, table

MOST_GROUPS = 12  # of a run and field, by their number of pairs


class Group(NamedTuple):
    """Pairs that have a field of their rows in common."""

    name: str
    pairs: int
    margin: float  # mean at the last visit
    learned: float  # share of pairs with a margin above 0 there
    grew: float  # mean change of the margin from the first visit to the last
    suspected: float  # share of pairs with a flip suspicion over 0.5


def writers(text: PairText) -> str:
    """Who wrote both responses; "" where the row names nobody."""
    names = (text.chosen_model, text.rejected_model)
    return " over ".join(name or "not known" for name in names) if any(names) else ""


def groups(of: PairsOf, names: Sequence[str]) -> list[Group]:
    """The groups of a run, the largest first. Args: names: of the group of each pair."""
    name_P = np.array(names, object)
    last_P, first_P = of.visits.last_P, of.visits.first_P
    margin_P = of.visits.margin_V[last_P]
    grew_P = margin_P - of.visits.margin_V[first_P]
    suspected_P = flip_suspicion(of.visits) > 0.5
    found = []
    for name in dict.fromkeys(names):
        here_P = name_P == name
        values = (margin_P, margin_P > 0, grew_P, suspected_P)
        means = [float(np.nanmean(value_P[here_P])) for value_P in values]
        found.append(Group(name, int(here_P.sum()), *means))
    return sorted(found, key=lambda group: -group.pairs)


def groupings(of: PairsOf) -> Iterator[tuple[str, list[Group]]]:
    """What pairs are grouped by, and the groups: only fields that tell pairs apart."""
    texts = [of.texts.get(id) for id in of.visits.ids]
    fields = {
        "Source": [text.source if text else "not read" for text in texts],
        "Chosen over rejected writer": [(writers(text) if text else "") or "-" for text in texts],
    }
    for title, names in fields.items():
        if of.texts and len(set(names)) > 1:
            yield title, groups(of, names)


def groups_table(every: Sequence[PairsOf]) -> str:
    """The groups of all runs as tables; "" where no field tells pairs apart."""
    tables = ""
    for of in every:
        for title, found in groupings(of):
            name = f"<h4>{escape(of.run.name)}</h4>" if len(every) > 1 else ""
            tables += name + table([title, *HEADS], map(cells, found[:MOST_GROUPS]))
            if len(found) > MOST_GROUPS:
                more = plural(len(found) - MOST_GROUPS, "smaller group")
                tables += f'<p class="muted small">{more} left out.</p>'
    if not tables:
        return ""
    return (
        '<div id="groups"><h3>What the pairs taught, by group</h3><p class="muted small">At each '
        "pair's last visit. Learned: margin above 0. Growth: mean change of the margin from the "
        "first visit to the last. The search of the pairs finds writers.</p>"
        f"{tables}</div>"
    )


HEADS = ("pairs", "mean margin", "learned", "growth", "flip suspicion over 0.5")


def cells(group: Group) -> list[str]:
    return [
        group.name,
        f"{group.pairs:,}",
        signed(group.margin, 3),
        percent(group.learned, 1),
        signed(group.grew, 3),
        percent(group.suspected, 1),
    ]
