"""How well planted flips are found: a table in Markdown, and a figure.

    python experiments/flips/figures.py TABLE.parquet=FLIPPED.jsonl ... [--states STATES.npz]
        [--figure OUT.svg]

TABLE.parquet is what `zephyr pairs RUN --folds 5` wrote for a run on FLIPPED.jsonl, the rows of
plant.py. STATES.npz is what real_states.py wrote: 5 % of its pairs are flipped here, with 20
seeds.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

from zephyr.analysis.folds import fold_suspicion

SEEDS, SHARE = 20, 0.05
Values = np.ndarray


class Figures(NamedTuple):
    """auc: the probability that a flipped pair is more suspected than another one. at_k: of the k
    most suspected pairs, k the number of flips, the share that is flipped. precision, recall: of
    the pairs over 0.5; NaN where the evidence is no probability."""

    auc: float
    at_k: float
    suspected: float
    precision: float
    recall: float


def measure(evidence_P: Values, is_flipped_P: Values, is_probability: bool) -> Figures:
    ranks = ranks_of(evidence_P)
    flips, others = is_flipped_P.sum(), (~is_flipped_P).sum()
    auc = (ranks[is_flipped_P].sum() - flips * (flips + 1) / 2) / (flips * others)
    most = np.argsort(-evidence_P, kind="stable")[:flips]
    nothing = float("nan")
    figures = Figures(auc, is_flipped_P[most].mean(), nothing, nothing, nothing)
    if not is_probability:
        return figures
    suspected_P = evidence_P > 0.5
    hits = (suspected_P & is_flipped_P).sum()
    precision = hits / suspected_P.sum() if suspected_P.any() else nothing
    return figures._replace(suspected=suspected_P.sum(), precision=precision, recall=hits / flips)


def ranks_of(values: Values) -> Values:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def of_table(path: Path, flipped: Path) -> dict[str, Figures]:
    """The figures of each kind of evidence in a table with a row a visit."""
    rows = pq.read_table(path).to_pylist()
    planted = {str(row["id"]) for row in read_lines(flipped) if row.get("planted")}
    first = {row["id"]: row for row in rows if row["visit"] == 0}
    last = {row["id"]: row for row in rows}  # sorted by visit
    is_flipped_P = np.array([id in planted for id in first])

    def column(of: Mapping[str, Mapping[str, object]], name: str) -> Values:
        return np.array([row[name] for row in of.values()], np.float64)

    return {
        "reference margin": measure(-column(first, "ref_margin"), is_flipped_P, False),
        "margin, first visit": measure(-column(first, "rewards/margins"), is_flipped_P, False),
        "margin, last visit": measure(-column(last, "rewards/margins"), is_flipped_P, False),
        "`flip_suspicion`": measure(column(last, "flip_suspicion"), is_flipped_P, True),
        "`flip_suspicion_folds`": measure(column(last, "flip_suspicion_folds"), is_flipped_P, True),
    }


def of_states(path: Path) -> dict[str, Figures]:
    """The mean figures over SEEDS ways to flip pairs whose hidden states are known: a flip turns
    the sign of their difference."""
    difference_PD = np.load(path)["difference_PD"]
    found = []
    for seed in range(SEEDS):
        pairs = len(difference_PD)
        is_flipped_P = np.zeros(pairs, bool)
        flips = np.random.default_rng(seed).choice(pairs, round(SHARE * pairs), replace=False)
        is_flipped_P[flips] = True
        flipped_PD = np.where(is_flipped_P[:, None], -difference_PD, difference_PD)
        suspicion_P = fold_suspicion([flipped_PD], 5)
        found.append(measure(suspicion_P, is_flipped_P, True))
    name = f"`fold_suspicion`, {len(difference_PD)} pairs"
    means = [np.nanmean(of) if np.isfinite(of).any() else np.nan for of in np.array(found).T]
    return {name: Figures(*means)}


def read_lines(path: Path) -> Iterable[dict[str, object]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def markdown(title: str, figures: Mapping[str, Figures]) -> str:
    lines = [
        f"| {title} | AUC | precision at k | suspected | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for name, of in figures.items():
        rest = ["-" if np.isnan(value) else f"{value:.2f}" for value in of[3:]]
        suspected = "-" if np.isnan(of.suspected) else f"{of.suspected:.4g}"
        lines.append(
            f"| {name} | {of.auc:.4f} | {of.at_k:.2f} | {suspected} | {' | '.join(rest)} |"
        )
    return "\n".join(lines)


def draw(path: Path, flipped: Path, out: Path) -> None:
    """Margins of a run's last visits, flipped pairs apart, and precision over recall."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "flips"
    from matplotlib import pyplot

    rows = {row["id"]: row for row in pq.read_table(path).to_pylist()}
    planted = {str(row["id"]) for row in read_lines(flipped) if row.get("planted")}
    is_flipped_P = np.array([id in planted for id in rows])
    margins_P = np.array([row["rewards/margins"] for row in rows.values()])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    bins = np.linspace(margins_P.min(), margins_P.max(), 50)
    left.hist(margins_P[~is_flipped_P], bins, color="#9aa5b1", label="label as it was")
    left.hist(margins_P[is_flipped_P], bins, color="#d9480f", label="flipped label")
    left.axvline(0, color="#1f2933", linewidth=0.8)
    left.set(xlabel="reward margin at the last visit", ylabel="pairs")
    left.legend(frameon=False)
    columns = {"flip_suspicion": "from the ledger", "flip_suspicion_folds": "5 folds"}
    for (name, label), colour in zip(columns.items(), ("#3d7ab8", "#2f9e44")):
        evidence_P = np.array([row[name] for row in rows.values()])
        hits = np.cumsum(is_flipped_P[np.argsort(-evidence_P, kind="stable")])
        counts = np.arange(1, len(hits) + 1)
        right.plot(hits / hits[-1], hits / counts, color=colour, label=label)
    right.set(xlabel="recall", ylabel="precision", ylim=(0, 1.03))
    right.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="TABLE.parquet=FLIPPED.jsonl")
    parser.add_argument("--states", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    pairs = [tuple(map(Path, run.split("="))) for run in options.runs]
    for path, flipped in pairs:
        print(markdown(path.stem, of_table(path, flipped)), end="\n\n")
    if options.states:
        print(markdown(options.states.stem, of_states(options.states)))
    if options.figure:
        draw(*pairs[0], options.figure)


if __name__ == "__main__":
    main()
