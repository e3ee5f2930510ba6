"""The scores of a prompt's completions become the choice of two: one rule of binarisation is one
function.

A rule gets the scores and texts of the completions that have a score, and a generator; it returns
the indices of chosen and rejected, or why there is no pair. A new rule is such a function and one
line in `RULES`."""

import random
import re
from collections.abc import Callable, Sequence
from functools import partial

from zephyr.config import BadInput

Pick = tuple[int, int] | str
Rule = Callable[[Sequence[float], Sequence[str], random.Random], Pick]


def paper(scores: Sequence[float], texts: Sequence[str], rng: random.Random) -> Pick:
    """Zephyr (arXiv:2310.16944, section 3.3): the highest mean aspect score against a uniform
    random other completion.

    Ties for the highest mean are broken uniformly at random. Completions with the chosen text are
    no "other". An other of the same mean may be drawn, as in the paper."""
    chosen = rng.choice([i for i, score in enumerate(scores) if score == max(scores)])
    others = [i for i, other in enumerate(texts) if other != texts[chosen]]
    return (chosen, rng.choice(others)) if others else "texts equal"


def handbook(scores: Sequence[float], texts: Sequence[str], rng: random.Random) -> Pick:
    """The alignment handbook's script: the first of the highest overall scores; the rejected is
    drawn from all until its (text, score) differs, so it may score the same. One generator serves
    all rows in their order, as the script's global one does."""
    both, chosen = list(zip(texts, scores)), scores.index(max(scores))
    if both.count(both[chosen]) == len(both):
        return "texts equal"
    while both[rejected := rng.choice(range(len(both)))] == both[chosen]:
        pass
    return chosen, rejected


def lower(
    scores: Sequence[float],
    texts: Sequence[str],
    rng: random.Random,
    *,
    by: float = 0.0,
    against: Callable[[list[float]], float] | None = None,
) -> Pick:
    """The highest mean against one that is lower by `by` (to 1e-9) or more and of another text; no
    pair where none is.

    `argilla` (ultrafeedback-binarized-preferences-cleaned): a uniform random one of these.
    `best-vs-worst`: the lowest of these. `margin>=k`: the highest of these, `by` k. Ties, for the
    highest too, are broken uniformly at random."""
    chosen = rng.choice([i for i, score in enumerate(scores) if score == max(scores)])
    rest = [
        i
        for i, score in enumerate(scores)
        if 0 < scores[chosen] - score >= by - 1e-9 and texts[i] != texts[chosen]
    ]
    if against:
        rest = [i for i in rest if scores[i] == against([scores[j] for j in rest])]
    return (
        (chosen, rng.choice(rest))
        if rest
        else "no other scores lower"
        if by == 0
        else f"no other scores {by:g} lower"
    )


# name -> the score that the rule compares (a completion's mean of aspects, or its overall score),
# and the rule
RULES: dict[str, tuple[str, Rule]] = {
    "paper": ("mean", paper),
    "handbook": ("overall", handbook),
    "argilla": ("mean", lower),
    "best-vs-worst": ("mean", partial(lower, against=min)),
}


def rule_named(name: str) -> tuple[str, Rule]:
    """The score that a rule compares, and the rule: of `RULES`, or `margin>=k`. Raises: BadInput
    listing them for another name."""
    margin = re.fullmatch(r"margin>=([0-9]{1,9}(?:\.[0-9]{1,9})?)", name)
    if margin and float(margin[1]) > 0:
        return "mean", partial(lower, by=float(margin[1]), against=max)
    if name not in RULES:
        raise BadInput(
            f"binarisation rule {name!r} is unknown; there are {', '.join(sorted(RULES))} and margin>=k with k > 0"
        )
    return RULES[name]
