"""Reads how a pair's row rates its two answers, and which of them it calls the better."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from zephyr.chat.messages import shown
from zephyr.chat.names import parse_label, parse_yes_no, plain
from zephyr.data.rows import Row

CHOSEN_WORDS = "chosen preferred winner winning win w better best positive pos good"
REJECTED_WORDS = "rejected reject dispreferred loser losing lose l worse worst negative neg bad"
SIDES = {  # word of a key -> the side that it names
    **dict.fromkeys(CHOSEN_WORDS.split(), "chosen"),
    **dict.fromkeys(REJECTED_WORDS.split(), "rejected"),
}
NOT_PREFERRED = re.compile(r"(non|not|un)_?(preferred|chosen)")
# keys whose values must be numbers; under other names numbers are ratings, other values are not
RATING = re.compile(r"score|rating|reward|grade|quality|rank")
# words of keys that are about a rating, and are none
ABOUT_RATING = re.compile(r"rationale|reason|comment|feedback|text|explanation")
NOT_RATINGS = {  # word of a key whose numbers rate nothing -> what they are
    **dict.fromkeys(
        "length len token tokens word words char chars characters size bytes turn turns".split(),
        "how long the answer is",
    ),
    **dict.fromkeys(
        "logp logps logprob logprobs logits prob ppl perplexity nll loss".split(),
        "a model's likelihood",
    ),
    **dict.fromkeys("id ids idx index hash seed version page".split(), "a name"),
    **dict.fromkeys(
        "time timestamp date created year latency duration seconds".split(),
        "when, or how long it took",
    ),
    **dict.fromkeys(
        "cost price temperature annotators".split(),
        "how it was made; a cost may be either kind",
    ),
}
# words of ratings that are better where lower, as a rank is
LOWER = set("toxicity harm harmfulness error errors penalty downvotes violations".split())
# last words of a key that holds by how much the chosen answer is better
MARGINS = {"margin", "diff", "difference", "gap", "delta"}
OPINION = re.compile(r"score|rating|reward|grade|quality|preference|chosen|vote|win|elo|judge")
# words of a key that says which answer is the better, alone or with words of ONE_OF
VERDICTS = {"winner", "preference", "preferred", "better"}
ONE_OF = set(
    "response answer output completion side option model id index idx name is the one".split()
)
TIES = {"tie", "ties", "tied", "draw", "equal", "both", "same", "neither", "none"}
TIE_KEYS = {"tie", "tied", "draw"}
BOTH_BAD = {"bothbad", "(bothbad)", "bad"}  # a judge's word for a tie of two bad answers
SWAP_FLAGS = {"swapped", "flipped", "inverted", "reversed", "switched"}
BETTER_FLAGS = {"better", "best", "wins", "won", "preferred", "winner"}
MAX_RATING = 1e300  # beyond, sums would not be finite; no NaN is below it


class Tie(ValueError):
    """A row that prefers neither answer: it is counted as dropped, not as bad."""


def rating_keys(row: Row) -> set[str]:
    """The keys that rate the two answers of a pair, under any name: `score_chosen`,
    `Chosen-Rating`, `votes_w`, `scores.chosen` (in an object), `chosen[].rating` (in a turn), and
    `margin`: by how much the chosen answer is better."""
    return {path for pair in _rated(row) for path in pair if path}


def margins(row: Row) -> tuple[float, ...]:
    """By how much the chosen answer is rated above the rejected one, for each name that rates both.
    Ranks, and the words of `LOWER`, are better where lower.

    Raises: ValueError for a rating that is no finite number."""
    values, found = dict(_paths(row)), []
    for chosen, rejected in sorted(_rated(row), key=lambda pair: (pair[1] != "", pair)):
        margin = _rating(chosen, values[chosen])
        if rejected:
            margin -= _rating(rejected, values[rejected])
        name = plain(chosen)
        lower_is_better = "rank" in name or not LOWER.isdisjoint(name.split("_"))
        found.append(-margin if lower_is_better else margin)
    return tuple(found)


def side_ratings(row: Row) -> tuple[float, float] | None:
    """How the row rates the chosen and the rejected answer, by the first name that rates both, a
    score before other ratings; None where no name does, or a rating is no finite number."""
    values = dict(_paths(row))
    pairs = sorted(pair for pair in _rated(row) if pair[1])
    for chosen, rejected in sorted(pairs, key=lambda pair: "score" not in plain(pair[0])):
        try:
            return _rating(chosen, values[chosen]), _rating(rejected, values[rejected])
        except ValueError:
            continue
    return None


def pair_margins(pair: Row) -> tuple[float, ...]:
    """The `margins` that `shapes.pair_row` put into a pair."""
    found = pair.get("margins")
    return found if isinstance(found, tuple) else ()


def check_verdicts_agree(row: Row, read: set[str]) -> set[str]:
    """The keys, none of `read`, that say which answer is the better; all must say the chosen one.

    Raises: Tie; ValueError for a verdict for the other answer, for a pair called bad, and for a
        verdict that cannot be understood."""
    known = set()
    for key in row:
        if not isinstance(key, str) or key in read:
            continue
        verdict = _verdict(row, key)
        if verdict is None:
            continue
        if not verdict:
            raise ValueError(
                f"`{key}` is {shown(row[key])}: a pair called bad, expected pairs to be followed; "
                "data.on_bad_row=skip leaves such rows out, "
                f"data.columns.{key}=null trains them all the same"
            )
        known.add(key)
    return known


def may_be_verdict(key: str) -> bool:
    """Whether the key may say which answer is the better, by its words."""
    words = VERDICTS | SWAP_FLAGS | TIE_KEYS | {"best", "wins", "won"}
    return not words.isdisjoint(plain(key).split("_"))


def _verdict(row: Row, key: str) -> bool | None:
    """Whether the key calls the chosen answer the better; None if it is no verdict."""
    value, words = row[key], set(plain(key).split("_"))
    good = parse_yes_no(value)
    if words - ONE_OF and words - ONE_OF <= TIE_KEYS:
        if good is None:
            raise ValueError(_not_understood(key, value, "true or false"))
        if good:
            raise Tie(f"`{key}`")
        return True
    if words & SWAP_FLAGS and isinstance(value, bool):
        if value:
            expected = "false: nothing says whether chosen and rejected have been exchanged already"
            raise ValueError(_not_understood(key, value, expected))
        return True
    if words & {"chosen", "rejected"} and words & BETTER_FLAGS and good is not None:
        return good == ("chosen" in words)
    if words & VERDICTS and words - ONE_OF <= VERDICTS:
        return _names_chosen(row, key, value)
    return parse_label(key, value)


def _names_chosen(row: Row, key: str, value: object) -> bool:
    """Whether the value of a verdict names the chosen answer: by a word of `SIDES`, or as the text
    of a key of one side (`chosen_model`)."""
    if isinstance(value, bool):
        return value
    words = set(_sides_replaced(value).split("_")) - ONE_OF if isinstance(value, str) else set()
    if words and words <= TIES | BOTH_BAD and words & TIES:
        raise Tie(f"`{key}`")
    sides = {SIDES.get(word) for word in words}
    if None in sides or not sides:
        sides = {side for text, side in _sided_texts(row, key) if text == value}
    if len(sides) != 1:
        expected = "'chosen': nothing says which of `chosen` and `rejected` it means"
        raise ValueError(_not_understood(key, value, expected))
    return sides == {"chosen"}


def _sided_texts(row: Row, besides: str) -> Iterator[tuple[str, str]]:
    """Texts of keys that are one side's, such as `chosen` and `rejected_model`, and the side."""
    for key, value in row.items():
        if key == besides or not isinstance(value, str) or not value.strip():
            continue
        for word in _sides_replaced(key).split("_"):
            if word in ("chosen", "rejected"):
                yield value, SIDES[word]


