"""The ledger of runs becomes figures: margins as distributions, length against margin, and how far
both responses moved from their start.

A violin is drawn from evenly spaced quantiles, so that it has the shape of all values and the page
stays small. Regression lines and correlations are over all pairs.

Shape letters: V visits, P pairs (see `zephyr.analysis.visits`), Q quantiles, S pairs drawn.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from zephyr.analysis.pairs import PairText
from zephyr.analysis.runs import Run
from zephyr.analysis.visits import Floats, Ints, Visits
from zephyr.report.figures import (
    CHOSEN,
    GREY,
    REJECTED,
    Panel,
    base_layout,
    run_color,
)

QUANTILES = 256  # of a violin
MOST_DRAWN = 2500  # points of a scatter plot
MOST_GROUPS = 8  # sources of a figure, by their number of pairs
FEWEST = 5  # pairs of a group that is drawn

Texts = Mapping[str, PairText]


class PairsOf(NamedTuple):
    """The pairs of one run."""

    run: Run
    visits: Visits
    texts: Texts

    @property
    def margin_P(self) -> Floats:
        """Reward margin of each pair at its last visit."""
        return self.visits.margin_V[self.visits.last_P]

    @property
    def length_difference_P(self) -> Ints:
        """Tokens of chosen minus tokens of rejected."""
        return self.visits.tokens["chosen_tokens"] - self.visits.tokens["rejected_tokens"]


class Fit(NamedTuple):
    """The least-squares line of margin over length difference."""

    slope: float  # margin a token
    intercept: float
    r: float  # Pearson's correlation
    pairs: int


def fit_line(x_P: Ints | Floats, y_P: Floats) -> Fit | None:
    """Regress `y_P` on `x_P`; None where either doesn't vary, or fewer than three are finite."""
    finite_P = np.isfinite(y_P)
    x_P, y_P = x_P[finite_P].astype(np.float64), y_P[finite_P]
    if len(x_P) < 3 or not np.ptp(x_P) or not np.ptp(y_P):
        return None
    slope, intercept = np.polyfit(x_P, y_P, 1)
    return Fit(float(slope), float(intercept), float(np.corrcoef(x_P, y_P)[0, 1]), len(x_P))


def quantiles(values_P: Floats) -> list[float]:
    """At most QUANTILES evenly spaced quantiles of the finite values, with both extremes; five
    digits."""
    finite_P = values_P[np.isfinite(values_P)]
    if len(finite_P) > QUANTILES:
        finite_P = np.quantile(finite_P, np.linspace(0, 1, QUANTILES))
    return [float(f"{value:.5g}") for value in finite_P]


def add_violins(
    figure: go.Figure, groups: Sequence[tuple[str, Floats]], of: PairsOf, number: int, color: str
) -> None:
    """A violin of each group of pairs, with median and quartiles; none for a few pairs.

    Args: groups: name and values.
    """
    shown = [(name, quantiles(values_P)) for name, values_P in groups if len(values_P) >= FEWEST]
    if not shown:
        return
    figure.add_violin(
        x=[name for name, values in shown for _ in values],
        y=[value for _, values in shown for value in values],
        name=of.run.name,
        legendgroup=of.run.name,
        line={"color": color, "width": 1.4},
        box={"visible": True, "width": 0.18},
        points=False,
        scalemode="width",
        width=0.6 if len(shown) > 1 else 0.3,
        spanmode="hard",
        hoveron="violins",
        meta={"run": number},
    )


def violins(
    name: str,
    title: str,
    note: str,
    every: Sequence[PairsOf],
    groups: Sequence[Sequence[tuple[str, Floats]]],
    x: str,
) -> Panel | None:
    """A figure of violins. Args: groups: of each run, its groups."""
    figure = go.Figure(None, violin_layout(len(every)))
    for number, (of, of_run) in enumerate(zip(every, groups)):
        add_violins(figure, of_run, of, number, run_color(number))
    if not figure.data:
        return None
    if len(every) > 1:
        figure.update_traces(width=None)
    figure.update_xaxes(title={"text": x}, type="category")
    figure.update_yaxes(title={"text": "reward margin"}, hoverformat=".3~g")
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    return Panel(name, title, note, figure)


def violin_layout(runs: int) -> dict[str, object]:
    """The violins of several runs stand beside each other."""
    mode = "group" if runs > 1 else "overlay"
    return base_layout(hovermode="closest", violinmode=mode, violingap=0.15)


def by_epoch(of: PairsOf) -> list[tuple[str, Floats]]:
    """The margins of each pass over the data."""
    visits = of.visits
    passes = range(int(visits.visit_V.max(initial=-1)) + 1)
    return [(str(epoch + 1), visits.margin_V[visits.visit_V == epoch]) for epoch in passes]


def source_of(text: PairText | None, by_file: bool) -> str:
    """The source of a pair, or who wrote its chosen response."""
    if text is None:
        return "not read"
    return text.source if by_file else (text.chosen_model or text.source)


def by_source(of: PairsOf, by_file: bool) -> list[tuple[str, Floats]]:
    """Margins at the last visit by the source of the pair, the largest groups first."""
    if not of.texts:
        return []
    # Objects: an array of texts has the longest one's room for each.
    sources = np.array([source_of(of.texts.get(id), by_file) for id in of.visits.ids], object)
    names, counts = np.unique(sources, return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][:MOST_GROUPS]
    return [(short_name(name), of.margin_P[sources == name]) for name in largest]


def short_name(name: str) -> str:
    """A name that fits under a violin."""
    return name if len(name) <= 40 else f"{name[:20]}…{name[-19:]}"


