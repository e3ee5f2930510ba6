"""A text is cleaned and inspected: its letter case is corrected; refusals, language, words, n-grams
and a MinHash signature are found."""

import hashlib
import importlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import yaml

from zephyr.config import BadInput
from zephyr.data.rows import check_row
from zephyr.data.shapes import sft_row

if TYPE_CHECKING:
    from datasketch import MinHash
    from py3langid.langid import LanguageIdentifier

Row = Mapping[str, object]
Turns = list[tuple[str, str]]  # (role, text); a plain text is one turn of the role "text"
Hashes = npt.NDArray[np.uint64]
# fields whose case is corrected: not `input`, which is what an instruction is about
TEXT_FIELDS = ("messages", "prompt", "completion", "instruction", "output", "text")
PROMPT_FIELDS = (
    "prompt",
    "instruction",
    "question",
    "Question",
    "query",
    "ctx",
    "text",
    "turns",
    "messages",
)
# hash values of a signature: the standard error of an estimated Jaccard of 0.8 is 0.035
PERMUTATIONS = 128
BATCH_SIZE = 4096  # hashes that a signature takes in at once

# Truecasing splits a text into code, white space and other parts, and looks at each part by itself.
# A part that is not a plain WORD is not changed.
# fenced, inline or indented code
CODE = re.compile(r"```.*?(?:```|\Z) | `[^`\n]+` | ^(?:[ ]{4}|\t)[^\n]*", re.X | re.S | re.M)
PARTS = re.compile(rf"({CODE.pattern} | \s)", CODE.flags)
# a line of code without marks around it
CODE_LINE = re.compile(
    r"[;{}]$ | ^(?:def|import|SELECT|public|\#include|\w+[ ]=|</?\w+>)[ ]?", re.X | re.M
)
# letters only: no digits, paths or brackets
WORD = re.compile(r"(?:a|i|[^\W\d_]{2,}) (?:['’-][^\W\d_]+)* [,.;:!?\"”]*", re.X)
LOWERCASE_I = re.compile(r"i(?:['’][a-z]+)?[,.;:!?\"”]*")
# "i" as a pronoun: only English has these
PRONOUN_I = re.compile(
    r"\bi(?:['’](?:m|ve|ll|d)"
    r"| (?:am|was|have|had|can|could|will|would|do|did|think|want|need))\b"
)
# a part that ends a sentence: not "...", "1.", "p.m." or "Why?"
SENTENCE_END = re.compile(r"[^.!?]* [^\W\d_]{2} [)\"”]? (?:\. | [!?]+)", re.X)
ABBREVIATIONS = frozenset(
    (
        "etc vs cf mr mrs ms dr prof st jr sr inc ltd co corp vol fig no al approx est dept min "
        "max hrs eg ie tsp tbsp oz lb lbs"
    ).split()
)
# a user's turn about case, grammar or spelling
CASE_TASK = re.compile(
    r"(?:upper|lower|title|camel|snake)[ -]?case|capital[is]|gramma|spell|punctuat|proof-?read|"
    r"\b(?:correct|edit|fix) th(?:e|is|ese)\b",
    re.I,
)

# how a model denies having a self, and questions that are about the model as a person
REFUSALS = Path(__file__).with_name("refusals.yaml")
_patterns = yaml.safe_load(REFUSALS.read_text(encoding="utf-8"))
DENIALS = re.compile(_patterns["not_mine"], re.I | re.X)
PERSONAL = re.compile(_patterns["personal"], re.I | re.X)


def turns_of(row: object) -> Turns:
    """Return roles and texts of an SFT row. Raises: ValueError saying what is wrong with it."""
    made = sft_row(check_row(row))
    if isinstance(made, str):
        return [("text", made)]
    return [(str(turn["role"]), str(turn["content"])) for turn in made]


def excerpt(text: str) -> str:
    """Return the beginning of a text in one line of valid UTF-8."""
    return " ".join(text[:600].split())[:160].encode("utf-8", "replace").decode()


def truecase(text: str) -> str:
    """Return the text with a capital at the start of each sentence, and "I" for the pronoun "i". A
    text that looks like code is returned as it is.

    A sentence starts at the beginning of a text that ends as a sentence, and after a word and ".",
    "!" or "?" in the same line.
    """
    if CODE_LINE.search(CODE.sub("", text)):
        return text
    has_i = PRONOUN_I.search(text) is not None
    ends_as_sentence = text.rstrip().endswith((".", "!", "?"))
    starts = ends_as_sentence and re.match(r"\s*[\w'’]+ [\w'’]+ ", text) is not None
    parts = PARTS.split(text)
    for i, part in enumerate(parts):
        if has_i and LOWERCASE_I.fullmatch(part):
            parts[i] = "I" + part[1:]
        elif starts and part.islower() and WORD.fullmatch(part):
            parts[i] = part[0].title() + part[1:]
        if part.strip():
            is_abbreviation = part.strip('(."').lower() in ABBREVIATIONS
            starts = SENTENCE_END.fullmatch(part) is not None and not is_abbreviation
        elif part == "\n":
            starts = False
    return "".join(parts)


