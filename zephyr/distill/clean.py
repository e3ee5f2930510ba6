"""Here a text is cleaned and looked at: its case set right; refusals, language, words, their
n-grams and signature found."""

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
import yaml

from zephyr.config import BadInput
from zephyr.data.rows import check_row
from zephyr.data.shapes import sft_row

if TYPE_CHECKING:
    from datasketch import MinHash
    from py3langid.langid import LanguageIdentifier

Row = Mapping[str, object]
Turns = list[tuple[str, str]]  # (role, text); a plain text is one turn of the role "text"
TEXT_FIELDS = (
    "messages",
    "prompt",
    "completion",
    "instruction",
    "output",
    "text",
)  # not `input`: what an instruction is about
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
PERMUTATIONS = (
    128  # hash values of a signature: the standard error of an estimated Jaccard of 0.8 is 0.035
)

# Truecasing takes a text apart into code and what white space parts, and looks at each part by
# itself: what is no plain WORD stays.
CODE = re.compile(
    r"```.*?(?:```|\Z) | `[^`\n]+` | ^(?:[ ]{4}|\t)[^\n]*", re.X | re.S | re.M
)  # fenced, inline, indented
PARTS = re.compile(rf"({CODE.pattern} | \s)", CODE.flags)
CODE_LINE = re.compile(
    r"[;{}]$ | ^(?:def|import|SELECT|public|\#include|\w+[ ]=|</?\w+>)[ ]?", re.X | re.M
)  # of unmarked code
WORD = re.compile(
    r"(?:a|i|[^\W\d_]{2,}) (?:['’-][^\W\d_]+)* [,.;:!?\"”]*", re.X
)  # no digit, path, bracket
LOWERCASE_I = re.compile(r"i(?:['’][a-z]+)?[,.;:!?\"”]*")
PRONOUN_I = re.compile(
    r"\bi(?:['’](?:m|ve|ll|d)| (?:am|was|have|had|can|could|will|would|do|did|think|want|need))\b"
)  # in English only
SENTENCE_END = re.compile(
    r"[^.!?]* [^\W\d_]{2} [)\"”]? (?:\. | [!?]+)", re.X
)  # no "...", "1.", "p.m.", "Why?"
ABBREVIATIONS = frozenset(
    """etc vs cf mr mrs ms dr prof st jr sr inc ltd co corp vol fig no al approx est dept min max hrs eg ie
                          tsp tbsp oz lb lbs""".split()
)
CASE_TASK = re.compile(
    r"(?:upper|lower|title|camel|snake)[ -]?case|capital[is]|gramma|spell|punctuat|proof-?read|"
    r"\b(?:correct|edit|fix) th(?:e|is|ese)\b",
    re.I,
)

# the model's lack of a self, and what may be asked of a person only
REFUSALS = Path(__file__).with_name("refusals.yaml")
DENIALS, PERSONAL = (
    re.compile(pattern, re.I | re.X)
    for pattern in yaml.safe_load(REFUSALS.read_text(encoding="utf-8")).values()
)


def turns_of(row: object) -> Turns:
    """Roles and texts of an SFT row. Raises: ValueError saying what is wrong with it."""
    shape = sft_row(check_row(row))
    return (
        [("text", shape)]
        if isinstance(shape, str)
        else [(turn["role"], turn["content"]) for turn in shape]
    )


def excerpt(text: str) -> str:
    """The beginning of a text in one line that any file can hold."""
    return " ".join(text[:600].split())[:160].encode("utf-8", "replace").decode()


def truecase(text: str) -> str:
    """The text with a capital at the start of each sentence, and "I" for a lone "i"; as it was
    where it looks like code.

    A sentence starts where the text does, if that ends as one, and after a word and ".", "!" or "?"
    on the same line."""
    if CODE_LINE.search(CODE.sub("", text)):
        return text
    has_i = PRONOUN_I.search(text) is not None
    starts = (
        text.rstrip().endswith((".", "!", "?"))
        and re.match(r"\s*[\w'’]+ [\w'’]+ ", text) is not None
    )
    parts = PARTS.split(text)
    for i, part in enumerate(parts):
        if has_i and LOWERCASE_I.fullmatch(part):
            parts[i] = "I" + part[1:]
        elif starts and part.islower() and WORD.fullmatch(part):
            parts[i] = part[0].title() + part[1:]
        if part.strip():
            starts = (
                SENTENCE_END.fullmatch(part) is not None
                and part.strip('(."').lower() not in ABBREVIATIONS
            )
        elif part == "\n":
            starts = False
    return "".join(parts)


