"""The figures of experiments/findings.py as tables and as one SVG.

    python experiments/findings_figure.py                                          those stored here
    python experiments/findings_figure.py runs/findings/results.json --out mine.svg      your own

Prints the tables of the entry 2026-11-27-paper-findings.md, and draws: Table 3 of the paper beside
ours; accuracy and the judge's score over epochs (its Figure 3); beta; losses. A mark is the mean of
the seeds, a bar goes from the lowest seed to the highest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from figure import FAINT, GREY, INK, Axis, dot, line, text

HERE = Path(__file__).resolve().parent
RESULTS, FIGURE = HERE / "findings" / "results.json", HERE / "findings" / "findings.svg"
WIDTH, HEIGHT = 960, 860
OURS, PAPERS, HELD_OUT = "#d9480f", "#9aa5b1", "#3d7ab8"
Json = Mapping[str, object]
Seeds = Mapping[str, Mapping]  # the figures of each seed

# MT-Bench, 1 to 10, and AlpacaEval, win rate in % with standard error: arXiv:2310.16944, Table 3
PAPER = {
    "dDPO-without-dSFT": (4.76, "30.76 (1.63)"),
    "dSFT-1": (6.64, "85.65 (1.23)"),
    "dSFT-2": (6.19, "78.54 (1.44)"),
    "dDPO": (7.00, "86.07 (1.22)"),
}
MODELS = {
    "dDPO-without-dSFT": "dDPO without dSFT",
    "dSFT-1": "dSFT",
    "dSFT-2": "dSFT, then SFT on chosen",
    "dDPO": "dSFT, then dDPO",
}
CURVES = {
    "long": "1,500 pairs, rate 1.5e-5",
    "fast": "1,500 pairs, rate 1.5e-4",
    "few": "128 pairs, rate 1.5e-4",
}


class Over(NamedTuple):
    """A number over the seeds."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def over(values: Sequence[float]) -> Over:
    return Over(mean(values), min(values), max(values))


def each(seeds: Seeds, value: Callable[[Mapping], float]) -> Over:
    """A number of each seed's figures, over the seeds."""
    return over([value(found) for found in seeds.values()])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in lines) + "\n"


def win_rate_over_dsft(found: Mapping, model: str) -> float:
    """Points of a model of Table 3 against dSFT, a tie half a point."""
    pairs = found["pairs"]
    if model == "dSFT-1":
        return 0.5
    if f"{model} over dSFT-1" in pairs:
        return pairs[f"{model} over dSFT-1"]["win_rate"]
    return 1 - pairs[f"dSFT-1 over {model}"]["win_rate"]


def table_3(seeds: Seeds) -> str:
    """Rows of models: the paper's two benchmarks, our score of each seed, our win rate."""
    rows = []
    for name, label in MODELS.items():
        score, alpaca = PAPER[name]
        ours = [of["models"][name] for of in seeds.values()]
        scores = [f"{s['score']:.2f} [{s['ci95'][0]:.2f}, {s['ci95'][1]:.2f}]" for s in ours]
        win_rate = each(seeds, lambda found, name=name: win_rate_over_dsft(found, name))
        rows.append([label, f"{score:.2f}", alpaca, *scores, win_rate])
    head = ["model", "MT-Bench, paper", "AlpacaEval, paper"]
    head += [f"score, seed {seed}" for seed in seeds]
    return table([*head, "win rate over dSFT"], rows)


def last(run: str) -> Callable[[Mapping], Mapping]:
    """A run's last judgement."""
    return lambda found: found["runs"][run]["judged"][-1]


def curve_table(seeds: Seeds, run: str) -> str:
    """Rows of epochs: accuracy in training, then of held-out pairs accuracy, margin and the chosen
    answers' reward, then score and win rate."""
    first = next(iter(seeds.values()))["runs"][run]
    per_epoch = first["held_out"][-1]["step"] / first["epochs"]
    rows = []
    for i, judged in enumerate(first["judged"]):
        rows.append([f"{judged['step'] / per_epoch:.0f}"])
        for value in (
            lambda of, i=i: of["train"][i]["accuracy"],
            lambda of, i=i: of["held_out"][i]["accuracies"],
            lambda of, i=i: of["held_out"][i]["margins"],
            lambda of, i=i: of["held_out"][i]["chosen"],
            lambda of, i=i: of["judged"][i]["score"],
            lambda of, i=i: of["judged"][i]["over dSFT-1"]["win_rate"],
        ):
            rows[-1].append(each(seeds, lambda found, value=value: value(found["runs"][run])))
    head = ["epoch", "training accuracy", "held-out accuracy", "margin", "chosen reward", "score"]
    return table([*head, "win rate over dSFT"], rows)