def _not_understood(key: str, value: object, expected: str) -> str:
    return (
        f"`{key}` is {shown(value)}, expected {expected}; "
        f"data.columns.{key}=null leaves it out and follows `chosen`"
    )


def _rated(row: Row) -> frozenset[tuple[str, str]]:
    """The keys of the chosen and the rejected rating of each name, and of margins with "" for the
    second."""
    is_number = {path: type(value) in (int, float) for path, value in _paths(row)}
    return _rated_among(tuple(is_number.items()))


@lru_cache(maxsize=1024)
def _rated_among(paths: tuple[tuple[str, bool], ...]) -> frozenset[tuple[str, str]]:
    """`_rated` of keys, each with whether its value is a number: the rows of a file share them."""
    is_number = dict(paths)
    rated = {(path, "") for path in is_number if _is_margin(path)}
    # words of a key with "" for the word that names the side -> side -> the key
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for path in is_number:
        words = _sides_replaced(path).split("_")
        for i, word in enumerate(words):
            if word in SIDES and len(words) > 1:
                same_name = (*words[:i], "", *words[i + 1 :])
                found.setdefault(same_name, {}).setdefault(SIDES[word], path)
    for words_of_name, sides in found.items():
        name = "_".join(filter(None, words_of_name))
        is_other = not NOT_RATINGS.keys().isdisjoint(words_of_name) or ABOUT_RATING.search(name)
        if len(sides) < 2 or is_other:
            continue
        if RATING.search(name) or all(is_number[path] for path in sides.values()):
            rated.add((sides["chosen"], sides["rejected"]))
    return frozenset(rated)


def _is_margin(path: str) -> bool:
    *others, last = plain(path).split("_")
    if last not in MARGINS or not NOT_RATINGS.keys().isdisjoint(others):
        return False
    return path == "margin" or OPINION.search("_".join(others)) is not None


def _sides_replaced(key: str) -> str:
    return NOT_PREFERRED.sub("rejected", plain(key))


def _paths(row: Row, before: str = "", depth: int = 3) -> Iterator[tuple[str, object]]:
    """The keys of the row and of objects in it (`scores.chosen`), the numbers in the last turn of
    each answer (`chosen[].rating`), and their values."""
    for key, value in row.items():
        if not isinstance(key, str):
            continue
        turn = value[-1] if isinstance(value, list) and value else value
        if not before and key in ("chosen", "rejected") and isinstance(turn, Mapping):
            for name, inner in turn.items():
                if type(inner) in (int, float):
                    yield f"{key}[].{name}", inner
        elif not isinstance(value, Mapping):
            yield before + key, value
        elif depth:
            yield from _paths(value, f"{before}{key}.", depth - 1)


def _rating(name: str, value: object) -> float:
    if not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < MAX_RATING:
        return float(value)
    raise ValueError(
        f"`{name}` is {type(value).__name__} {value!r:.60}, expected a finite number; "
        f"data.columns.{name.split('.')[0]}=null leaves it out"
    )