def length_edges(every: Sequence[PairsOf]) -> Ints:
    """Ends of groups of about as many pairs, by length difference; the last end is in its group."""
    difference = np.concatenate([of.length_difference_P for of in every])
    if not len(difference):
        return difference
    return np.unique(np.quantile(difference, np.linspace(0, 1, 6)).round().astype(np.int64))


def by_length(of: PairsOf, edges: Ints) -> list[tuple[str, Floats]]:
    """Margins at the last visit by length difference."""
    groups = []
    for n in range(len(edges) - 1):
        low, high = int(edges[n]), int(edges[n + 1]) - (n < len(edges) - 2)
        here_P = (of.length_difference_P >= low) & (of.length_difference_P <= high)
        name = f"{low:+d} to {high:+d}" if high > low else f"{low:+d}"
        groups.append((name.replace("-", "\N{MINUS SIGN}"), of.margin_P[here_P]))
    return groups


def has_sources(every: Sequence[PairsOf]) -> bool:
    """Whether the pairs' rows name more than one source."""
    return len({text.source for of in every for text in of.texts.values()}) > 1


def margin_panels(every: Sequence[PairsOf]) -> list[Panel]:
    """Margins by epoch, by source and by length difference."""
    by_file = has_sources(every)
    whose = "source" if by_file else "writer of the chosen response"
    edges = length_edges(every)
    found = [
        violins(
            "margin-epoch",
            "Margins by epoch",
            "Each pair just before the update on it: in epoch 1 the model had not trained on it.",
            every,
            [by_epoch(of) for of in every],
            "epoch",
        ),
        violins(
            "margin-source",
            f"Margins by {whose}",
            "At each pair's last visit.",
            every,
            [by_source(of, by_file) for of in every],
            whose,
        ),
        violins(
            "margin-length",
            "Margins by length difference",
            "At each pair's last visit; tokens of chosen minus tokens of rejected.",
            every,
            [by_length(of, edges) for of in every],
            "tokens longer than the rejected response",
        ),
    ]
    return [one for one in found if one]


def length_panel(every: Sequence[PairsOf]) -> Panel | None:
    """Length difference against margin, with the regression line of all pairs of each run."""
    figure = go.Figure(None, base_layout(hovermode="closest", height=340))
    told, drawn = [], 0
    for number, of in enumerate(every):
        if not len(of.visits.ids):
            continue
        drawn = max(drawn, add_points(figure, of, number))
        if fit := fit_line(of.length_difference_P, of.margin_P):
            add_line(figure, of, fit, number)
            whose = f"{of.run.name}: " if len(every) > 1 else ""
            told.append(f"{whose}r = {fit.r:.2f}, {fit.slope:+.3g} a token")
    if not figure.data:
        return None
    figure.update_xaxes(title={"text": "length difference (tokens, chosen − rejected)"})
    figure.update_yaxes(title={"text": "reward margin"})
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    sampled = (
        f" Drawn: {drawn:,} pairs of each run, sampled; the line is that of all pairs."
        if any(len(of.visits.ids) > MOST_DRAWN for of in every)
        else ""
    )
    note = f"Each pair at its last visit. Regression: {'; '.join(told) or 'none'}.{sampled}"
    return Panel("length", "Does length explain the margin?", note, figure, wide=True)


def add_points(figure: go.Figure, of: PairsOf, number: int) -> int:
    """Draw pairs, at most MOST_DRAWN of them. Returns: how many."""
    pairs = len(of.visits.ids)
    index_S = np.arange(pairs)
    if pairs > MOST_DRAWN:
        index_S = np.sort(np.random.default_rng(0).choice(pairs, MOST_DRAWN, replace=False))
    figure.add_scatter(
        x=of.length_difference_P[index_S].tolist(),
        y=[float(f"{value:.4g}") for value in of.margin_P[index_S]],
        text=[of.visits.ids[i] for i in index_S],
        mode="markers",
        name=of.run.name,
        legendgroup=of.run.name,
        marker={"size": 5, "color": run_color(number), "opacity": 0.35},
        hovertemplate="%{text}<br>%{x:+d} tokens<br>margin %{y:.3~g}<extra></extra>",
        meta={"run": number},
    )
    return len(index_S)


def add_line(figure: go.Figure, of: PairsOf, fit: Fit, number: int) -> None:
    """Draw a regression line over the range of the pairs."""
    ends = [int(of.length_difference_P.min()), int(of.length_difference_P.max())]
    figure.add_scatter(
        x=ends,
        y=[fit.slope * x + fit.intercept for x in ends],
        mode="lines",
        name=f"{of.run.name} regression",
        legendgroup=of.run.name,
        line={"color": run_color(number), "width": 2.6},
        hovertemplate="regression: %{y:.3~g}<extra></extra>",
        meta={"run": number},
    )


def moved_panel(every: Sequence[PairsOf]) -> Panel | None:
    """How far the log-prob of each response moved, at each pair's last visit, as distributions."""
    figure = go.Figure(None, violin_layout(len(every)))
    for number, of in enumerate(every):
        beta = of.run.config.get("beta")
        if not isinstance(beta, (int, float)) or not beta or not of.run.starts_at_reference:
            continue
        sides = [
            (side, of.visits.values[f"rewards/{side}"][of.visits.last_P] / beta)
            for side in ("chosen", "rejected")
        ]
        if len(every) > 1:
            add_violins(figure, sides, of, number, run_color(number))
            continue
        for side, color in zip(sides, (CHOSEN, REJECTED)):
            add_violins(figure, [side], of, number, color)
    if not figure.data:
        return None
    figure.update_traces(width=None if len(every) > 1 else 0.5)
    figure.update_xaxes(title={"text": ""}, type="category")
    figure.update_yaxes(title={"text": "nats since the start"}, hoverformat=".3~g")
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    note = "Each pair at its last visit. Below 0: less likely than before training."
    return Panel("moved", "How far each response moved", note, figure)
