"""The records of runs become figures: metrics over steps, train and held-out together.

Every function returns `plotly.graph_objects.Figure`, which a notebook shows as the page does. The
page adds what needs a hand: smoothing, the epoch axis, one zoom for all panels, its legend.
Colour tells runs apart. Lines are train records, diamonds with dashes are held-out ones, which have
a colour of their own where there is one run.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from zephyr.analysis.runs import Record, Run

Point = tuple[int, float, float | None]  # step, epoch, value; None: a gap in the curve
# Colours on a light ground and, at the same place, on a dark one (page.js swaps them).
COLORS = (
    ("#2456d6", "#82a7ff"),
    ("#c2560c", "#ff9d5c"),
    ("#0f8f83", "#35c4b5"),
    ("#8a3fc7", "#c79bff"),
    ("#c9446b", "#f0799b"),
    ("#8a6d00", "#e0bf3f"),
    ("#0b7fa8", "#4cc3ee"),
    ("#6b7280", "#a9b1c0"),
)
ACCENT, CHOSEN, REJECTED = COLORS[0][0], COLORS[2][0], COLORS[4][0]
GREY = COLORS[7][0]
HELD_OUT = COLORS[1][0]  # of a page with one run
FONT = "Inter, system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
MOST_POINTS = 1500  # of a curve; longer ones keep their extremes

Values = Callable[[Run, Record], float | None]


class Panel(NamedTuple):
    """A figure of a page."""

    id: str
    title: str
    note: str  # what it says, in a sentence
    figure: go.Figure
    key: Sequence[tuple[str, str]] = ()  # what its colours mean, where they don't mean runs
    wide: bool = False  # over all columns


class Line(NamedTuple):
    """One quantity of a panel."""

    name: str  # "" where the panel has only one
    color: str | None  # None: the run's
    value: Values


def metric(name: str, scale: float = 1.0) -> Values:
    """The values of a metric of the records."""

    def value(run: Run, record: Record) -> float | None:
        found = record.values.get(name)
        return None if found is None else found * scale

    return value


def accuracy(run: Run, record: Record) -> float | None:
    """Reward accuracy in percent; None where no response is preferred, as at step 0: the record's 0
    counts ties."""
    found = record.values.get("rewards/accuracies")
    if found is None or (not found and record.values.get("rewards/margins") == 0):
        return None
    return 100 * found


def moved(side: str) -> Values:
    """Change of the log-prob of a side since the start, in nats: reward / beta.

    Where training does not start at a reference, only the held-out pairs have it, which are
    evaluated at the start too.
    """

    def value(run: Run, record: Record) -> float | None:
        if not run.starts_at_reference:
            return change_since_start(run, record, f"logps/{side}")
        beta, reward = run.config.get("beta"), record.values.get(f"rewards/{side}")
        if not isinstance(beta, (int, float)) or not beta or reward is None:
            return None
        return reward / beta

    return value


def change_since_start(run: Run, record: Record, name: str) -> float | None:
    """A metric of an evaluation less that of the evaluation before the first update."""
    evaluations = run.records["eval"]
    if not any(record is other for other in evaluations) or evaluations[0].step > 0:
        return None
    now, start = record.values.get(name), evaluations[0].values.get(name)
    return None if now is None or start is None else now - start


def downsample(points: Sequence[Point], most: int = MOST_POINTS) -> Sequence[Point]:
    """Keep at most `most` points: the first, the last, and of each stretch its extremes and a gap.

    The stretches are of equal length; of each its lowest, its highest and its first gap are kept.
    """
    if len(points) <= most:
        return points
    kept = {0, len(points) - 1}
    size = -(-3 * len(points) // (most - 2))
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        values = [(value, i) for i in stretch if (value := points[i][2]) is not None]
        if values:
            kept |= {min(values)[1], max(values)[1]}
        kept.update([i for i in stretch if points[i][2] is None][:1])
    return [points[i] for i in sorted(kept)]


def six_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def base_layout(**more: object) -> dict[str, object]:
    """What all figures of a page share; `page.js` sets the colours of its ground and text."""
    return {
        "template": "none",
        "font": {"family": FONT, "size": 12},
        "margin": {"l": 56, "r": 14, "t": 10, "b": 40},
        "height": 270,
        "hovermode": "x unified",
        "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {"title": {"text": "step"}, "automargin": True, "zeroline": False, "nticks": 6},
        "yaxis": {"automargin": True, "zeroline": False, "exponentformat": "e", "nticks": 6},
        **more,
    }


def run_color(number: int) -> str:
    return COLORS[number % len(COLORS)][0]


def traces(runs: Sequence[Run], lines: Sequence[Line], log: bool = False) -> Iterator[go.Scatter]:
    """A trace for each run, quantity and split that has a value.

    Args: log: values that have no logarithm are gaps.
    """
    for number, run in enumerate(runs):
        for line in lines:
            for split, records in run.records.items():
                points = [
                    (record.step, record.values.get("epoch") or 0.0, line.value(run, record))
                    for record in records
                ]
                if log:
                    points = [(s, e, y if y is not None and y > 0 else None) for s, e, y in points]
                if any(value is not None for _, _, value in points):
                    yield trace(runs, number, line, split, downsample(points))


def positive_decades(runs: Sequence[Run], lines: Sequence[Line]) -> float:
    """How many factors of ten the positive values span."""
    found = [
        value
        for run in runs
        for records in run.records.values()
        for record in records
        for line in lines
        if (value := line.value(run, record)) is not None and value > 0
    ]
    return math.log10(max(found) / min(found)) if found else 0.0


def trace(
    runs: Sequence[Run], number: int, line: Line, split: str, points: Sequence[Point]
) -> go.Scatter:
    """One curve. Its `meta` says what page.js needs: run, epochs, and whether to smooth it."""
    several, held_out = len(runs) > 1, split == "eval"
    color = run_color(number) if several or line.color is None else line.color
    if held_out and not several and line.color is None:
        color = HELD_OUT
    words = ["held-out" if held_out else "train", line.name, runs[number].name if several else ""]
    dash = "dash" if held_out else "solid"
    if several and line.name == "rejected":
        dash = "dashdot" if held_out else "dot"
    alone = len(points) == 1
    return go.Scatter(
        x=[step for step, _, _ in points],
        y=[six_digits(value) for _, _, value in points],
        name=" ".join(word for word in words if word),
        mode="lines+markers" if held_out or alone else "lines",
        line={"color": color, "width": 2.4 if held_out else 1.5, "dash": dash},
        marker={"color": color, "size": 8, "symbol": "diamond" if held_out else "circle"},
        connectgaps=False,
        hovertemplate="%{y:.3~g}",
        legendgroup=runs[number].name,
        meta={
            "run": number,
            "split": split,
            "smooth": not held_out,
            "epochs": [six_digits(epoch) for _, epoch, _ in points],
        },
    )


def panel(
    runs: Sequence[Run],
    name: str,
    title: str,
    note: str,
    lines: Sequence[Line],
    *,
    unit: str = "",
    log: bool = False,
    from_zero: bool = False,
    line_at: float | None = None,
    tickformat: str | None = None,
) -> Panel | None:
    """Quantities over steps; None where no run has one.

    Args: log: use a logarithmic axis where values span a factor of ten. line_at: a height to mark.
    tickformat: of d3-format, for the height.
    """
    decades = positive_decades(runs, lines) if log else 0.0
    log = decades >= 1
    found = list(traces(runs, lines, log))
    if not found:
        return None
    figure = go.Figure(found, base_layout())
    figure.update_yaxes(title={"text": unit} if unit else None, tickformat=tickformat)
    if log:
        figure.update_yaxes(type="log", dtick="D2" if decades < 3 else 1)
    if unit == "%":
        figure.update_traces(hovertemplate="%{y:.3~g} %")
    elif tickformat:
        figure.update_traces(hovertemplate="%{y:,.0f}")
    elif log or name == "learning-rate":
        figure.update_traces(hovertemplate="%{y:.2e}")
    if from_zero:
        figure.update_yaxes(rangemode="tozero")
    if line_at is not None:
        figure.add_hline(y=line_at, line={"color": GREY, "width": 1, "dash": "dot"})
    key = [(line.name, line.color) for line in lines if line.color]
    if key and len(runs) > 1:
        note, key = f"{note} Rejected: dotted.", []
    return Panel(name, title, note, figure, key)


def win_rate_panel(runs: Sequence[Run]) -> Panel | None:
    """The win rate over the start with its interval as a band; None where no run has one."""
    line = Line("", None, metric("win_rate", 100))
    figure = go.Figure(None, base_layout())
    for number, run in enumerate(runs):
        records = [r for r in run.records["eval"] if r.values.get("win_rate") is not None]
        if not records:
            continue
        steps = [record.step for record in records]
        epochs = [six_digits(record.values.get("epoch")) for record in records]
        for bound, fill in (("low", None), ("high", "tonexty")):
            figure.add_scatter(
                x=steps,
                y=[metric(f"win_rate/{bound}", 100)(run, record) for record in records],
                mode="lines",
                line={"width": 0.5, "color": run_color(number)},
                opacity=0.35,
                fill=fill,
                fillcolor=f"{run_color(number)}2e",
                name=f"{bound} end of the 95 % interval",
                hovertemplate="%{y:.3~g} %",
                meta={"run": number, "split": "eval", "smooth": False, "epochs": epochs},
            )
        points = [(s, e or 0.0, line.value(run, r)) for s, e, r in zip(steps, epochs, records)]
        figure.add_trace(trace(runs, number, line, "eval", points))
        figure.data[-1].update(hovertemplate="%{y:.3~g} %")
    if not figure.data:
        return None
    figure.update_yaxes(title={"text": "%"}, range=[0, 100])
    figure.add_hline(y=50, line={"color": GREY, "width": 1, "dash": "dot"})
    note = (
        "Against the answers before training: a win counts 1, a tie a half, and the same answer is "
        "a tie. 50 % (dotted) is no change."
    )
    return Panel("win-rate", "Win rate over the start", note, figure, wide=True)


def learning_panels(runs: Sequence[Run]) -> list[Panel]:
    """Loss, accuracy, margins and rewards over steps: the paper's Figure 3 and what is beside."""
    dpo = any(run.is_dpo for run in runs)
    loss_note = (
        "Mean over pairs. Where the loss has a reference, it starts at what a model that prefers "
        "neither response has (dotted)."
        if dpo
        else "Mean negative log-likelihood of a target token, in nats."
    )
    start = initial_loss(runs) if all(run.starts_even for run in runs) else None
    found = [
        panel(runs, "loss", "Loss", loss_note, [Line("", None, metric("loss"))], line_at=start),
        panel(
            runs,
            "accuracy",
            "Reward accuracy",
            "Share of pairs whose chosen response has the higher reward. In the Zephyr paper's "
            "Figure 3 (arXiv:2310.16944), train goes to 100 % after an epoch; held-out is what "
            "counts. Step 0, where both rewards of every pair are 0, has no accuracy.",
            [Line("", None, accuracy)],
            unit="%",
        ),
        panel(
            runs,
            "margin",
            "Reward margin",
            "Reward of chosen minus reward of rejected, mean over pairs.",
            [Line("", None, metric("rewards/margins"))],
        ),
        win_rate_panel(runs),
    ]
    return [one for one in found if one]


