"""The ledger of runs becomes figures: margins as distributions, length against margin, and how far
both responses moved from their start.

A violin is drawn from evenly spaced quantiles, so that it has the shape of all values and the page
stays small. Regression lines and correlations are over all pairs.

Shape letters: V visits, P pairs (see `zephyr.analysis.visits`), Q quantiles, S pairs drawn.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """At most QUANTILES evenly spaced quantiles of the finite values, five digits."""
    finite_P = values_P[np.isfinite(values_P)]
    if len(finite_P) > QUANTILES:
        finite_P = np.quantile(finite_P, (np.arange(QUANTILES) + 0.5) / QUANTILES)
    return [float(f"{value:.5g}") for value in finite_P]


def add_violin(figure: go.Figure, group: str, values_P: Floats, of: PairsOf, number: int) -> None:
    """A violin of a group of pairs, with its median and quartiles; nothing for a few pairs."""
    if len(values_P) < FEWEST:
        return
    shown = quantiles(values_P)
    figure.add_violin(
        x=[group] * len(shown),
        y=shown,
        name=of.run.name,
        legendgroup=of.run.name,
        scalegroup=group,
        line={"color": run_color(number), "width": 1.4},
        box={"visible": True, "width": 0.18},
        points=False,
        spanmode="hard",
        hoveron="violins",
        hoverinfo="y+name" if len(values_P) else "skip",
        meta={"run": number},
    )


def violins(
    name: str, title: str, note: str, groups: Iterator[tuple[int, PairsOf, str, Floats]], x: str
) -> Panel | None:
    """A figure of violins. Args: groups: number of the run, its pairs, group, margins."""
    figure = go.Figure(None, base_layout(hovermode="closest", violinmode="group", violingap=0.2))
    for number, of, group, values_P in groups:
        add_violin(figure, group, values_P, of, number)
    if not figure.data:
        return None
    figure.update_xaxes(title={"text": x}, type="category")
    figure.update_yaxes(title={"text": "reward margin"})
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    return Panel(name, title, note, figure)


def by_epoch(every: Sequence[PairsOf]) -> Iterator[tuple[int, PairsOf, str, Floats]]:
    """The margins of each pass over the data."""
    for number, of in enumerate(every):
        visits = of.visits
        for epoch in range(int(visits.visit_V.max(initial=-1)) + 1):
            yield number, of, str(epoch + 1), visits.margin_V[visits.visit_V == epoch]


def source_of(text: PairText | None, by_file: bool) -> str:
    """The source of a pair, or who wrote its chosen response."""
    if text is None:
        return "not read"
    return text.source if by_file else (text.chosen_model or text.source)


def by_source(every: Sequence[PairsOf], by_file: bool) -> Iterator[tuple[int, PairsOf, str, Floats]]:
    """Margins at the last visit by the source of the pair, the largest groups first."""
    for number, of in enumerate(every):
        sources = np.array([source_of(of.texts.get(id), by_file) for id in of.visits.ids])
        names, counts = np.unique(sources, return_counts=True)
        for name in names[np.argsort(-counts)][:MOST_GROUPS]:
            yield number, of, str(name), of.margin_P[sources == name]


def by_length(every: Sequence[PairsOf]) -> Iterator[tuple[int, PairsOf, str, Floats]]:
    """Margins at the last visit by length difference, in groups of about as many pairs."""
    difference = np.concatenate([of.length_difference_P for of in every])
    if not len(difference) or not np.ptp(difference):
        return
    edges = np.unique(np.quantile(difference, np.linspace(0, 1, 6)).round().astype(np.int64))
    for low, high in zip(edges[:-1], edges[1:]):
        last = high == edges[-1]
        for number, of in enumerate(every):
            here_P = (of.length_difference_P >= low) & (
                (of.length_difference_P <= high) if last else (of.length_difference_P < high)
            )
            group = f"{low:+d} to {high if last else high - 1:+d}".replace("-", "\N{MINUS SIGN}")
            yield number, of, group, of.margin_P[here_P]


def has_sources(every: Sequence[PairsOf]) -> bool:
    """Whether the pairs' rows name more than one source."""
    return len({text.source for of in every for text in of.texts.values()}) > 1


def margin_panels(every: Sequence[PairsOf]) -> list[Panel]:
    """Margins by epoch, by source and by length difference."""
    by_file = has_sources(every)
    whose = "source" if by_file else "writer of the chosen response"
    texts_read = any(of.texts for of in every)
    found = [
        violins(
            "margin-epoch",
            "Margins by epoch",
            "Each pair just before the epoch's update on it. In epoch 1 the pair was not seen yet.",
            by_epoch(every),
            "epoch",
        ),
        violins(
            "margin-source",
            f"Margins by {whose}",
            "At each pair's last visit.",
            by_source(every, by_file) if texts_read else iter(()),
            whose,
        ),
        violins(
            "margin-length",
            "Margins by length difference",
            "At each pair's last visit; tokens of chosen minus tokens of rejected.",
            by_length(every),
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
    return Panel("length", "Does length explain the margin?", note, figure)


def add_points(figure: go.Figure, of: PairsOf, number: int) -> int:
    """Draw pairs, at most MOST_DRAWN of them. Returns: how many."""
    pairs = len(of.visits.ids)
    index_S = np.arange(pairs)
    if pairs > MOST_DRAWN:
        index_S = np.sort(np.random.default_rng(0).choice(pairs, MOST_DRAWN, replace=False))
    figure.add_scatter(
        x=of.length_difference_P[index_S].tolist(),
        y=[float(f"{value:.4g}") for value in of.margin_P[index_S]],
        text=[of.visits.ids[i] for i in index_S] if len(pairs_text(of)) < 200_000 else None,
        mode="markers",
        name=of.run.name,
        legendgroup=of.run.name,
        marker={"size": 5, "color": run_color(number), "opacity": 0.35},
        hovertemplate="%{text}<br>%{x:+d} tokens<br>margin %{y:.4~g}<extra></extra>",
        meta={"run": number},
    )
    return len(index_S)


def pairs_text(of: PairsOf) -> str:
    """The ids of the pairs, one after the other."""
    return "".join(of.visits.ids[:MOST_DRAWN])


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
        hovertemplate="regression: %{y:.4~g}<extra></extra>",
        meta={"run": number},
    )


def moved_panel(every: Sequence[PairsOf]) -> Panel | None:
    """How far the log-prob of each response moved, at each pair's last visit, as distributions."""
    figure = go.Figure(None, base_layout(hovermode="closest", violinmode="group", violingap=0.2))
    for number, of in enumerate(every):
        beta = of.run.config.get("beta")
        if not isinstance(beta, (int, float)) or not beta:
            continue
        for side, color in (("chosen", CHOSEN), ("rejected", REJECTED)):
            moved_P = of.visits.values[f"rewards/{side}"][of.visits.last_P] / beta
            add_violin(figure, side, moved_P, of, number)
            if figure.data and len(every) == 1:
                figure.data[-1].line.color = color
    if not figure.data:
        return None
    figure.update_xaxes(title={"text": ""}, type="category")
    figure.update_yaxes(title={"text": "nats since the start"})
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    note = "Each pair at its last visit. Below 0: less likely than before training."
    return Panel("moved", "How far each response moved", note, figure)


GroupBy = Callable[[Sequence[PairsOf]], Iterator[tuple[int, PairsOf, str, Floats]]]