def sweep_table(seeds: Seeds, runs: Mapping[str, str]) -> str:
    """Rows of settings: accuracy and margin of held-out pairs, score, win rate."""
    rows = []
    for run, label in runs.items():
        rows.append(
            [
                label,
                each(seeds, lambda of, run=run: of["runs"][run]["held_out"][-1]["accuracies"]),
                each(seeds, lambda of, run=run: of["runs"][run]["held_out"][-1]["margins"]),
                each(seeds, lambda of, run=run: last(run)(of)["score"]),
                each(seeds, lambda of, run=run: last(run)(of)["over dSFT-1"]["win_rate"]),
            ]
        )
    head = ("setting", "held-out accuracy", "margin", "score", "win rate over dSFT")
    return table(head, rows)


def sweeps(seeds: Seeds) -> tuple[dict[str, str], dict[str, str]]:
    """Runs and labels of the sweep over beta, and of that over losses."""
    runs = next(iter(seeds.values()))["runs"]
    names = [name for name in runs if name not in CURVES]
    betas = {name: f"beta {name[5:]}" for name in names if name.startswith("beta-")}
    losses = {name: name for name in names if name not in betas}
    return betas, ({"beta-0.1": "sigmoid", **losses} if losses else {})


def whisker(axis: Axis, y: float, found: Over, colour: str) -> list[str]:
    """A horizontal bar from the lowest to the highest seed, a dot at the mean."""
    low, high, at = axis.at(found.low), axis.at(found.high), f"{y:.1f}"
    bar = f'<line x1="{low}" y1="{at}" x2="{high}" y2="{at}" stroke="{colour}" '
    return [
        bar + 'stroke-width="5" stroke-opacity="0.4"/>',
        dot(axis.at(found.mean), at, 4, colour),
    ]


def score_rows(
    seeds: Seeds,
    rows: Sequence[tuple[str, Over, float | None]],
    title: str,
    box: tuple[float, float, float, float],
) -> list[str]:
    """A panel of horizontal rows: label, our score, and the paper's where there is one.

    Args: box: left end of the axis, its right end, top and bottom of the rows.
    """
    left, right, top, bottom = box
    axis = Axis(1, 10, left, right)
    parts = [text(left - 172, top - 26, title, more='font-weight="600"')]
    for tick in (1, 4, 7, 10):
        x = axis.at(tick)
        parts.append(line(x, top - 10, x, bottom, FAINT))
        parts.append(tick_text(x, bottom + 16, f"{tick}"))
    start = each(seeds, lambda found: found["models"]["dSFT-1"]["score"]).mean
    dashes = line(axis.at(start), top - 10, axis.at(start), bottom, GREY)
    parts.append(dashes.replace("/>", ' stroke-dasharray="3 3"/>'))
    step = (bottom - top) / len(rows)
    for i, (label, found, papers) in enumerate(rows):
        y = top + step * (i + 0.4)
        parts.append(text(left - 10, f"{y:.1f}", label, size=12, more='text-anchor="end" dy="4"'))
        if papers is not None:
            parts.append(dot(axis.at(papers), f"{y + 9:.1f}", 4, PAPERS))
        parts += whisker(axis, y, found, OURS)
    return parts


def tick_text(x: float | str, y: float | str, words: str, anchor: str = "middle") -> str:
    return text(x, y, words, size=11, colour=GREY, more=f'text-anchor="{anchor}"')


