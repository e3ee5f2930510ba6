"""Evaluations of a beta sweep become the figure of its entry in the lab log, as SVG.

    python experiments/sweep_figure.py                                   the committed records
    python experiments/sweep_figure.py runs/tiny/sweep --out mine.svg    those of your own sweep

Three panels over steps, on held-out pairs, a line a run: reward margin, accuracy, log-prob of the
chosen responses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from figure import FAINT, GREY, Axis, command, dot, line, text

HERE = Path(__file__).resolve().parent
RECORDS, FIGURE = HERE / "sweep", HERE / "sweep" / "sweep.svg"
WIDTH, HEIGHT, TOP, BOTTOM, PANEL = 960, 320, 92, 264, 300
COLOURS = ("#7048e8", "#d9480f", "#2f9e44", "#3d7ab8", "#9aa5b1")
METRICS = {
    "rewards/margins": "reward margin",
    "rewards/accuracies": "reward accuracy",
    "logps/chosen": "log-prob of the chosen responses",
}
Records = Mapping[str, Sequence[Mapping[str, float]]]  # of each run, its evaluations


def read(folder: Path) -> dict[str, list[Mapping[str, float]]]:
    """The evaluations of each run in the folder, by the run's name."""
    runs = {}
    for path in sorted(folder.glob("*/metrics.jsonl")):
        records = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
        runs[path.parent.name] = [record for record in records if record["split"] == "eval"]
    return runs


def ticks(low: float, high: float) -> list[float]:
    """About four round numbers between the two."""
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = min((unit * n for n in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def panel(runs: Records, metric: str, left: float) -> list[str]:
    """One metric over steps. An accuracy at step 0 is left out: all margins are 0 there."""
    drawn = {
        name: [(r["step"], r[metric]) for r in rows if metric != "rewards/accuracies" or r["step"]]
        for name, rows in runs.items()
    }
    values = [value for points in drawn.values() for _, value in points]
    last = max(step for points in drawn.values() for step, _ in points)
    steps = Axis(0, last, left + 46, left + PANEL - 20)
    heights = Axis(min(values), max(values), BOTTOM, TOP + 8)
    parts = [text(left + 8, TOP - 12, METRICS[metric], more='font-weight="600"')]
    for tick in ticks(min(values), max(values)):
        y = heights.at(tick)
        parts.append(line(left + 46, y, left + PANEL - 20, y, FAINT))
        label = f"{tick:.4g}"
        parts.append(
            text(left + 40, y, label, size=12, colour=GREY, more='text-anchor="end" dy="4"')
        )
    for tick in range(0, int(last) + 1, 40):
        x = steps.at(tick)
        parts.append(
            text(x, BOTTOM + 20, f"{tick}", size=12, colour=GREY, more='text-anchor="middle"')
        )
    for points, colour in zip(drawn.values(), COLOURS):
        places = [(steps.at(step), heights.at(value)) for step, value in points]
        path = " ".join(f"{x},{y}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [dot(x, y, 2.5, colour) for x, y in places]
    return parts


def figure(folder: Path) -> str:
    """The SVG. Args: folder: as `runs/tiny/sweep`, with a run folder for each line."""
    runs = read(folder)
    fonts = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{fonts}"'
    heading = "make sweep: held-out pairs over the steps of dDPO"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {shape}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        text(28, 34, heading, size=17, more='font-weight="600"'),
    ]
    for i, (name, colour) in enumerate(zip(runs, COLOURS)):
        parts.append(dot(str(36 + 130 * i), "55", 5, colour))
        parts.append(text(46 + 130 * i, 59, name.replace("-", " ", 1), size=13))
    for i, metric in enumerate(METRICS):
        parts += panel(runs, metric, 20 + (PANEL + 10) * i)
    parts.append(
        text(WIDTH / 2, BOTTOM + 42, "step", size=12, colour=GREY, more='text-anchor="middle"')
    )
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    command("draw the figure of the sweep's entry", figure, RECORDS, FIGURE)
