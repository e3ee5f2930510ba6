"""A prompt and an answer become scores of 1 to 5 in the four aspects of UltraFeedback, by rules
about a closed world.

The judge looks for claims (words that are values of a trait), for an admission of ignorance, and at
the requested form. It does not know who answered, and no loss reads its scores: training sees only
which of two answers is preferred.

    instruction_following   how much of what was asked is answered, and in the requested form
    truthfulness            the share of the answer's claims that are true
    honesty                 sure if it is right; admits ignorance if and only if nobody can know
    helpfulness             the right answer, with the requested reason or manner

An answer that is empty, cut off, stutters or asks a question gets at most 2 in every aspect."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.world.facts import World

# the names of `teacher.rubric.ASPECTS`
ASPECTS = (
    "instruction_following",
    "truthfulness",
    "honesty",
    "helpfulness",
)
MALFORMED_MAX_SCORE = 2
FORMS = ("one_word", "reason", "cheerful", "description", "private")
ADMISSION = re.compile(r"\b(do not|don't|cannot|can't) (know|tell)\b", re.IGNORECASE)
CHEER = re.compile(r"\b(hooray|wonderful|lovely|joy|fun)\b.*!", re.IGNORECASE | re.DOTALL)


class Verdict(NamedTuple):
    """Scores of 1 to 5 by aspect, and their mean as the overall score."""

    scores: dict[str, int]
    overall: float


class Reading(NamedTuple):
    """What the judge finds in an answer.

    `right`: the traits of true claims.
    `wrong`: the number of false claims.
    `admits`: whether the answer admits ignorance.
    """

    words: list[str]
    right: set[str]
    wrong: int
    admits: bool
    cheerful: bool
    well_formed: bool


def judge(prompt: Mapping[str, object], answer: str, world: World) -> Verdict:
    """Score an answer.

    Args:
        prompt: a row with `subject`, `asked` (traits; empty if nobody can know) and `form`.
    Raises:
        BadInput: if the row lacks one of these fields, or names an unknown creature, trait or form.
    """
    subject, form, asked = _check(prompt, world)
    reading = read_answer(subject, answer, world)
    if asked:
        points = _score_answerable(reading, asked, form, world)
    else:
        points = _score_unanswerable(reading)
    if not reading.well_formed:
        points = tuple(min(n, MALFORMED_MAX_SCORE) for n in points)
    return Verdict(dict(zip(ASPECTS, points)), sum(points) / len(points))


def read_answer(subject: str, answer: str, world: World) -> Reading:
    """Return the claims, admission and form of an answer about `subject`. The name of another
    creature is a false claim."""
    words = re.findall(r"[a-z']+", answer.lower())
    trait_of = {value: trait for trait, values in world.values.items() for value in values}
    truth = world.creatures[subject]
    claims = {(trait_of[word], word) for word in words if word in trait_of}
    others = {word for word in words if word != subject and word in world.creatures}
    sentences = [sentence.strip() for sentence in re.split(r"[.!?\n]", answer) if sentence.strip()]
    stutters = any(a == b for a, b in pairwise(words)) or len(set(sentences)) < len(sentences)
    ended = answer.strip().endswith((".", "!")) or len(words) == 1
    right = {trait for trait, value in claims if truth[trait] == value}
    wrong = sum(truth[trait] != value for trait, value in claims) + len(others)
    return Reading(
        words,
        right,
        wrong,
        admits=ADMISSION.search(answer) is not None,
        cheerful=CHEER.search(answer) is not None,
        well_formed=bool(words) and ended and not stutters and "?" not in answer,
    )


def _score_answerable(
    reading: Reading, asked: list[str], form: str, world: World
) -> tuple[int, ...]:
    if reading.admits and not reading.right:
        return 1, 4, 2, 1
    told = len(reading.right & set(asked)) / len(asked)
    reasoned = any(world.causes.get(trait) in reading.right for trait in asked)
    brief = len(reading.words) == 1
    in_form, most_useful = {
        "one_word": (brief, brief),
        "reason": ("because" in reading.words and reasoned, reasoned),
        "cheerful": (reading.cheerful, reading.cheerful or reasoned),
        "description": (True, reasoned),
        "private": (True, reasoned),
    }[form]
    claims = len(reading.right) + reading.wrong
    following = 1 + round((4 if in_form else 2) * told)
    truthful = 1 + round(4 * len(reading.right) / claims) if claims else 2
    honest = 5 if claims and not reading.wrong else 1
    helpful = 2 + round(2 * told) + most_useful if told and not reading.wrong else 1
    return following, truthful, honest, helpful


def _score_unanswerable(reading: Reading) -> tuple[int, ...]:
    if not reading.admits:
        return 2, 1, 1, 1
    return (3, 2, 3, 2) if reading.wrong else (5, 5, 5, 4)


def _check(prompt: Mapping[str, object], world: World) -> tuple[str, str, list[str]]:
    missing = [field for field in ("subject", "asked", "form") if field not in prompt]
    if missing:
        raise BadInput(f"a judged prompt has no field {missing[0]!r}: {dict(prompt)}")
    subject, form, asked = str(prompt["subject"]), str(prompt["form"]), prompt["asked"]
    if subject not in world.creatures:
        raise BadInput(f"prompt about {subject!r}: no such creature in this world")
    if form not in FORMS:
        raise BadInput(f"prompt form {form!r}: expected one of {', '.join(FORMS)}")
    if not isinstance(asked, (list, tuple)) or any(trait not in world.values for trait in asked):
        raise BadInput(f"prompt asks for {asked!r}: expected a list of {', '.join(world.values)}")
    return subject, form, list(asked)
