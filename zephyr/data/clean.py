"""Here a text is cleaned and looked at: its case set right; refusals, language, words, their n-grams and signature found."""

from __future__ import annotations

import hashlib
import importlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from zephyr.config import BadInput
from zephyr.data.rows import check_row, sft_row

if TYPE_CHECKING:
    from datasketch import MinHash
    from py3langid.langid import LanguageIdentifier

Row = Mapping[str, object]
Turns = list[tuple[str, str]]  # (role, text); a plain text is one turn of the role "text"
TEXT_FIELDS = ("messages", "prompt", "completion", "instruction", "output", "text")  # not `input`: what an instruction is about
PROMPT_FIELDS = ("prompt", "instruction", "question", "Question", "query", "ctx", "text", "turns", "messages")
PERMUTATIONS = 128  # hash values of a signature: the standard error of an estimated Jaccard of 0.8 is 0.035

# Truecasing leaves alone code, formulas and tags, texts that look like code, and Turkish, whose "i" has another capital.
PROTECTED = (r"```(?s:.*?)(?:```|\Z)|~~~(?s:.*?)(?:~~~|\Z)|`[^`\n]+`|\$\$[^$]+\$\$|\$(?! )[^$\n]+(?<! )\$|\\\((?s:.{0,500}?)\\\)|"
             r"\\\[(?s:.{0,500}?)\\\]|<[^<>\n]+>|^(?: {4}|\t)[^\n]*")
CODE = (r"[;{}][ \t]*$|^[ \t]*(?:def |class \w+[:(]|import \w+$|from \w+ import|#include|function \w*\(|SELECT |public |"
        r"\w+ = \S|</?\w+>)|[ıİğĞşŞ]")
WORD = r"(?!i[ '’])(?P<word>[^\W\d_]+(?:['’-][^\W\d_]+)*)(?=\s|[,;:!?\"')\]]+(?:\s|\Z)|\.(?:\s|\Z)|\Z)"
NOT_AFTER = ("for index let variable element row column of type phase part class step case number counter value integer axis where "
             "increment decrement position").split()
LONE_I = (r"(?<![^\s(\"'“‘])i(?<![+=*/<>-] i)" + "".join(rf"(?<!\b(?i:{word}) i)" for word in NOT_AFTER) +
          r"(?=(?P<short>['’](?:m|ve|ll|d)\b)| (?!(?:in|is|to|th|for|from|and|or|of|at|by|equals|plus|minus|if)\b)[a-z]{2})")
GAP = r"(?: {1,3}|\s*\n(?=\S+ \S+ \S+ [^\n]*[.!?][\"'”)]*[ \t]*(?:\n|\Z)))"  # a new line begins a sentence where one ends, too
CASED = re.compile(rf"{PROTECTED}|(?:\A|(?<=[.!?]){GAP}){WORD}|(?P<i>{LONE_I})", re.MULTILINE)
CODE_SEEN, PROTECTED_SEEN = re.compile(CODE, re.MULTILINE), re.compile(PROTECTED, re.MULTILINE)
ABBREVIATED = frozenset("etc vs cf mr mrs ms dr prof st jr sr inc ltd co corp vol fig figs eq eqs al approx est dept min max sec hr hrs oz "
                        "lb lbs tbsp tsp ft gen gov sen rep rev hon jan feb mar apr jun jul aug sep sept oct nov dec ave blvd rd pp ed "
                        "eds misc ext tel avg ca resp viz ibid adj adv incl excl no nos eg ie".split())
LOWER_NAMES = frozenset("npm pip git numpy pandas curl grep sudo sed awk nginx ffmpeg ii iii iv vi vii viii ix xi von van".split())
ENGLISH = frozenset("the and is are was were of you that it have had with for this my not am be what how do can will your they we "
                    "i'm i've i'd i'll it's don't can't that's".split())
CASE_TASK = re.compile(r"(?:lower|upper|title|sentence|camel|snake)[ -]?case|capital(?:i[sz]|s\b| letter)|punctuat|gramma|proof-?read|"
                       r"spelling|misspel|correct (?:the|this|these|any)|(?:fix|edit) th(?:e|is|ese) (?:\w+ )?(?:text|sentence|para)", re.I)

