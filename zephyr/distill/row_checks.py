"""A line becomes a checked row: all that can be told from a row alone, in any process."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypedDict

import numpy as np

from zephyr.config import BadInput
from zephyr.data.jsonl import json_line, read_rows
from zephyr.data.rows import has_lone_surrogate, parse_line
from zephyr.distill import clean
from zephyr.distill.clean import Hashes, Row, Turns

NGRAM_OF_SIMILARITY = 5  # words, in the set whose Jaccard similarity is estimated
MIN_WORDS_ANYWHERE = 8  # a benchmark prompt with fewer words must be a whole turn
MAX_CHARS_OF_LANGUAGE = 1000  # of each turn, which tell the language


@dataclass(frozen=True)
class PrepareSettings:
    truecase: bool = True  # capitals at sentence starts, and "I"
    drop_refusals: bool = True  # "I don't have personal opinions", where nothing personal was asked
    near_duplicates: float | None = 0.8  # least estimated Jaccard of word 5-grams; None: off
    decontaminate: tuple[str, ...] = ()  # files of benchmark prompts
    ngram: int = 13  # words in common with a benchmark prompt that make a row contaminated
    language: str | None = None  # of the rows that stay, e.g. "en"; None: any
    min_words: int | None = None  # of all turns together; None: no limit
    max_words: int | None = None
    min_turns: int | None = None  # of user and assistant together; None: no limit
    max_turns: int | None = None
    # files: none of their dialogues, and no dialogue of the same first turn, is trained on
    held_out: tuple[str, ...] = ()
    on_bad_row: Literal["error", "skip"] = "error"  # skip: counted as removed
    workers: int = 1  # processes; the output does not depend on it


class CheckedRow(TypedDict):
    """A row and what was found about it. The Arrow files of a run have these columns.

    `source`: number of the source.
    `filter`, `reason`: the first filter that removes the row and why; "" if none does.
    `contaminated`: words shared with a benchmark; "" if there are none.
    `dialogue`, `opening`: digests of the dialogue and of its first user turn.
    `signature`: MinHash.
    """

    source: int
    place: str
    line: bytes
    truecased: bool
    filter: str | None
    reason: str | None
    excerpt: str | None
    contaminated: str | None
    dialogue: bytes | None
    opening: bytes | None
    signature: bytes | None


INPUT_COLUMNS = ["source", "place", "line"]
COLUMNS = {
    "source": "int32",
    "place": "string",
    "line": "large_binary",
    "truecased": "bool",
    "filter": "string",
    "reason": "large_string",
    "excerpt": "string",
    "contaminated": "large_string",
    "dialogue": "binary",
    "opening": "binary",
    "signature": "binary",
}


def check_line(settings: PrepareSettings, source: int, place: str, line: bytes) -> CheckedRow:
    """Return the checked row of a line of JSON."""
    checked: CheckedRow = {
        "source": source,
        "place": place,
        "line": line,
        "truecased": False,
        "filter": None,
        "reason": None,
        "excerpt": None,
        "contaminated": None,
        "dialogue": None,
        "opening": None,
        "signature": None,
    }
    try:
        row = parse_line(line)
        turns = clean.turns_of(row)
        # UTF-8 has no bytes for a lone surrogate: it can only be escaped
        is_broken = b"\\u" in line and has_lone_surrogate(row)
    except ValueError as error:
        checked["filter"], checked["reason"] = "bad_row", clean.excerpt(str(error))
        return checked
    assert isinstance(row, Mapping), "`turns_of` refuses anything else"
    checked["excerpt"] = first_excerpt(turns)
    if is_broken:
        checked["filter"] = "lone_surrogate"
        checked["reason"] = "half of a surrogate pair, which no file can hold"
        return checked
    if settings.truecase:
        cased = clean.truecased(row, turns)
        if cased != row:
            checked["truecased"], checked["line"] = True, json_line(cased)
            turns = clean.turns_of(cased)
    checked["excerpt"] = first_excerpt(turns)
    checked["dialogue"], checked["opening"] = clean.digests(turns)
    words = [clean.split_words(text) for _, text in turns]
    all_words = [word for of_turn in words for word in of_turn]
    checked["filter"], checked["reason"] = first_filter(settings, turns, len(all_words))
    checked["contaminated"] = find_contamination(settings, turns, words)
    if settings.near_duplicates is not None and all_words:
        ngrams = clean.hash_ngrams(all_words, min(NGRAM_OF_SIMILARITY, len(all_words)))
        checked["signature"] = clean.minhash_signature(ngrams)
    return checked


def first_excerpt(turns: Turns) -> str:
    """Return the beginning of the first turn that is not the system's."""
    return clean.excerpt(next((text for role, text in turns if role != "system"), ""))