def truecased(row: Row, turns: Turns) -> Row:
    """Return the row with its texts truecased, or as it is if a user asks about case, grammar or
    spelling."""
    if any(role == "user" and CASE_TASK.search(text) for role, text in turns):
        return row
    return {
        name: _truecased_value(value) if name in TEXT_FIELDS else value
        for name, value in row.items()
    }


def _truecased_value(value: object) -> object:
    if isinstance(value, str):
        return truecase(value)
    if not isinstance(value, list):
        return value
    turns: list[object] = []
    for turn in value:
        if isinstance(turn, dict) and "content" in turn:
            turns.append({**turn, "content": _truecased_value(turn["content"])})
        else:
            turns.append(turn)
    return turns


def find_refusal(user_turn: str, answer: str) -> str | None:
    """Return the words by which an answer denies having opinions, feelings and the like.

    Returns:
        None if it does not, or if the user asked for something personal ("your opinion", "do you
        feel", "are you human").
    """
    found = DENIALS.search(answer.replace("’", "'").replace("I'm", "I am"))
    return found[0] if found and not PERSONAL.search(user_turn.replace("’", "'")) else None


def first_refusal(turns: Turns) -> str:
    """Return the first such words of a dialogue, "" if there are none. A user's turn is read
    together with the one before it: "Why?" is about that one."""
    last_two: list[str] = []
    for role, text in turns:
        if role == "user":
            last_two = [*last_two[-1:], text]
        elif role == "assistant":
            found = find_refusal("\n".join(last_two), text)
            if found:
                return found
    return ""


def digests(turns: Turns) -> tuple[bytes, bytes]:
    """Return the SHA-256 of the dialogue and of its first user turn, without regard to case and
    white space; b"" for one that does not exist."""
    said = [[role, _normalize(text)] for role, text in turns if text.strip()]
    opening = [text for role, text in said if role == "user"][:1]
    return _digest(said), _digest(opening)


def _normalize(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def _digest(value: Sequence[object]) -> bytes:
    return hashlib.sha256(json.dumps(value).encode()).digest() if value else b""


def prompts(row: Row) -> Iterator[str]:
    """Yield the texts of the fields that hold prompts; of messages, the user's."""
    for name in PROMPT_FIELDS:
        value = row.get(name)
        for item in value if isinstance(value, list) else [value]:
            text = item
            if isinstance(item, Mapping) and item.get("role") == "user":
                text = item.get("content")
            if isinstance(text, str) and text.strip():
                yield text


def split_words(text: str) -> list[str]:
    """Return the words in lower case. Each Chinese character or kana is a word."""
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall("[\u2e80-\u9fff\uf900-\ufaff]|[^\\W_\u2e80-\u9fff\uf900-\ufaff]+", text)


@lru_cache(maxsize=1 << 15)
def _word_hash(word: str) -> int:
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def hash_ngrams(words: Sequence[str], n: int) -> Hashes:
    """Return a 64-bit hash of every n words in a row.

    Returns:
        uint64 [max(len(words) - n + 1, 0)]
    """
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    total = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n if len(total) else 0):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + len(total)]
    return total


def first_shared_ngram(
    known: Mapping[tuple[int, bool], Hashes], words: Sequence[str], *, short: bool
) -> str:
    """Return the first n words of a turn whose hash is known, "" if there are none.

    Args:
        known: (n, whether they must be the whole turn) -> sorted hashes of n words.
        short: whether to look for those that must be the whole turn.
    """
    for (n, is_whole), hashes in known.items():
        applies = len(words) == n and short if is_whole else len(words) >= n
        if not applies:
            continue
        found = hash_ngrams(words, n)
        positions = np.searchsorted(hashes, found).clip(max=len(hashes) - 1)
        hits = np.flatnonzero(hashes[positions] == found)
        if len(hits):
            return " ".join(words[hits[0] : hits[0] + n])
    return ""


def minhash_signature(hashes: Hashes) -> bytes:
    """Return the MinHash signature of a set of 64-bit hashes: `PERMUTATIONS` little-endian
    uint32."""
    sketch = empty_minhash().copy()
    for start in range(0, len(hashes), BATCH_SIZE):
        batch = hashes[start : start + BATCH_SIZE] >> np.uint64(32)
        sketch.update_batch(batch.tolist())
    return bytes(sketch.hashvalues.astype("<u4").tobytes())


def detect_language(text: str) -> str:
    """Return the ISO 639-1 code of the language of a text, "" if it has too little prose, without
    code, to tell."""
    text = CODE.sub(" ", text)
    code, confidence = language_identifier().classify(text)
    is_sure = confidence > 0.9 and sum(map(str.isalpha, text)) >= 40
    return str(code) if is_sure else ""


@lru_cache(maxsize=1)
def language_identifier() -> "LanguageIdentifier":
    """Return what identifies languages. Raises: BadInput if its library is not installed."""
    langid = import_extra("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def empty_minhash() -> "MinHash":
    """Return the signature of an empty set. Raises: BadInput if its library is not installed."""
    return import_extra("datasketch").MinHash(PERMUTATIONS, seed=1, hashfunc=int)


def import_extra(name: str) -> ModuleType:
    """Import a module of the extra `data`. Raises: BadInput if its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(
            f"{name.partition('.')[0]} is not installed: pip install 'zephyr[data]'"
        ) from error