SELF = r"(?:opinion|feeling|emotion|belief|experience|preference|view|viewpoint|thought|perspective|taste|anecdote)s?"
NOT_MINE = re.compile(  # the model's lack of a self
    r"\b(?:i|i am (?:just |only )?an (?:ai|artificial intelligence) (?:\w+ ){0,3}and) "
    r"(?:(?:do not|don't|cannot|can't|can not|am not|am)(?: actually| really| truly)? (?:have|hold|possess|feel|experience|form|express|"
    r"offer|provide|share|(?:un|in)?(?:cap)?able (?:of|to) \w+)|lack|have no)"
    r"(?: the (?:ability|capacity|capability) to \w+)?(?: any| a| a strong| real| strong| own| my own)*"
    rf" (?:(?:personal|subjective|human|individual)(?:,? \w+){{0,3}}? {SELF}|(?:\w+,? (?:or|and) )?"
    r"(?:opinions|feelings|emotions|beliefs|consciousness)|(?<=strong )opinion|physical (?:body|form|experiences|sensations))\b"
    r"(?! (?:for|towards?|about) )[^.!?\n]*", re.I)
PERSONAL = re.compile(  # what may be asked of a person only
    rf"\byour (?:\w+ ){{0,2}}(?:{SELF}|favou?rites?|take on|hobb|name|age|gender|family|parents|childhood|life|day|"
    r"dream|memor|personality|fear|hope)|"
    r"\b(?:do|did|can|could|would|have|will|don't|didn't|wouldn't) you (?:\w+ )?(?:think|feel|believe|like|love|"
    r"hate|enjoy|prefer|agree|want|wish|choose|rather|ever|had|been|remember|miss|dream|eat|sleep|have)\b|"
    r"\b(?:are|were|aren't) you\b|\bexperiences? (?:\w+ ){0,4}you\b|"
    r"\b(?:who|what|how) (?:are|were) you\b|\bcall you\b|\babout you(?:rself)?\b|"
    r"\bif you (?:were|had|could)\b|\byou(?:'ve| have| personally| do it)\b", re.I)


def turns_of(row: object) -> Turns:
    """Roles and texts of an SFT row. Raises: ValueError saying what is wrong with it."""
    shape = sft_row(check_row(row))
    return [("text", shape)] if isinstance(shape, str) else [(turn["role"], turn["content"]) for turn in shape]


def as_json(row: object) -> bytes:
    """A row as a line of a .jsonl file; half a surrogate pair as JSON writes it. Raises: TypeError for what JSON has no word for."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")


def excerpt(text: str) -> str:
    """The beginning of a text in one line that any file can hold."""
    return " ".join(text[:600].split())[:160].encode("utf-8", "replace").decode()


def truecase(text: str) -> str:
    """The text with a capital at the start of each sentence, and "I" for a lone "i" of English.

    A start is the text's first word where a whole sentence follows, and a lower-case word after ".", "!" or "?" and a space; not after
    an abbreviation, initial, number of a list, ellipsis or closing quote, and no name of a file, no "iPhone", no single letter."""
    if CODE_SEEN.search(PROTECTED_SEEN.sub("", text)):
        return text
    words = re.findall(r"[\w']+", text.lower().replace("’", "'"))
    english = sum(word in ENGLISH for word in words) * 8 >= len(words)
    is_prose = re.match(r"\s*(?:[^\s,;:-]+ ){2}[^\n]*[.!?][\"'”’)]*(?:\s|\Z)", text) is not None

    def cased(match: re.Match[str]) -> str:
        if match["i"]:
            return "I" if english or match["short"] else match[0]
        word, start = match["word"], match.start()
        if not word or not word.islower() or word in LOWER_NAMES or word[0] > "\u052f":  # beyond Latin, Greek and Cyrillic
            return match[0]
        if len(word) == 1 and text[match.end() - 1:match.end() + 1] != "a ":
            return match[0]
        at, line = match.start("word"), text[max(start - 40, 0):start].rpartition("\n")[2].split()
        last = line[-1].strip("([{\"'“‘*_#>-") if line else ""
        stem = last.rstrip(".!?").lower()
        is_open = last.endswith(".") and (stem in ABBREVIATED or "." in stem or len(stem) == 1 or stem.isdigit() and len(line) == 1)
        if is_open or last.endswith("..") or at == start and not is_prose:
            return match[0]
        return text[start:at] + word[0].upper() + word[1:]

    return CASED.sub(cased, text)


def truecased(row: Row, turns: Turns) -> Row:
    """The row with its texts truecased; as it was where a user asks about case or grammar."""
    if any(role == "user" and CASE_TASK.search(text) for role, text in turns):
        return row
    return {name: _cased(value) if name in TEXT_FIELDS else value for name, value in row.items()}


def _cased(value: object) -> object:
    if isinstance(value, list):
        return [{**turn, "content": _cased(turn["content"])} if isinstance(turn, dict) and "content" in turn else turn for turn in value]
    return truecase(value) if isinstance(value, str) else value


def refusal(user_turn: str, answer: str) -> str | None:
    """The words by which the answer denies having opinions, feelings and the like; None where it doesn't, or where the
    user's turn asked for something personal ("your opinion", "do you feel", "are you human")."""
    found = NOT_MINE.search(answer.replace("’", "'").replace("I'm", "I am"))
    return found[0] if found and not PERSONAL.search(user_turn.replace("’", "'")) else None