def truecased(row: Row, turns: Turns) -> Row:
    """The row with its texts truecased; as it was where a user asks about case, grammar or
    spelling."""

    def cased(value: object) -> object:
        if isinstance(value, list):
            return [
                {**turn, "content": cased(turn["content"])}
                if isinstance(turn, dict) and "content" in turn
                else turn
                for turn in value
            ]
        return truecase(value) if isinstance(value, str) else value

    if any(role == "user" and CASE_TASK.search(text) for role, text in turns):
        return row
    return {name: cased(value) if name in TEXT_FIELDS else value for name, value in row.items()}


def find_refusal(user_turn: str, answer: str) -> str | None:
    """The words by which the answer denies having opinions, feelings and the like; None where it
    doesn't, or where the user's turn asked for something personal ("your opinion", "do you feel",
    "are you human")."""
    found = DENIALS.search(answer.replace("’", "'").replace("I'm", "I am"))
    return found[0] if found and not PERSONAL.search(user_turn.replace("’", "'")) else None


def first_refusal(turns: Turns) -> str:
    """The first such words in a dialogue, "" where there are none; a turn such as "Why?" goes on
    about the user's turn before."""
    asked: list[str] = []
    for role, text in turns:
        if role == "user":
            asked = [*asked[-1:], text]
        elif role == "assistant" and (found := find_refusal("\n".join(asked), text)):
            return found
    return ""


def digests(turns: Turns) -> tuple[bytes, bytes]:
    """Of the dialogue and of its first user turn (b"": there is none), whatever their case and
    white space."""
    said = [
        [role, " ".join(unicodedata.normalize("NFKC", text).lower().split())]
        for role, text in turns
        if text.strip()
    ]
    opening = [text for role, text in said if role == "user"][:1]
    dialogue, first = (
        hashlib.sha256(json.dumps(part).encode()).digest() if part else b""
        for part in (said, opening)
    )
    return dialogue, first


def prompts(row: Row) -> Iterator[str]:
    """The texts of fields that hold prompts; of messages the user's."""
    for value in (row[name] for name in PROMPT_FIELDS if name in row):
        for item in value if isinstance(value, list) else [value]:
            text = (
                item.get("content")
                if isinstance(item, Mapping) and item.get("role") == "user"
                else item
            )
            if isinstance(text, str) and text.strip():
                yield text


def split_words(text: str) -> list[str]:
    """The words in lower case; each Chinese character or kana is one."""
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall("[\u2e80-\u9fff\uf900-\ufaff]|[^\\W_\u2e80-\u9fff\uf900-\ufaff]+", text)


@lru_cache(maxsize=1 << 15)
def _word_hash(word: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little"
    )


def hash_ngrams(words: Sequence[str], n: int) -> np.ndarray:
    """A 64-bit hash of every n words that follow each other, uint64 [max(len(words) - n + 1,
    0)]."""
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    total = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n if len(total) else 0):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[i : i + len(total)]
    return total


def first_shared_ngram(
    known: Mapping[tuple[int, bool], np.ndarray], words: Sequence[str], *, short: bool
) -> str:
    """The first n words of a turn whose hash is known; "" where there are none.

    Args: known: (n, whether they count as a whole turn only) -> sorted hashes of n words. short:
    whether those are looked for, too."""
    for (n, is_whole), hashes in known.items():
        if len(words) == n and short if is_whole else len(words) >= n:
            found = hash_ngrams(words, n)
            hits = np.flatnonzero(
                hashes[np.searchsorted(hashes, found).clip(max=len(hashes) - 1)] == found
            )
            if len(hits):
                return " ".join(words[hits[0] : hits[0] + n])
    return ""


def minhash_signature(hashes: np.ndarray) -> bytes:
    """The MinHash signature of a set of 64-bit hashes: `PERMUTATIONS` little-endian uint32."""
    sketch = empty_minhash().copy()
    for start in range(0, len(hashes), 4096):
        sketch.update_batch((hashes[start : start + 4096] >> np.uint64(32)).tolist())
    return sketch.hashvalues.astype("<u4").tobytes()


def detect_language(text: str) -> str:
    """The ISO 639-1 code of the language of a text; "" where too little of it, code apart, is prose
    to tell."""
    text = CODE.sub(" ", text)
    code, confidence = language_identifier().classify(text)
    return code if confidence > 0.9 and sum(map(str.isalpha, text)) >= 40 else ""


@lru_cache(maxsize=1)
def language_identifier() -> "LanguageIdentifier":
    """What tells languages apart. Raises: BadInput where its library is not installed."""
    langid = import_extra("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def empty_minhash() -> "MinHash":
    """The signature of no hashes. Raises: BadInput where its library is not installed."""
    return import_extra("datasketch").MinHash(PERMUTATIONS, seed=1, hashfunc=int)


def import_extra(name: str) -> ModuleType:
    """A module of the extra `data`. Raises: BadInput where its package is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(
            f"{name.partition('.')[0]} is not installed, wanted `pip install 'zephyr[data]'`"
        ) from error
