"""Decisions on a benchmark's rows become the scores that it publishes.

Shape letters:
    Q  questions
    P  prompts of RewardBench 2's subset Ties
"""

from collections.abc import Mapping, Sequence

import numpy as np

from zephyr.evaluation.questions import Question
from zephyr.evaluation.reward_figures import Figures, reward_decisions, rows_by
from zephyr.evaluation.reward_rows import NEITHER, SECTIONS
from zephyr.evaluation.score import Floats, Ints, Scored
from zephyr.evaluation.statistics import mean_with_interval, share_with_interval

MATH = "math-prm"  # counts as much as all of Reasoning's code, whatever its rows
SUBSETS_2 = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
TIES = "Ties"
# Of the parts of the score of Ties: every better answer above every worse one, in the row with
# several better answers and in its twin with one; the gap to the worse ones wider than the spread
# of the better ones, in the first row and in both; and by how much.
TIES_WEIGHTS = {"tied": 0.3, "ref": 0.3, "preferred": 0.2, "preferred in both": 0.2, "margin": 0.01}


def benchmark_figures(scored: Scored) -> dict[str, Figures]:
    """The figures of each benchmark whose rows were scored, as it publishes them."""
    points_Q = reward_decisions(scored).points_Q
    found: dict[str, Figures] = {}
    for name, rows in rows_by(scored.questions.rows, "benchmark").items():
        questions = [scored.questions.rows[i] for i in rows]
        if name == "RewardBench":
            found[name] = reward_bench(questions, points_Q[rows])
        elif name == "RewardBench 2":
            found[name] = reward_bench_2(questions, points_Q[rows], answers_of(scored, rows))
        elif name == "PandaLM":
            ties = scored.questions.left_out.get(f"a tie: {NEITHER}", 0)
            found[name] = pandalm(points_Q[rows], ties)
    return found


def answers_of(scored: Scored, rows: Ints) -> list[Floats]:
    """The rewards of the answers of each of these questions."""
    counts = [len(question.places) for question in scored.questions.rows]
    ends = np.cumsum(counts)
    return [scored.reward_A[ends[i] - counts[i] : ends[i]] for i in rows]


def reward_bench(questions: Sequence[Question], points_Q: Floats) -> Figures:
    """RewardBench (Lambert et al. 2024, arXiv:2403.13787): its sections, and their mean.

    A section's subsets count by their rows; math-prm counts as much as all code. `score` is the
    mean of the four sections, where all four have rows. The leaderboard adds a fifth, of other
    data sets (Prior Sets, with half the weight), which is left out here.
    """
    subsets = {name: points_Q[rows] for name, rows in rows_by(questions, "source").items()}
    figures: Figures = {}
    for section, names in SECTIONS.items():
        rows = {name: len(subsets[name]) for name in names if name in subsets}
        if not rows:
            continue
        weights = dict(rows)
        if MATH in rows and len(rows) > 1:
            weights[MATH] = sum(rows.values()) - rows[MATH]
        shares = {name: share_with_interval("share", subsets[name].tolist()) for name in rows}
        figures[section] = weighted_mean(shares, weights)
    if len(figures) == len(SECTIONS):
        figures["score"] = weighted_mean(dict(figures), dict.fromkeys(figures, 1))
    return figures


def weighted_mean(
    parts: Mapping[str, Mapping[str, object]], weights: Mapping[str, float]
) -> dict[str, object]:
    """The weighted mean of independent shares, in their form. Its interval is that of a normal
    distribution, within 0 and 1."""
    total = sum(weights.values())
    mean = sum(weights[name] / total * number(part["share"]) for name, part in parts.items())
    errors = [weights[name] / total * number(part["stderr"]) for name, part in parts.items()]
    stderr = float(np.linalg.norm(errors))
    low, high = max(0.0, mean - 1.96 * stderr), min(1.0, mean + 1.96 * stderr)
    rows = sum(int(number(part["n"])) for part in parts.values())
    return {"share": mean, "n": rows, "stderr": stderr, "ci95": [low, high]}


def number(value: object) -> float:
    """A number of a figure; 0 where so few values have none."""
    return float(value) if isinstance(value, (int, float)) else 0.0


def reward_bench_2(
    questions: Sequence[Question], points_Q: Floats, rewards: Sequence[Floats]
) -> Figures:
    """RewardBench 2 (Malik et al. 2025, arXiv:2506.01937): its subsets, and their mean.

    A row of a subset counts where its one chosen answer has the highest reward of all; where
    several answers have it, it counts by their number. Ties: `ties_scores`. `score` is the mean of
    the six subsets, where all six have rows.
    """
    figures: Figures = {}
    for subset, rows in rows_by(questions, "source").items():
        if subset == TIES:
            scores = ties_scores([questions[i] for i in rows], [rewards[i] for i in rows])
            figures[subset] = mean_with_interval("share", scores)
        else:
            figures[subset] = share_with_interval("share", points_Q[rows].tolist())
    if set(SUBSETS_2) == set(figures) and figures[TIES]["share"] is not None:
        figures["score"] = weighted_mean(dict(figures), dict.fromkeys(figures, 1))
    return figures


def ties_scores(questions: Sequence[Question], rewards: Sequence[Floats]) -> list[float]:
    """The score of each prompt of RewardBench 2's subset Ties, whose mean is that of the subset.

    A prompt has two rows: `tied:N` with several better answers, `ref:N` with one of them. With the
    gap (lowest better reward less the highest worse one) and the spread (highest better reward less
    the lowest), the parts of `TIES_WEIGHTS` are, as in `process_single_model` of the benchmark's
    own package: gap > 0 in each row; gap > spread in the tied row, and for the smaller gap of both
    rows; tanh(that gap / spread - 1). A prompt of which one row is missing has no score.
    """
    gaps: dict[str, dict[str, float]] = {"ref": {}, "tied": {}}
    spreads: dict[str, float] = {}
    for question, reward in zip(questions, rewards):
        kind, _, prompt = question.id.partition(":")
        better, worse = reward[: question.better], reward[question.better :]
        if kind in gaps:
            gaps[kind][prompt] = float(better.min() - worse.max())
        if kind == "tied":
            spreads[prompt] = float(better.max() - better.min())
    scores = []
    for prompt in (prompt for prompt in gaps["tied"] if prompt in gaps["ref"]):
        tied, ref, spread = gaps["tied"][prompt], gaps["ref"][prompt], spreads[prompt]
        smaller = min(tied, ref)
        # The limit where all better answers have one reward; 0 where the gap is 0 too.
        margin = np.tanh(smaller / spread - 1) if spread else np.sign(smaller)
        parts = {
            "tied": tied > 0,
            "ref": ref > 0,
            "preferred": tied > spread,
            "preferred in both": smaller > spread,
            "margin": margin,
        }
        scores.append(float(sum(TIES_WEIGHTS[name] * part for name, part in parts.items())))
    return scores


def pandalm(points_Q: Floats, ties: int) -> Figures:
    """PandaLM (Wang et al. 2023, arXiv:2306.05087): the accuracy over all rows, ties included, as
    in its `compute_metrics.py`. A reward predicts no tie, so each row that is one counts as wrong.

    Args: ties: rows in which the annotators prefer neither response.
    """
    return {"with ties": share_with_interval("share", [*points_Q.tolist(), *[0.0] * ties])}