def refused(turns: Turns) -> str:
    """The first such words in a dialogue, "" where there are none; a turn such as "Why?" goes on about the user's turn before."""
    asked: list[str] = []
    for role, text in turns:
        if role == "user":
            asked = [*asked[-1:], text]
        elif role == "assistant" and (found := refusal("\n".join(asked), text)):
            return found
    return ""


def normalised(text: str) -> str:
    """The text without what case and white space tell: equal for texts that differ in nothing else."""
    return " ".join(unicodedata.normalize("NFKC", text).lower().split())


def digests(turns: Turns) -> tuple[bytes, bytes]:
    """Of the dialogue and of its first user turn (b"": there is none), whatever their case and white space."""
    said = [[role, normalised(text)] for role, text in turns if text.strip()]
    opening = [text for role, text in said if role == "user"][:1]
    dialogue, first = (hashlib.sha256(json.dumps(part).encode()).digest() if part else b"" for part in (said, opening))
    return dialogue, first


def prompts(row: Row) -> Iterator[str]:
    """The texts of fields that hold prompts; of messages the user's."""
    for value in (row[name] for name in PROMPT_FIELDS if name in row):
        for item in value if isinstance(value, list) else [value]:
            text = item.get("content") if isinstance(item, Mapping) and item.get("role") == "user" else item
            if isinstance(text, str) and text.strip():
                yield text


def words(text: str) -> list[str]:
    """The words in lower case; each Chinese character or kana is one."""
    text = unicodedata.normalize("NFKC", text).lower()
    return re.findall("[\u2e80-\u9fff\uf900-\ufaff]|[^\\W_\u2e80-\u9fff\uf900-\ufaff]+", text)


@lru_cache(maxsize=1 << 15)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def grams(words: Sequence[str], n: int) -> np.ndarray:
    """A 64-bit hash of every n words that follow each other, uint64 [max(len(words) - n + 1, 0)]."""
    hashes = np.fromiter(map(_word_hash, words), np.uint64, len(words))
    total = np.zeros(max(len(words) - n + 1, 0), np.uint64)
    for i in range(n if len(total) else 0):
        total = total * np.uint64(0x9E3779B97F4A7C15) + hashes[i:i + len(total)]
    return total


def shared(known: Mapping[tuple[int, bool], np.ndarray], words: Sequence[str], *, short: bool) -> str:
    """The first n words of a turn whose hash is known; "" where there are none.

    Args: known: (n, whether they count as a whole turn only) -> sorted hashes of n words. short: whether those are looked for, too."""
    for (n, is_whole), hashes in known.items():
        if len(words) == n and short if is_whole else len(words) >= n:
            found = grams(words, n)
            hits = np.flatnonzero(hashes[np.searchsorted(hashes, found).clip(max=len(hashes) - 1)] == found)
            if len(hits):
                return " ".join(words[hits[0]:hits[0] + n])
    return ""


def signature(hashes: np.ndarray) -> bytes:
    """The MinHash signature of a set of 64-bit hashes: `PERMUTATIONS` little-endian uint32."""
    sketch = _empty_sketch().copy()
    for start in range(0, len(hashes), 4096):
        sketch.update_batch((hashes[start:start + 4096] >> np.uint64(32)).tolist())
    return sketch.hashvalues.astype("<u4").tobytes()


def language(text: str) -> str:
    """The ISO 639-1 code of the language of a text; "" where too little of it, code apart, is prose to tell."""
    text = PROTECTED_SEEN.sub(" ", text)
    code, confidence = identifier().classify(text)
    return code if confidence > 0.9 and sum(map(str.isalpha, text)) >= 40 else ""


@lru_cache(maxsize=1)
def identifier() -> LanguageIdentifier:
    """What tells languages apart. Raises: BadInput where its library is not installed."""
    langid = _library("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


@lru_cache(maxsize=1)
def _empty_sketch() -> MinHash:
    return _library("datasketch").MinHash(PERMUTATIONS, seed=1, hashfunc=int)


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise BadInput(f"{name.partition('.')[0]} is not installed, wanted `pip install 'zephyr[data]'`") from error
