"""The answers to a prompt become the two of a pair: a rule picks them, of all answers, of those of
the policy against others, or of the others alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from zephyr.chat import without_space
from zephyr.distill.binarize_report import Tally
from zephyr.distill.completions import Answer
from zephyr.distill.pair_options import PairOptions
from zephyr.distill.rules import DELTA, HANDBOOK, Pick, Rule, delta, rule_named


class Picked(NamedTuple):
    """The two answers. `preference`: 1 or -1 if other scores than the rule's call the chosen one
    better or worse, 0 if they can't be compared."""

    chosen: Answer
    rejected: Answer
    preference: int


@dataclass
class Picker:
    """A rule, with what it draws from. `score_name`: `mean` or `overall`; "" for `delta`."""

    rule: str
    seed: int
    options: PairOptions
    score_name: str = field(init=False, default="")
    by_score: Rule | None = field(init=False, default=None)
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        if self.rule != DELTA:
            self.score_name, self.by_score = rule_named(self.rule)
        self.rng = random.Random(self.seed)


def usable_answers(answers: Sequence[Answer], picker: Picker, tally: Tally) -> list[Answer]:
    """The answers that the rule can compare; those without its score are counted."""
    if picker.rule == DELTA:
        return list(answers)
    found = [answer for answer in answers if answer.score(picker.score_name) is not None]
    tally.add("left out", f"no {picker.score_name} score", len(answers) - len(found))
    return found


def pick_answers(answers: Sequence[Answer], id: str, kind: str, picker: Picker) -> Picked | str:
    """Return the chosen and the rejected answer, or the reason why there are none.

    Args:
        answers: of `usable_answers`.
        id: of the pair; the draws depend on it and on the seed.
        kind: `pair`, any two answers. `on`, one of the policy's and another: those that the rule
            picks of all answers, and if neither is the policy's, what it picks of the best answer
            and the policy's. `off`, of the other models' answers only.
    """
    policy = picker.options.on_policy
    if kind == "off":
        answers = [answer for answer in answers if answer.model not in policy]
    if picker.rule != DELTA and len(answers) < 2:
        of = "completions of other models" if kind == "off" else "completions"
        return f"fewer than 2 scored {of}"
    rng = random.Random(f"{picker.seed}/{id}")
    picked = apply_rule(answers, picker, rng)
    if kind == "on" and not isinstance(picked, str):
        picked = with_policy(answers, *picked, picker, rng)
    if isinstance(picked, str):
        return picked
    chosen, rejected = picked
    return Picked(chosen, rejected, other_preference(chosen, rejected, picker))


def apply_rule(
    answers: Sequence[Answer], picker: Picker, rng: random.Random
) -> tuple[Answer, Answer] | str:
    """Apply the rule to answers that it can compare."""
    picked: Pick
    if picker.by_score is None:
        picked = delta(
            [answer.model for answer in answers],
            [without_space(answer.text) for answer in answers],
            rng,
            strong=picker.options.strong,
            weak=picker.options.weak,
        )
    elif picker.rule == HANDBOOK:  # as its script: exact texts, one generator for all rows
        scores = [scored(answer, picker) for answer in answers]
        texts = [(answer.text, answer.model) for answer in answers]
        picked = picker.by_score(scores, texts, picker.rng)
    else:
        scores = [scored(answer, picker) for answer in answers]
        picked = picker.by_score(scores, [without_space(answer.text) for answer in answers], rng)
    if isinstance(picked, str):
        return picked
    return answers[picked[0]], answers[picked[1]]


def with_policy(
    answers: Sequence[Answer],
    chosen: Answer,
    rejected: Answer,
    picker: Picker,
    rng: random.Random,
) -> tuple[Answer, Answer] | str:
    """Return a picked pair with an answer of the policy on the wanted side, or why there is none.

    If neither answer is the policy's, the rule is applied to the chosen one and the policy's.
    """
    policy = picker.options.on_policy
    own = [answer for answer in answers if answer.model in policy]
    if not own:
        return f"no answer of {', '.join(policy)}"
    if chosen.model not in policy and rejected.model not in policy:
        again = apply_rule([chosen, *own], picker, rng)
        if isinstance(again, str):
            return again
        chosen, rejected = again
    if not is_on_policy(chosen.model, rejected.model, picker.options):
        return f"the answer of {', '.join(policy)} is not {picker.options.on_policy_side}"
    return chosen, rejected


def is_on_policy(chosen: object, rejected: object, options: PairOptions) -> bool:
    """Whether a pair of these models' answers has one of the policy on the wanted side."""
    sides = {"chosen": (chosen,), "rejected": (rejected,), "any": (chosen, rejected)}
    return any(model in options.on_policy for model in sides[options.on_policy_side])


def scored(answer: Answer, picker: Picker) -> float:
    """Return the score that the rule compares."""
    score = answer.score(picker.score_name)
    assert score is not None, "answers without a score were left out"
    return score


def other_preference(chosen: Answer, rejected: Answer, picker: Picker) -> int:
    """Return whether scores that the rule does not compare prefer the same side: mean and overall
    together, or for `delta`, which compares none, the mean. 0 if a score is missing or equal."""
    if chosen.mean is None or rejected.mean is None:
        return 0
    agreement = chosen.mean - rejected.mean
    if picker.rule != DELTA:
        if chosen.overall is None or rejected.overall is None:
            return 0
        agreement *= chosen.overall - rejected.overall
    return (agreement > 0) - (agreement < 0)