def initial_loss(runs: Sequence[Run]) -> float | None:
    """The loss at step 0, where all runs have the same."""
    starts = {
        round(value, 4)
        for run in runs
        for record in run.records["train"][:1]
        if record.step == 0 and (value := record.values.get("loss")) is not None
    }
    return starts.pop() if len(starts) == 1 else None


def displacement_panels(runs: Sequence[Run]) -> list[Panel]:
    """Likelihood displacement over steps: each side's log-prob against its start, and rewards."""
    found = [
        panel(
            runs,
            "displacement",
            "Log-probs against their start",
            "Nats a response, mean over pairs. Below 0 (dotted): less likely than before training. "
            "A chosen response that falls is likelihood displacement.",
            [
                Line("chosen", CHOSEN, moved("chosen")),
                Line("rejected", REJECTED, moved("rejected")),
            ],
            unit="nats",
            line_at=0,
        ),
        panel(
            runs,
            "rewards",
            "Rewards of both responses",
            "Beta times the change of the log-prob, or times the log-prob where the loss has no "
            "reference: what the loss sees.",
            [
                Line("chosen", CHOSEN, metric("rewards/chosen")),
                Line("rejected", REJECTED, metric("rewards/rejected")),
            ],
            line_at=0,
        ),
    ]
    return [one for one in found if one]