def path(points: Sequence[tuple[str, str]], colour: str, more: str = "") -> str:
    joined = " ".join(f"{x},{y}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2" {more}/>'


def curve_panel(seeds: Seeds, run: str, left: float, top: float, width: float) -> list[str]:
    """Accuracies over epochs, and under them the judge's score."""
    of_seeds = [found["runs"][run] for found in seeds.values()]
    epochs = of_seeds[0]["epochs"]
    steps = of_seeds[0]["held_out"][-1]["step"]
    x_axis = Axis(0, steps, left, left + width)
    upper, lower = Axis(0.7, 1, top + 130, top + 10), Axis(1, 10, top + 280, top + 160)
    parts = [text(left, top - 8, CURVES[run], size=12, more='font-weight="600"')]
    for axis, ticks, form in (
        (upper, (0.7, 0.8, 0.9, 1.0), "{:.1f}"),
        (lower, (1, 4, 7, 10), "{}"),
    ):
        for tick in ticks:
            parts.append(line(left, axis.at(tick), left + width, axis.at(tick), FAINT))
            y = f"{float(axis.at(tick)) + 4:.1f}"
            parts.append(tick_text(left - 6, y, form.format(tick), "end"))
    for part in range(5):
        x = x_axis.at(steps * part / 4)
        parts.append(tick_text(x, top + 298, f"{epochs * part / 4:.0f}"))
    parts.append(tick_text(left + width / 2, top + 314, "epoch"))
    for y, words in ((upper.at(0.71), "accuracy"), (lower.at(1.3), "score")):
        parts.append(tick_text(left + width, y, words, "end"))
    for of in of_seeds:
        train = [(x_axis.at(r["step"]), upper.at(max(0.7, r["accuracy"]))) for r in of["train"]]
        held_out = [
            (x_axis.at(r["step"]), upper.at(max(0.7, r["accuracies"]))) for r in of["held_out"]
        ]
        start = {"step": 0, "score": of["start"]}
        scores = [(x_axis.at(r["step"]), lower.at(r["score"])) for r in [start, *of["judged"]]]
        for points, colour in ((train, INK), (held_out, HELD_OUT), (scores, OURS)):
            parts.append(path(points, colour, 'stroke-opacity="0.75"'))
    return parts


def figure(results: Json) -> str:
    """The SVG of `results.json`."""
    seeds = with_starts(results["seeds"])
    betas, losses = sweeps(seeds)
    fonts = "system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"
    shape = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-family="{fonts}"'
    heading = "make findings: what the Zephyr paper found, tried in the embedded world"
    note = f"Score: the judge's, 1 to 10, on held-out prompts. Mean of {len(seeds)} seeds; bars: "
    note += "lowest to highest seed; dashed: dSFT. Grey: MT-Bench in the paper's Table 3."
    of_table = [
        (
            label,
            each(seeds, lambda found, name=name: found["models"][name]["score"]),
            PAPER[name][0],
        )
        for name, label in MODELS.items()
    ]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {shape}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="8" fill="#ffffff"/>',
        text(28, 34, heading, size=17, more='font-weight="600"'),
        text(28, 56, note, size=12, colour=GREY),
        *score_rows(seeds, of_table, "Table 3", (200, 450, 116, 280)),
    ]
    for runs, title, box in (
        (betas, "beta, sigmoid loss, rate 1.5e-4", (200, 450, 356, 460)),
        (losses, "Losses, rate 1.5e-4", (670, 920, 116, 460)),
    ):
        rows = [
            (label, each(seeds, lambda of, run=run: last(run)(of)["score"]), None)
            for run, label in runs.items()
        ]
        parts += score_rows(seeds, rows, title, box) if rows else []
    title = (
        "Figure 3: accuracy in training (black) and held out (blue); score (orange). A line a seed"
    )
    parts.append(text(28, 516, title, more='font-weight="600"'))
    for i, run in enumerate(CURVES):
        parts += curve_panel(seeds, run, 62 + 310 * i, 544, 260)
    return "\n".join([*parts, "</svg>"]) + "\n"


def with_starts(seeds: Seeds) -> Seeds:
    """Each run with the score that it starts from, dSFT's."""
    return {
        seed: {
            **found,
            "runs": {
                name: {**run, "start": found["models"]["dSFT-1"]["score"]}
                for name, run in found["runs"].items()
            },
        }
        for seed, found in seeds.items()
    }


def tables(results: Json) -> dict[str, str]:
    """Every table of the entry, by name."""
    seeds: Seeds = results["seeds"]  # type: ignore[assignment]
    betas, losses = sweeps(seeds)
    found = {"Table 3": table_3(seeds)}
    found |= {f"Figure 3, {label}": curve_table(seeds, run) for run, label in CURVES.items()}
    if betas:
        found |= {"beta": sweep_table(seeds, betas), "losses": sweep_table(seeds, losses)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--out", type=Path, default=FIGURE)
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    for name, words in tables(results).items():
        print(f"{name}\n\n{words}")
    options.out.write_text(figure(results), encoding="utf-8")
    print(f"figure: {options.out}")


if __name__ == "__main__":
    main()
