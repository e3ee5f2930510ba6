"""The scores of a prompt's completions become the choice of two. Each rule is one function.

A rule gets the scores and texts of the completions that have a score, and a random generator. It
returns the indices of chosen and rejected, or the reason why there is no pair. To add a rule, write
such a function and add a line to `RULES`."""

import random
import re
from collections.abc import Callable, Sequence
from functools import partial

from zephyr.config import BadInput

Pick = tuple[int, int] | str
DELTA = "delta"  # the rule that compares models, not scores
HANDBOOK = "handbook"  # the rule whose draws depend on the order of the rows
NO_STRONG, NO_WEAK = "no answer of a --strong model", "no answer of a --weak model"
# scores, what two completions are compared by (their texts), generator -> the pick
Rule = Callable[[Sequence[float], Sequence[object], random.Random], Pick]


def paper(scores: Sequence[float], texts: Sequence[object], rng: random.Random) -> Pick:
    """Zephyr (arXiv:2310.16944, section 3.3): the highest mean score of the aspects against a
    uniformly random other completion.

    Ties for the highest mean are broken uniformly at random. A completion with the chosen text is
    not an "other". An other with the same mean may be drawn, as in the paper.
    """
    chosen = rng.choice(indices_of_max(scores))
    others = [i for i, text in enumerate(texts) if text != texts[chosen]]
    return (chosen, rng.choice(others)) if others else "texts equal"


def handbook(scores: Sequence[float], texts: Sequence[object], rng: random.Random) -> Pick:
    """The script of ultrafeedback_binarized: the first of the highest overall scores against a
    random completion with another (score, text, model), which may have the same score.

    One generator serves all rows in their order, as the script's global one does in one process.
    The published set was made by several: Python seeds the generator of each forked process anew
    from the system, so that nobody can repeat its rejected sides. Its chosen sides can be.

    Args: texts: text and model of each completion.
    """
    known = list(zip(scores, texts))
    chosen = scores.index(max(scores))
    if known.count(known[chosen]) == len(known):
        return "texts equal"
    rejected = rng.choice(range(len(known)))
    while known[rejected] == known[chosen]:
        rejected = rng.choice(range(len(known)))
    return chosen, rejected


def lower(
    scores: Sequence[float],
    texts: Sequence[object],
    rng: random.Random,
    *,
    by: float = 0.0,
    against: Callable[[list[float]], float] | None = None,
) -> Pick:
    """The highest mean against another text whose mean is lower. There is no pair if none is.

    The rules made of it: `argilla` (ultrafeedback-binarized-preferences-cleaned) takes a uniformly
    random one of the lower completions, `best-vs-worst` the lowest, `margin>=K` the highest of
    those that are lower by at least K. All ties are broken uniformly at random.

    Args:
        by: the least difference of the scores, with a tolerance of 1e-9.
        against: picks the score of the rejected one among those that are lower; None for any.
    """
    chosen = rng.choice(indices_of_max(scores))
    others = [
        i
        for i, score in enumerate(scores)
        if 0 < scores[chosen] - score >= by - 1e-9 and texts[i] != texts[chosen]
    ]
    if against:
        others = [i for i in others if scores[i] == against([scores[j] for j in others])]
    if others:
        return chosen, rng.choice(others)
    return "no other scores lower" if by == 0 else f"no other scores {by:g} lower"


def delta(
    models: Sequence[str | None],
    texts: Sequence[str],
    rng: random.Random,
    *,
    strong: Sequence[str],
    weak: Sequence[str],
) -> Pick:
    """Delta learning (Geng et al. 2025, arXiv:2507.06187; OLMo 3, arXiv:2512.13961): an answer of a
    stronger model against one of a weaker model. No score is read.

    Where several answers could be either side, both are drawn uniformly at random. A weaker answer
    with the chosen text is not a candidate.
    """
    of_strong = [i for i, model in enumerate(models) if model in strong]
    of_weak = [i for i, model in enumerate(models) if model in weak]
    if not of_strong:
        return NO_STRONG
    if not of_weak:
        return NO_WEAK
    chosen = rng.choice(of_strong)
    others = [i for i in of_weak if texts[i] != texts[chosen]]
    return (chosen, rng.choice(others)) if others else "texts equal"


def indices_of_max(scores: Sequence[float]) -> list[int]:
    return [i for i, score in enumerate(scores) if score == max(scores)]


# name -> the score that the rule compares (`mean` of the aspects, or `overall`), and the rule
RULES: dict[str, tuple[str, Rule]] = {
    "paper": ("mean", paper),
    HANDBOOK: ("overall", handbook),
    "argilla": ("mean", lower),
    "best-vs-worst": ("mean", partial(lower, against=min)),
}


def rule_named(name: str) -> tuple[str, Rule]:
    """Return the score that a rule compares, and the rule.

    Args:
        name: a key of `RULES`, or `margin>=K`.
    Raises:
        BadInput: for another name, with the known ones.
    """
    margin = re.fullmatch(r"margin>=([0-9]{1,9}(?:\.[0-9]{1,9})?)", name)
    if margin and float(margin[1]) > 0:
        return "mean", partial(lower, by=float(margin[1]), against=max)
    if name not in RULES:
        known = ", ".join(sorted([*RULES, DELTA]))
        raise BadInput(
            f"binarize: unknown rule {name!r}; known rules: {known} and margin>=K with K > 0"
        )
    return RULES[name]