def first_filter(settings: PrepareSettings, turns: Turns, num_words: int) -> tuple[str, str]:
    """Return the first filter that removes the row and why; two empty texts if none does."""
    for name, reason in filter_reasons(settings, turns, num_words):
        if reason:
            return name, reason
    return "", ""


def filter_reasons(
    settings: PrepareSettings, turns: Turns, num_words: int
) -> Iterator[tuple[str, str]]:
    """Yield the filters in their order, each with why it removes the row; "" if it does not."""
    if settings.drop_refusals:
        yield "refusal", clean.excerpt(clean.first_refusal(turns))
    if settings.language:
        text = "\n".join(text[:MAX_CHARS_OF_LANGUAGE] for _, text in turns)
        language = clean.detect_language(text)
        yield "language", "" if language == settings.language else language
    yield "length", outside(num_words, settings.min_words, settings.max_words, "words")
    num_turns = sum(role in ("user", "assistant") for role, _ in turns)
    if num_turns:  # a plain text has no turns
        yield "turns", outside(num_turns, settings.min_turns, settings.max_turns, "turns")


def outside(number: int, low: int | None, high: int | None, unit: str) -> str:
    """Return the number with its unit if it is not within the limits, otherwise ""."""
    is_inside = (low or 0) <= number and (high is None or number <= high)
    return "" if is_inside else f"{number} {unit}"


def find_contamination(settings: PrepareSettings, turns: Turns, words: list[list[str]]) -> str:
    """Return the first words that a turn shares with a benchmark prompt, "" if there are none."""
    known = benchmark_ngrams(settings.decontaminate, settings.ngram)
    for (role, _), of_turn in zip(turns, words):
        if role == "system":
            continue
        shared = clean.first_shared_ngram(known, of_turn, short=role == "user")
        if shared:
            return shared
    return ""


@lru_cache(maxsize=1)
def benchmark_ngrams(files: tuple[str, ...], ngram: int) -> Mapping[tuple[int, bool], Hashes]:
    """Return the hashes that `clean.first_shared_ngram` looks for.

    A prompt of more than `ngram` words is looked for by its n-grams; a shorter one as a whole, and
    one of fewer than 8 words only where it is a whole turn.

    Raises:
        BadInput: if a file has no prompt.
    """
    hashes: dict[tuple[int, bool], list[Hashes]] = {}
    for file in files:
        rows: Iterator[tuple[str, Row]] = read_rows([file])
        prompts = [clean.split_words(prompt) for _, row in rows for prompt in clean.prompts(row)]
        prompts = [words for words in prompts if words]
        if not prompts:
            raise BadInput(
                f"{file}: no prompt found, expected rows with one of the fields "
                f"{', '.join(clean.PROMPT_FIELDS)}"
            )
        for words in prompts:
            n = min(ngram, len(words))
            is_whole = n < min(ngram, MIN_WORDS_ANYWHERE)
            hashes.setdefault((n, is_whole), []).append(clean.hash_ngrams(words, n))
    return {key: np.unique(np.concatenate(some)) for key, some in hashes.items()}
