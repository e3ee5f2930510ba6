"""Scores become a table, a row a question, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from zephyr.evaluation.reward_benchmarks import benchmark_figures
from zephyr.evaluation.reward_figures import (
    Figure,
    Figures,
    figures_by_source,
    preference_figures,
    reward_decisions,
)
from zephyr.evaluation.score import Scored, TokenScores
from zephyr.evaluation.score_settings import Settings
from zephyr.evaluation.token_texts import decoded, token_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LISTED = 5  # bad rows that are printed


def score_table(
    scored: Scored, tokenizer: PreTrainedTokenizerBase, *, per_token: bool = False
) -> pa.Table:
    """A row a question; `chosen` is its better answer with the highest reward, `rejected` the worse
    one, and `correct` is 1, 0 or, where several answers have the highest reward, a share.

    Columns of rewards are there with a reference, `rewards/answers` where a question has more than
    two answers. per_token: also lists of the tokens' texts and log-probs.
    """
    questions, decisions = scored.questions.rows, reward_decisions(scored)
    sides = {"chosen": decisions.better_Q, "rejected": decisions.worse_Q}
    columns: dict[str, object] = {
        "id": [question.id for question in questions],
        "source": [question.source for question in questions],
        "prompt_tokens": scored.questions.pairs.prompt_tokens[
            [question.places[0][0] for question in questions]
        ],
    }
    for side, answer_Q in sides.items():
        columns[f"{side}_tokens"] = scored.tokens_A[answer_Q]
    for side, answer_Q in sides.items():
        columns[f"logps/{side}"] = scored.logp_A[answer_Q]
    if scored.ref_logp_A is not None:
        for side, answer_Q in sides.items():
            columns[f"ref_logps/{side}"] = scored.ref_logp_A[answer_Q]
        for side, answer_Q in sides.items():
            columns[f"rewards/{side}"] = scored.reward_A[answer_Q]
        columns["rewards/margins"] = decisions.margin_of(scored.reward_A)
    columns["correct"] = decisions.points_Q
    if any(len(question.places) > 2 for question in questions):
        rewards = iter(scored.reward_A.tolist())
        columns["rewards/answers"] = [[next(rewards) for _ in q.places] for q in questions]
    if per_token:
        places = answer_places(scored)
        for side, answer_Q in sides.items():
            of_side = [token_scores(scored, tokenizer, places, int(one)) for one in answer_Q]
            columns[f"token_texts/{side}"] = [one.tokens for one in of_side]
            columns[f"token_logps/{side}"] = [one.logp for one in of_side]
            if scored.ref_token_logps:
                columns[f"ref_token_logps/{side}"] = [one.ref_logp for one in of_side]
    return pa.table(columns)


def pairs_by_margin(
    scored: Scored, tokenizer: PreTrainedTokenizerBase, limit: int
) -> Iterator[tuple[str, str, TokenScores, TokenScores]]:
    """Id, prompt, chosen and rejected of the questions with the lowest margins, lowest first."""
    decisions, places = reward_decisions(scored), answer_places(scored)
    for row in decisions.margin_of(scored.reward_A).argsort(kind="stable")[:limit]:
        question = scored.questions.rows[row]
        prompt_ids = scored.questions.pairs[question.places[0][0]].prompt_ids
        sides = (int(decisions.better_Q[row]), int(decisions.worse_Q[row]))
        chosen, rejected = (token_scores(scored, tokenizer, places, answer) for answer in sides)
        yield question.id, decoded(tokenizer, prompt_ids), chosen, rejected


def answer_places(scored: Scored) -> list[tuple[int, int]]:
    """The pair and the side of each answer, by its number among all answers."""
    return [place for question in scored.questions.rows for place in question.places]


def token_scores(
    scored: Scored,
    tokenizer: PreTrainedTokenizerBase,
    places: Sequence[tuple[int, int]],
    answer: int,
) -> TokenScores:
    """The tokens of an answer. Args: places: of all answers. answer: its number among them."""
    pair_number, side = places[answer]
    pair = scored.questions.pairs[pair_number]
    ids = pair.rejected_ids if side else pair.chosen_ids
    ref = scored.ref_token_logps
    return TokenScores(
        token_texts(tokenizer, pair.prompt_ids[-1], ids),
        scored.token_logps[answer].tolist(),
        ref[answer].tolist() if ref else [],
    )


def score_results(scored: Scored, settings: Settings, reference: str | None) -> dict[str, Any]:
    """All figures, with what decided them, for JSON."""
    questions = scored.questions
    names = ("beta", "dtype", "attention", "max_tokens", "max_prompt_tokens")
    return {
        "model": settings.model,
        "reference": reference,
        "same_weights": scored.same_weights,
        "settings": {name: getattr(settings, name) for name in names},
        "rows": len(questions.rows),
        "cut_rows": questions.cut_rows,
        "equal_scores": int(reward_decisions(scored).is_tie_Q.sum()),
        "left_out": questions.left_out,
        "skipped": [{"place": place, "reason": reason} for place, reason in questions.skipped],
        "all": preference_figures(
            questions.rows, scored.logp_A, scored.tokens_A, scored.ref_logp_A, beta=scored.beta
        ),
        "by_source": figures_by_source(scored),
        "benchmarks": benchmark_figures(scored),
    }


def score_lines(scored: Scored, results: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a terminal. Args: results: those of `score_results`."""
    against = f", against {results['reference']}" if results["reference"] else ""
    yield f"{results['model']}{against}"
    yield ", ".join(f"{name} {value}" for name, value in results["settings"].items())
    yield from row_lines(scored, results)
    score = "the implicit reward" if results["reference"] else "log p (no --reference)"
    width = max([20, *(len(name) for name in results["by_source"])])
    yield f"\nBy {score}:\n{'source':{width}} {'rows':>7}  {'accuracy':22} margin"
    for name, of in results["by_source"].items():
        accuracy, margin = cell(of["accuracy"]), cell(of["margin"])
        yield f"{name:{width}} {of['accuracy']['n']:>7,}  {accuracy:22} {margin}"
    yield "\nAll rows:"
    yield from figure_lines(results["all"])
    for name, figures in results["benchmarks"].items():
        yield f"\n{name}, as it is published:"
        yield from figure_lines(figures)


def row_lines(scored: Scored, results: Mapping[str, Any]) -> Iterator[str]:
    """What was read, cut and left out."""
    yield (
        f"{results['rows']:,} rows, {int(scored.tokens_A.sum()):,} tokens of answers; "
        f"{results['cut_rows']:,} rows cut; in {results['equal_scores']:,} the scores are equal, "
        "which counts as half"
    )
    for reason, count in results["left_out"].items():
        yield f"left out, {reason}: {count:,} rows"
    if results["skipped"]:
        yield f"skipped, bad: {len(results['skipped']):,} rows"
    for bad in results["skipped"][:LISTED]:
        yield f"  {bad['place']}: {bad['reason']}"
    if results["same_weights"]:
        yield "Both models have the same weights: every reward is 0."


def figure_lines(figures: Figures) -> Iterator[str]:
    for name, figure in figures.items():
        yield f"  {name:32} {cell(figure)}"


def cell(figure: Figure) -> str:
    """`mean [low, high]`, or - where there is none."""
    value, interval = next(iter(figure.values())), figure.get("ci95")
    if not isinstance(value, float):
        return "-"
    if not isinstance(interval, list):
        return f"{value:.3f}"
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
