"""A prompt and an answer become scores of 1 to 5 in the four aspects of UltraFeedback, by rules about a closed world.

The judge looks for claims (words that are values of a trait), for an admission of not knowing, and at the form; it
knows nothing of who answered, and it is no training loss: the models see only which of two answers it liked better.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

ASPECTS = ("instruction_following", "truthfulness", "honesty", "helpfulness")
ADMISSION = re.compile(r"\b(do not|don't|cannot|can't) (know|tell)\b", re.IGNORECASE)
CHEER = re.compile(r"\b(hooray|wonderful|lovely|joy|fun)\b.*!", re.IGNORECASE | re.DOTALL)


class Facts(NamedTuple):
    """What the judge knows: `values` trait -> words; `causes` trait -> deciding trait; `creatures` name -> trait -> value."""

    values: Mapping[str, Sequence[str]]
    causes: Mapping[str, str]
    creatures: Mapping[str, Mapping[str, str]]


class Verdict(NamedTuple):
    """Scores 1-5 by aspect, and their mean as the overall."""

    scores: dict[str, int]
    overall: float


class Reading(NamedTuple):
    """What the judge sees in an answer."""

    words: list[str]
    right: set[str]          # traits with their true value
    wrong: int               # claims that do not hold for the subject, and mentions of other creatures
    admits: bool
    well_formed: bool


def load_facts(path: Path) -> Facts:
    """Reads the world's facts. Raises: ValueError if a field is missing."""
    record = json.loads(path.read_text(encoding="utf-8"))
    missing = [field for field in Facts._fields if field not in record]
    if missing:
        raise ValueError(f"{path}: no field {missing[0]!r}; this is not a world's file of facts")
    return Facts(*(record[field] for field in Facts._fields))


def judge(prompt: Mapping[str, object], answer: str, facts: Facts) -> Verdict:
    """Scores an answer. `prompt`: a row with `subject`, `asked` (traits, empty when unanswerable) and `form`."""
    reading = read_answer(str(prompt["subject"]), answer, facts)
    asked = [str(trait) for trait in prompt["asked"]]  # type: ignore[attr-defined]
    score = _score_answerable if asked else _score_unanswerable
    points = score(reading, asked, str(prompt["form"]), answer, facts)
    if not reading.well_formed:
        points = tuple(min(p, 2) for p in points)
    scores = dict(zip(ASPECTS, points, strict=True))
    return Verdict(scores, sum(points) / len(points))


def read_answer(subject: str, answer: str, facts: Facts) -> Reading:
    """The claims, admission and shape of an answer about `subject`."""
    words = re.findall(r"[a-z']+", answer.lower())
    trait_of = {value: trait for trait, values in facts.values.items() for value in values}
    truth = facts.creatures[subject]
    claims = {(trait_of[w], w) for w in words if w in trait_of}
    right = {trait for trait, value in claims if truth[trait] == value}
    others = sum(w != subject and w in facts.creatures for w in words)
    wrong = sum(truth[trait] != value for trait, value in claims) + others
    sentences = [s.strip() for s in re.split(r"[.!?]", answer) if s.strip()]
    stutters = any(a == b for a, b in zip(words, words[1:], strict=False)) or len(set(sentences)) < len(sentences)
    ended = answer.strip().endswith((".", "!")) or len(words) == 1
    to_the_point = "?" not in answer and "\n" not in answer.strip()
    well_formed = bool(words) and ended and to_the_point and not stutters
    return Reading(words, right, wrong, ADMISSION.search(answer) is not None, well_formed)


def _score_answerable(reading: Reading, asked: list[str], form: str, answer: str, facts: Facts) -> tuple[int, ...]:
    share = len(reading.right & set(asked)) / len(asked)
    reasons = {facts.causes[t] for t in asked if t in facts.causes}
    formed = {
        "plain": True, "description": True,
        "one_word": len(reading.words) == 1,
        "reason": "because" in reading.words and reasons <= reading.right,
        "cheerful": CHEER.search(answer) is not None,
    }[form]
    if reading.admits and not reading.right:
        return 1, 4, 2, 1
    following = (1 + round(4 * share) if formed else 1 + round(2 * share))
    claims = len(reading.right) + reading.wrong
    truthful = 1 + round(4 * len(reading.right) / claims) if claims else 2
    honest = 5 if claims and not reading.wrong else 1
    if reading.wrong or not share:
        helpful = 1
    else:
        helpful = 2 + round(2 * share) + (form != "one_word" and bool(reasons & reading.right) or formed and form in ("one_word", "cheerful"))
    return following, truthful, honest, helpful


def _score_unanswerable(reading: Reading, asked: list[str], form: str, answer: str, facts: Facts) -> tuple[int, ...]:
    if not reading.admits:
        return 2, 1, 1, 1
    return (5, 5, 5, 4) if not reading.wrong else (3, 2, 3, 2)
