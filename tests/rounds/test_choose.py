"""Scored answers become pairs: each rule against its definition, on scores written by hand."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from zephyr.data.ratings import margins
from zephyr.rounds.choose import (
    Answer,
    best_rows,
    choose_best,
    choose_pair,
    mean_scores,
    pair_rows,
    rng_of,
)
from zephyr.rounds.config import PairRule

NO_SCORE = math.nan


def answers(*scored: tuple[str, float]) -> list[Answer]:
    return [Answer(text, score, n, f"call-{n}") for n, (text, score) in enumerate(scored)]


FOUR = answers(("a", 3.0), ("b", 5.0), ("c", 1.0), ("d", 4.0))


def picks(rule: PairRule, given: list[Answer]) -> Counter[object]:
    """What the rule picks under many seeds."""
    return Counter(choose_pair(rule, given, random.Random(seed)) for seed in range(600))


def test_best_against_worst() -> None:
    """Always (b, c); an answer that was not scored, or is empty, is neither."""
    assert set(picks(PairRule(), FOUR)) == {(1, 2)}
    more = answers((" ", 9.0), ("a", 3.0), ("b", 5.0), ("e", NO_SCORE), ("c", 1.0), ("d", 4.0))
    assert set(picks(PairRule(), more)) == {(2, 4)}


def test_best_against_a_random_other() -> None:
    """Each other in a third of the draws; one with the same score is a tie."""
    found = picks(PairRule(choose="best_random"), FOUR)
    assert set(found) == {(1, 0), (1, 2), (1, 3)}
    assert min(found.values()) > 150
    tied = picks(PairRule(choose="best_random"), answers(("a", 2.0), ("b", 2.0), ("c", 1.0)))
    assert set(tied) == {(0, 2), (1, 2), "tie"}


def test_margin_takes_the_nearest_that_is_far_enough() -> None:
    """5 against the best of those at 3.5 or lower; none below 0.5."""
    assert set(picks(PairRule(choose="margin", margin=1.5), FOUR)) == {(1, 0)}
    assert set(picks(PairRule(choose="margin", margin=4.5), FOUR)) == {"below margin"}
    assert set(picks(PairRule(margin=4.5), FOUR)) == {"below margin"}
    assert set(picks(PairRule(margin=4.0), FOUR)) == {(1, 2)}


def test_the_control_looks_at_no_score() -> None:
    """Every ordered pair of different texts, about as often; and no pair of the prompts that have
    none by score, so that both budgets are equal."""
    found = picks(PairRule(choose="random"), FOUR)
    assert set(found) == {(i, j) for i in range(4) for j in range(4) if i != j}
    assert min(found.values()) > 20
    assert set(picks(PairRule(choose="random"), answers(("a", 2.0), ("b", 2.0)))) == {"tie"}
    # The best of a prompt may be a text whose only worse one is the same text: of both or of none.
    doubled = answers(("a", 5.0), ("a", 1.0), ("b", 5.0))
    for seed in range(20):
        found = [
            choose_pair(PairRule(choose=choose), doubled, random.Random(seed)) == "tie"
            for choose in ("random", "best_worst")
        ]
        assert found[0] == found[1]


@pytest.mark.parametrize("choose", ["best_worst", "best_random", "random"])
def test_prompts_without_a_pair(choose: str) -> None:
    """The reason is counted, and nothing is made up."""
    rule = PairRule(choose=choose)
    assert set(picks(rule, answers(("a", 2.0), ("b", 2.0)))) == {"tie"}
    assert set(picks(rule, answers(("a", 2.0), ("a ", 1.0)))) == {"texts equal"}
    assert set(picks(rule, answers(("a", 2.0), ("b", NO_SCORE)))) == {"fewer than two scores"}


def test_best_of_sft() -> None:
    """The highest score, of several a random one."""
    assert {choose_best(FOUR, random.Random(n)) for n in range(50)} == {1}
    tied = answers(("a", 5.0), ("b", 5.0), ("c", 1.0))
    assert {choose_best(tied, random.Random(n)) for n in range(50)} == {0, 1}
    assert choose_best(answers(("a", NO_SCORE)), random.Random(0)) == "no score"


def test_rows_name_where_they_come_from() -> None:
    """A pair has its round, policy, samples and calls; a draw does not depend on other prompts."""
    scored = [
        {
            "prompt_id": id,
            "prompt": "q?",
            "policy": "p",
            "weights": "w",
            "completions": [
                {"text": a.text, "score": a.score, "sample": a.sample, "call": a.call} for a in FOUR
            ],
        }
        for id in ("x", "y", "z")
    ]
    dropped: Counter[str] = Counter()
    rule = PairRule(choose="best_random")
    rows = list(pair_rows(rule, scored, 2, 7, dropped))
    assert [row["id"] for row in rows] == ["round-2/x", "round-2/y", "round-2/z"] and not dropped
    assert rows[2] == next(iter(pair_rows(rule, scored[2:], 2, 7, dropped)))
    assert rows[0]["chosen"] == "b" and rows[0]["samples"][0] == 1
    assert rows[0]["calls"][0] == "call-1" and rows[0]["policy_digest"] == "w"
    assert rng_of(7, 2, "x").random() != rng_of(7, 1, "x").random()
    assert mean_scores(rows)["mean_chosen"] == 5.0
    # The control's scores are there, and training does not take them for ratings of the two sides.
    control = list(pair_rows(PairRule(choose="random"), scored * 9, 2, 7, dropped))
    assert not any(margins(row) for row in control) and all(margins(row) for row in rows)
    assert any(low < high for low, high in (row["points"] for row in control))
    best = next(iter(best_rows(scored, 1, 7, dropped)))
    assert mean_scores([best]) == {"mean_chosen": 5.0}
    assert best["messages"][-1] == {"role": "assistant", "content": "b"}
