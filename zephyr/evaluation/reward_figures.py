"""Scores of answers become accuracies, margins and the published scores of benchmarks.

Shape letters:
    A  answers, those of all questions one after the other
    Q  questions
    P  pairs, or prompts
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from zephyr.evaluation.questions import Question
from zephyr.evaluation.score import Floats, Ints, Scored
from zephyr.evaluation.statistics import (
    length_controlled,
    mean_with_interval,
    share_with_interval,
)

Figure = Mapping[str, object]
Figures = dict[str, Figure]
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of a sum of log-probs, as `losses.reward_accuracy`


class Decisions(NamedTuple):
    """What a score says of each question.

    points_Q: 1 where the highest score is that of a better answer, 0 where it is that of a worse
    one; where both have it, the share of better ones among those that have it: 0.5 in a pair.
    """

    points_Q: Floats
    is_tie_Q: npt.NDArray[np.bool_]
    better_Q: Ints  # the better answer with the highest score, as a number of all answers
    worse_Q: Ints  # the worse answer with the highest score

    def margin_of(self, value_A: Floats) -> Floats:
        """A value of the one less that of the other, for each question."""
        margin_Q: Floats = value_A[self.better_Q] - value_A[self.worse_Q]
        return margin_Q


def decide(score_A: Floats, rounding_A: Floats, questions: Sequence[Question]) -> Decisions:
    """Compare the answers of each question.

    Args:
        rounding_A: how far each score may be off: scores that differ by less are equal.
    """
    counts_Q = np.array([len(question.places) for question in questions])
    question_A = np.repeat(np.arange(len(questions)), counts_Q)
    number_A = np.arange(len(score_A)) - np.repeat(np.cumsum(counts_Q) - counts_Q, counts_Q)
    better_A = number_A < np.array([question.better for question in questions])[question_A]
    order_A = np.lexsort((score_A, 2 * question_A + better_A))  # by question, side and score
    ends = np.flatnonzero(np.diff((2 * question_A + better_A)[order_A], append=-1))
    worse_Q, better_Q = order_A[ends].reshape(-1, 2).T  # each question has some of both
    margin_Q = score_A[better_Q] - score_A[worse_Q]
    rounding_Q = rounding_A[better_Q] + rounding_A[worse_Q]
    is_tie_Q = np.abs(margin_Q) <= rounding_Q
    top_Q = np.maximum(score_A[better_Q], score_A[worse_Q])
    at_top_A = score_A >= (top_Q - rounding_Q)[question_A]
    at_top_Q = np.bincount(question_A, at_top_A)
    share_Q = np.bincount(question_A, at_top_A & better_A) / at_top_Q
    points_Q = np.where(is_tie_Q, share_Q, (margin_Q > 0).astype(float))
    return Decisions(points_Q, is_tie_Q, better_Q, worse_Q)


def reward_decisions(scored: Scored) -> Decisions:
    """Decisions by the implicit reward; without a reference, by log p."""
    questions, ref_logp_A = scored.questions.rows, scored.ref_logp_A
    if ref_logp_A is None:
        return decide(scored.logp_A, ROUNDING * np.abs(scored.logp_A), questions)
    return decide_by_reward(scored.logp_A, ref_logp_A, questions, beta=scored.beta)


def decide_by_reward(
    logp_A: Floats, ref_logp_A: Floats, questions: Sequence[Question], *, beta: float
) -> Decisions:
    rounding_A = ROUNDING * beta * (np.abs(logp_A) + np.abs(ref_logp_A))
    return decide(beta * (logp_A - ref_logp_A), rounding_A, questions)


def preference_figures(
    questions: Sequence[Question],
    logp_A: Floats,
    tokens_A: Ints,
    ref_logp_A: Floats | None = None,
    *,
    beta: float = 0.1,
) -> Figures:
    """Figures of all questions with their 95 % intervals.

    Without a reference, those of rewards are left out. The loss, which is that of pairs, is left
    out where a question has more than two answers.

    Args:
        logp_A: log p of each answer, in nats.
        tokens_A: tokens of each answer.
        ref_logp_A: log p under the reference.
    """
    figures: Figures = {}
    if ref_logp_A is not None:
        by_reward = decide_by_reward(logp_A, ref_logp_A, questions, beta=beta)
        margin_Q = by_reward.margin_of(beta * (logp_A - ref_logp_A))
        points, longer = by_reward.points_Q.tolist(), by_reward.margin_of(tokens_A.astype(float))
        if all(len(question.places) == 2 for question in questions):
            figures["loss"] = mean_with_interval("mean", np.logaddexp(0, -margin_Q).tolist())
        figures["reward margin"] = mean_with_interval("mean", margin_Q.tolist())
        figures["implicit reward accuracy"] = share_with_interval("share", points)
        figures["the same at equal lengths"] = length_controlled(points, longer.tolist())
    rounding_A = ROUNDING * np.abs(logp_A)
    scores = {
        "chosen is the likelier": (logp_A, rounding_A),
        "chosen is the likelier a token": (logp_A / tokens_A, rounding_A / tokens_A),
        "chosen is the longer": (tokens_A.astype(float), np.zeros(len(tokens_A))),
    }
    for name, (score_A, off_A) in scores.items():
        points = decide(score_A, off_A, questions).points_Q.tolist()
        figures[name] = share_with_interval("share", points)
    return figures


def figures_by_source(scored: Scored) -> dict[str, Figures]:
    """The accuracy, and the mean margin, of each source's questions, sources in the order of the
    rows. Without a reference, those of log p."""
    decisions = reward_decisions(scored)
    margin_Q = decisions.margin_of(scored.reward_A)
    found: dict[str, Figures] = {}
    for source, rows in rows_by(scored.questions.rows, "source").items():
        found[source] = {
            "accuracy": share_with_interval("share", decisions.points_Q[rows].tolist()),
            "margin": mean_with_interval("mean", margin_Q[rows].tolist()),
        }
    return found


def rows_by(
    questions: Sequence[Question], field: Literal["source", "benchmark"]
) -> dict[str, Ints]:
    """The numbers of the questions with each value of a field."""
    found: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        found.setdefault(getattr(question, field), []).append(number)
    return {value: np.array(numbers) for value, numbers in found.items()}


def pair_questions(count: int) -> list[Question]:
    """So many pairs as questions; their answers are chosen and rejected of each in turn."""
    return [Question(str(i), "", 1, [(i, 0), (i, 1)], "") for i in range(count)]
