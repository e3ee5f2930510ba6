"""The scored answers of a prompt become a pair, or its best answer a demonstration."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

from zephyr.chat import check_pair, without_space
from zephyr.distill.rules import indices_of_max, lower, paper
from zephyr.rounds.config import PairRule
from zephyr.teacher.prompts import turns_of

Row = Mapping[str, object]
Pick = tuple[int, int] | str  # chosen and rejected, or why there is no pair
Choose = Callable[[Sequence[float], Sequence[str], random.Random], Pick]


class Answer(NamedTuple):
    """A scored answer of a prompt."""

    text: str
    score: float
    sample: int
    call: str


def best_random(scores: Sequence[float], texts: Sequence[str], rng: random.Random) -> Pick:
    """The best against a uniformly random other text; equal scores are a tie, and no pair."""
    picked = paper(scores, texts, rng)
    if isinstance(picked, tuple) and scores[picked[0]] == scores[picked[1]]:
        return "tie"
    return picked


def two_at_random(scores: Sequence[float], texts: Sequence[str], rng: random.Random) -> Pick:
    """Two different texts in random order: the control. Prompts that `best_worst` leaves out are
    left out here too, so that both train on as many pairs of the same prompts."""
    if isinstance(lower(scores, texts, rng, against=min), str):
        return "tie"
    first = rng.randrange(len(texts))
    others = [i for i, text in enumerate(texts) if text != texts[first]]
    return first, rng.choice(others)


def choose_rule(rule: PairRule) -> Choose:
    """The function that picks two answers."""
    rules: dict[str, Choose] = {
        "best_worst": partial(lower, against=min),
        "best_random": best_random,
        "margin": partial(lower, by=rule.margin, against=max),
        "random": two_at_random,
    }
    return rules[rule.choose]


def choose_pair(rule: PairRule, answers: Sequence[Answer], rng: random.Random) -> Pick:
    """Pick the chosen and the rejected answer.

    Args: answers: in the order of their samples; without a score (NaN) or text they are no
    candidates.
    Returns: their indices, or the reason why the prompt has no pair: `tie` (all scores equal, or
    those of the two that were drawn), `texts equal`, `fewer than two scores`, `below margin`.
    """
    usable = usable_answers(answers)
    if len(usable) < 2:
        return "fewer than two scores"
    scores = [answers[i].score for i in usable]
    texts = [without_space(answers[i].text) for i in usable]
    if len(set(texts)) < 2:
        return "texts equal"
    if max(scores) == min(scores):
        return "tie"
    picked = choose_rule(rule)(scores, texts, rng)
    if isinstance(picked, str):
        return "below margin" if rule.choose == "margin" else "tie"
    chosen, rejected = picked
    if rule.choose != "random" and scores[chosen] - scores[rejected] < rule.margin - 1e-9:
        return "below margin"
    return usable[chosen], usable[rejected]


def choose_best(answers: Sequence[Answer], rng: random.Random) -> int | str:
    """Pick the answer with the highest score, of several a random one. Returns: its index, or the
    reason why there is none."""
    usable = usable_answers(answers)
    if not usable:
        return "no score"
    best = indices_of_max([answers[i].score for i in usable])
    return usable[rng.choice(best)]


def usable_answers(answers: Sequence[Answer]) -> list[int]:
    """Indices of the answers with a text and a score."""
    return [
        i
        for i, answer in enumerate(answers)
        if math.isfinite(answer.score) and without_space(answer.text)
    ]


def rng_of(seed: int, number: int, prompt_id: str) -> random.Random:
    """The generator of a prompt's draws: another prompt or round changes nothing in it."""
    key = json.dumps(["choose", seed, number, prompt_id]).encode()
    return random.Random(hashlib.sha256(key).digest())


def pair_rows(
    rule: PairRule, scored: Sequence[Row], number: int, seed: int, dropped: Counter[str]
) -> Iterator[dict[str, object]]:
    """The pairs of a round, one a prompt at most.

    Args:
        scored: rows of prompt, `completions`, and `weights`, the digest of the policy.
        number: of the round.
        dropped: counts the prompts without a pair by the reason.
    """
    for row in scored:
        prompt_id, answers = str(row["prompt_id"]), answers_of(row)
        picked = choose_pair(rule, answers, rng_of(seed, number, prompt_id))
        if isinstance(picked, str):
            dropped[picked] += 1
            continue
        chosen, rejected = (answers[i] for i in picked)
        pair: dict[str, object] = {
            "id": f"round-{number}/{prompt_id}",
            "prompt_id": prompt_id,
            "prompt": row["prompt"],
            "chosen": chosen.text,
            "rejected": rejected.text,
        }
        try:
            check_pair(pair)
        except ValueError as error:
            dropped[f"no pair: {error}"[:80]] += 1
            continue
        # Under these names training checks that the chosen answer is not rated lower.
        scores: dict[str, object] = {"score_chosen": chosen.score, "score_rejected": rejected.score}
        if rule.choose == "random":
            scores = {"points": [chosen.score, rejected.score]}
        yield {
            **pair,
            **scores,
            "chosen_model": row["policy"],
            "rejected_model": row["policy"],
            "rule": rule.choose,
            "round": number,
            "policy_digest": row["weights"],
            "samples": [chosen.sample, rejected.sample],
            "calls": [chosen.call, rejected.call],
        }


def best_rows(
    scored: Sequence[Row], number: int, seed: int, dropped: Counter[str]
) -> Iterator[dict[str, object]]:
    """The best answer to each prompt, as a conversation for train_sft.py. Args: as `pair_rows`."""
    for row in scored:
        prompt_id, answers = str(row["prompt_id"]), answers_of(row)
        picked = choose_best(answers, rng_of(seed, number, prompt_id))
        if isinstance(picked, str):
            dropped[picked] += 1
            continue
        best = answers[picked]
        turns = [*turns_of(row["prompt"]), {"role": "assistant", "content": best.text}]
        yield {
            "id": f"round-{number}/{prompt_id}",
            "prompt_id": prompt_id,
            "messages": turns,
            "score_chosen": best.score,
            "policy_digest": row["weights"],
        }


def mean_scores(rows: Sequence[Row]) -> dict[str, float]:
    """The mean score of the chosen answers of pairs, and of the rejected ones; of conversations
    only the first."""
    sides: dict[str, list[float]] = {"chosen": [], "rejected": []}
    for row in rows:
        points = row.get("points")
        for place, side in enumerate(sides):
            value = points[place] if isinstance(points, list) else row.get(f"score_{side}")
            if isinstance(value, (int, float)):
                sides[side].append(value)
    return {f"mean_{side}": fmean(values) for side, values in sides.items() if values}


def answers_of(row: Row) -> list[Answer]:
    """The answers in the completions of a scored row."""
    completions = row["completions"]
    assert isinstance(completions, list), "`scored_rows` wrote it"
    return [
        Answer(
            str(of["text"]),
            math.nan if of["score"] is None else float(of["score"]),
            int(of["sample"]),
            str(of["call"]),
        )
        for of in completions
    ]