def optimizer_panels(runs: Sequence[Run]) -> list[Panel]:
    """Gradient norm, update and rate over steps."""
    found = [
        panel(
            runs,
            "grad-norm",
            "Gradient norm",
            "Before clipping.",
            [Line("", None, metric("grad_norm"))],
            log=True,
        ),
        panel(
            runs,
            "update-ratio",
            "Size of an update",
            "Norm of the update divided by the norm of the weights.",
            [Line("", None, metric("update_ratio"))],
            log=True,
        ),
        panel(
            runs,
            "learning-rate",
            "Learning rate",
            "Of the last update before each record.",
            [Line("", None, metric("learning_rate"))],
        ),
    ]
    return [one for one in found if one]


def machine_panels(runs: Sequence[Run]) -> list[Panel]:
    """Throughput, packing, memory and MFU over steps, in units of people."""
    settings: Mapping[str, tuple[str, str, str, float, str]] = {
        "throughput": (
            "Throughput",
            "Packed tokens of all ranks.",
            "tokens_per_second",
            1,
            "tokens / s",
        ),
        "packing": (
            "Packing",
            "Tokens divided by the micro-batches' budget.",
            "packing_efficiency",
            100,
            "%",
        ),
        "memory": ("Memory", "Peak of the fullest rank.", "peak_memory_bytes", 2.0**-30, "GiB"),
        "mfu": ("MFU", "Useful FLOPs as a share of the device's peak.", "mfu", 100, "%"),
    }
    found = [
        panel(
            runs,
            name,
            title,
            note,
            [Line("", None, metric(key, scale))],
            unit=unit,
            from_zero=True,
            tickformat="~s" if name == "throughput" else None,  # 10k
        )
        for name, (title, note, key, scale, unit) in settings.items()
    ]
    return [one for one in found if one]
