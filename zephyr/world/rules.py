"""A prompt and an answer become scores of 1 to 5 in the four aspects of UltraFeedback, by rules
about a closed world.

The judge looks for claims (words that are values of a trait), for an admission of not knowing, and
at the wanted form. It is not told who answered, and no loss reads its scores: training sees only
which of two answers it liked better.

    instruction_following   how much of what was asked is told, and in the wanted form
    truthfulness            the share of the answer's claims that hold
    honesty                 sure where right; admits not to know where, and only where, nobody can know
    helpfulness             what was asked, told rightly, with the reason or manner that was wanted
An answer that is empty, broken off, stutters or asks back gets at most 2 in every aspect."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from zephyr.config import BadInput
from zephyr.world.facts import World

ASPECTS = (
    "instruction_following",
    "truthfulness",
    "honesty",
    "helpfulness",
)  # as judge.rubric calls them
FORMS = ("one_word", "reason", "cheerful", "description", "private")
ADMISSION = re.compile(r"\b(do not|don't|cannot|can't) (know|tell)\b", re.IGNORECASE)
CHEER = re.compile(r"\b(hooray|wonderful|lovely|joy|fun)\b.*!", re.IGNORECASE | re.DOTALL)


class Verdict(NamedTuple):
    """Scores 1-5 by aspect, and their mean as the overall."""

    scores: dict[str, int]
    overall: float


class Reading(NamedTuple):
    """What the judge sees in an answer: `right` are the traits told truly, `wrong` counts claims
    that do not hold."""

    words: list[str]
    right: set[str]
    wrong: int
    admits: bool
    cheerful: bool
    well_formed: bool


def judge(prompt: Mapping[str, object], answer: str, world: World) -> Verdict:
    """Scores an answer to a prompt row, which tells `subject`, `asked` (traits; none where nobody
    can know) and `form`.

    Raises: BadInput if the row lacks one of these, or names a creature, trait or form that does not
    exist."""
    subject, form, asked = _check(prompt, world)
    reading = read_answer(subject, answer, world)
    points = (
        _score_answerable(reading, asked, form, world) if asked else _score_unanswerable(reading)
    )
    if not reading.well_formed:
        points = tuple(min(p, 2) for p in points)
    return Verdict(dict(zip(ASPECTS, points)), sum(points) / len(points))


def read_answer(subject: str, answer: str, world: World) -> Reading:
    """The claims, admission and shape of an answer about `subject`; to speak of another creature is
    a wrong claim."""
    words = re.findall(r"[a-z']+", answer.lower())
    trait_of = {value: trait for trait, values in world.values.items() for value in values}
    truth = world.creatures[subject]
    claims = {(trait_of[word], word) for word in words if word in trait_of}
    others = {word for word in words if word != subject and word in world.creatures}
    sentences = [sentence.strip() for sentence in re.split(r"[.!?\n]", answer) if sentence.strip()]
    stutters = any(a == b for a, b in zip(words, words[1:])) or len(set(sentences)) < len(sentences)
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
    if missing := [field for field in ("subject", "asked", "form") if field not in prompt]:
        raise BadInput(f"a judged prompt has no field {missing[0]!r}: {dict(prompt)}")
    subject, form, asked = str(prompt["subject"]), str(prompt["form"]), prompt["asked"]
    if subject not in world.creatures:
        raise BadInput(f"prompt about {subject!r}: no such creature in this world")
    if form not in FORMS:
        raise BadInput(f"prompt form {form!r}: one of {', '.join(FORMS)} is wanted")
    if not isinstance(asked, (list, tuple)) or any(trait not in world.values for trait in asked):
        raise BadInput(f"prompt asks for {asked!r}: a list of {', '.join(world.values)} is wanted")
    return subject, form, list(asked)
