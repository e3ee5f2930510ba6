"""Records of a quickstart become the figure of the README, as SVG.

    python experiments/figure.py                                   the committed records
    python experiments/figure.py runs/tiny --out mine.svg          those of your own run

Left: rewards of dDPO over its steps, a line for the training pairs of each record and dots for the
held-out ones, `dpo/metrics.jsonl`. Right: the judge's score of the base,
dSFT and dDPO models by family of prompts, with 95 % intervals, `eval/results.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
RECORDS, FIGURE = HERE / "quickstart", HERE / "quickstart.svg"
WIDTH, HEIGHT, TOP, BOTTOM = 960, 380, 86, 330
INK, GREY, FAINT = "#1f2933", "#616e7c", "#e4e7eb"
COLOURS = {"base": "#9aa5b1", "dSFT": "#3d7ab8", "dDPO": "#d9480f"}
REWARDS = {
    "rewards/chosen": ("chosen", "#2f9e44"),
    "rewards/margins": ("margin", "#d9480f"),
    "rewards/rejected": ("rejected", "#7048e8"),
}
FAMILIES = {
    "cheerful": "a cheerful answer",
    "description": "a description",
    "one_word": "one word",
    "reason": "a reason",
    "private": "what nobody can know",
}
Record = Mapping[str, float]
Score = Mapping[str, object]


class Axis(NamedTuple):
    """A linear scale: values `low` to `high` lie at pixels `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> str:
        share = (value - self.low) / (self.high - self.low)
        return f"{self.start + share * (self.end - self.start):.1f}"


def text(
    x: float | str, y: float | str, words: str, *, size: int = 13, colour: str = INK, more: str = ""
) -> str:
    style = f'x="{x}" y="{y}" font-size="{size}" fill="{colour}"'
    return f"<text {style} {more}>{escape(words)}</text>".replace(" >", ">")


def line(x1: float | str, y1: float | str, x2: float | str, y2: float | str, colour: str) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}"/>'


def dot(x: str, y: str, radius: float, colour: str) -> str:
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}"/>'


def rewards(records: Sequence[Record], evaluations: Sequence[Record]) -> list[str]:
    """The rewards over steps: of the training pairs as lines, of the held-out ones as dots."""
    values = [record[name] for record in [*records, *evaluations] for name in REWARDS]
    step_axis = Axis(0, records[-1]["step"] + 1, 62, 350)
    value_axis = Axis(min(-0.06, *values), max(0.12, *values), BOTTOM, TOP + 10)
    parts = [
        text(
            62, TOP - 22, "dDPO: rewards (line: training, dots: held-out)", more='font-weight="600"'
        )
    ]
    for tick in (-0.05, 0.0, 0.05, 0.10):
        y = value_axis.at(tick)
        parts.append(line(62, y, 350, y, GREY if tick == 0 else FAINT))
        parts.append(
            text(54, y, f"{tick:.2f}", size=12, colour=GREY, more='text-anchor="end" dy="4"')
        )
    for tick in range(0, int(records[-1]["step"]) + 1, 30):
        x = step_axis.at(tick)
        parts.append(
            text(x, BOTTOM + 20, f"{tick}", size=12, colour=GREY, more='text-anchor="middle"')
        )
    parts.append(text(206, BOTTOM + 40, "step", size=12, colour=GREY, more='text-anchor="middle"'))
    for name, (label, colour) in REWARDS.items():
        points = [(step_axis.at(r["step"]), value_axis.at(r[name])) for r in records]
        path = " ".join(f"{x},{y}" for x, y in points)
        style = f'fill="none" stroke="{colour}" stroke-opacity="0.6"'
        parts.append(f'<polyline points="{path}" {style}/>')
        held_out = [(step_axis.at(r["step"]), value_axis.at(r[name])) for r in evaluations]
        parts += [dot(x, y, 4, colour) for x, y in held_out]
        y = (held_out or points)[-1][1]
        parts.append(text(362, y, label, colour=colour, more='dy="4"'))
    return parts


def scores(results: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """One row a family: a dot for the mean score of each model, a bar for its interval."""
    score_axis = Axis(1, 10, 640, 930)
    rows = [*FAMILIES.values(), "all prompts"]
    row_axis = Axis(0, len(rows) - 1, TOP + 26, BOTTOM - 14)
    title = "The judge's score of held-out answers, 1 to 10, 95 % intervals"
    parts = [text(456, TOP - 22, title, more='font-weight="600"')]
    for tick in (1, 4, 7, 10):
        x = score_axis.at(tick)
        parts.append(line(x, TOP, x, BOTTOM, FAINT))
        parts.append(
            text(x, BOTTOM + 20, f"{tick}", size=12, colour=GREY, more='text-anchor="middle"')
        )
    for row, (name, words) in enumerate({**FAMILIES, "all": "all prompts"}.items()):
        y = row_axis.at(row)
        bold = 'font-weight="600" ' if name == "all" else ""
        parts.append(text(628, y, words, more=f'{bold}text-anchor="end" dy="4"'))
        parts.append(line(640, y, 930, y, FAINT))
        for place, (model, colour) in enumerate(COLOURS.items()):
            of_model = f"{float(y) + 8 * (place - 1):.1f}"
            parts += scored(results[name][model], score_axis, of_model, colour)
    for i, (model, colour) in enumerate(COLOURS.items()):
        x = 660 + 90 * i
        parts.append(dot(str(x), str(BOTTOM + 36), 5, colour))
        parts.append(text(x + 10, BOTTOM + 40, model, size=12))
    return parts


def scored(score: Score, axis: Axis, y: str, colour: str) -> list[str]:
    low, high = score["ci95"]
    bar = f'<line x1="{axis.at(low)}" y1="{y}" x2="{axis.at(high)}" y2="{y}" '
    return [
        bar + f'stroke="{colour}" stroke-width="4" stroke-opacity="0.4"/>',
        dot(axis.at(score["score"]), y, 4, colour),
    ]


def figure(folder: Path) -> str:
    """The SVG. Args: folder: as `runs/tiny`, with dpo/metrics.jsonl and eval/results.json."""
    lines = (folder / "dpo" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["split"] == "train"]
    found = json.loads((folder / "eval" / "results.json").read_text(encoding="utf-8"))
    evaluations = [record for record in map(json.loads, lines) if record["split"] == "eval"]
    accuracy = f"{evaluations[-1]['rewards/accuracies']:.0%}"
    heading = "make quickstart: base model, dSFT, AI feedback, dDPO in minutes on two CPU cores"
    note = f"reward accuracy on held-out pairs after the last step: {accuracy}".replace("%", " %")
    fonts = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{fonts}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {shape}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        text(28, 34, heading, size=17, more='font-weight="600"'),
        *rewards(records, evaluations),
        text(62, TOP - 4, note, size=12, colour=GREY),
        *scores(tables(found)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def tables(results: Mapping[str, object]) -> dict[str, Mapping[str, Score]]:
    """Family of prompts -> model -> its score; `all` is over all of them."""
    models = results["models"]
    by_family = {name: {model: models[model]["by"][name] for model in COLOURS} for name in FAMILIES}
    return {**by_family, "all": {model: models[model] for model in COLOURS}}


def command(description: str, figure: Callable[[Path], str], records: Path, out: Path) -> None:
    """`python SCRIPT.py [FOLDER] [--out FILE]`: write the figure of a folder of records."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, nargs="?", default=records)
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    options.out.write_text(figure(options.folder), encoding="utf-8")
    print(options.out)


if __name__ == "__main__":
    command("draw the figure of the README", figure, RECORDS, FIGURE)
