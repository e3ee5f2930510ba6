"""Here is read what a pair's row says of its two answers: how each is rated, and which is called
the better."""

import re
from collections.abc import Iterator, Mapping

from zephyr.chat.messages import shown
from zephyr.chat.names import parse_label, parse_yes_no, plain

Row = Mapping[str, object]
SIDES = {
    **dict.fromkeys(
        (
            "chosen",
            "preferred",
            "winner",
            "winning",
            "win",
            "w",
            "better",
            "best",
            "positive",
            "pos",
            "good",
        ),
        "chosen",
    ),
    **dict.fromkeys(
        (
            "rejected",
            "reject",
            "dispreferred",
            "loser",
            "losing",
            "lose",
            "l",
            "worse",
            "worst",
            "negative",
            "neg",
            "bad",
        ),
        "rejected",
    ),
}  # a word of a key -> whose it is
NOT_PREFERRED = re.compile(r"(non|not|un)_?(preferred|chosen)")
RATING = re.compile(
    r"score|rating|reward|grade|quality|rank"
)  # must be numbers; of other names only numbers are ratings
OF_WORDS = re.compile(
    r"rationale|reason|comment|feedback|text|explanation"
)  # about a rating, and none
NOT_RATINGS = {  # a word of a key whose numbers rate nothing -> why
    **dict.fromkeys(
        (
            "length",
            "len",
            "token",
            "tokens",
            "word",
            "words",
            "char",
            "chars",
            "characters",
            "size",
            "bytes",
            "turn",
            "turns",
        ),
        "how long the answer is",
    ),
    **dict.fromkeys(
        (
            "logp",
            "logps",
            "logprob",
            "logprobs",
            "logits",
            "prob",
            "ppl",
            "perplexity",
            "nll",
            "loss",
        ),
        "a model's likelihood",
    ),
    **dict.fromkeys(("id", "ids", "idx", "index", "hash", "seed", "version", "page"), "a name"),
    **dict.fromkeys(
        ("time", "timestamp", "date", "created", "year", "latency", "duration", "seconds"),
        "when, or how long it took",
    ),
    **dict.fromkeys(
        ("cost", "price", "temperature", "annotators"),
        "how it was made; of a cost nobody knows which kind",
    ),
}
LOWER = {
    "toxicity",
    "harm",
    "harmfulness",
    "error",
    "errors",
    "penalty",
    "downvotes",
    "violations",
}  # better where lower, as a rank
MARGINS = {
    "margin",
    "diff",
    "difference",
    "gap",
    "delta",
}  # the last word of a key: by how much the chosen one is better
OPINION = re.compile(r"score|rating|reward|grade|quality|preference|chosen|vote|win|elo|judge")
VERDICTS = {
    "winner",
    "preference",
    "preferred",
    "better",
}  # which answer is the better; with a word of ONE_OF or without
ONE_OF = {
    "response",
    "answer",
    "output",
    "completion",
    "side",
    "option",
    "model",
    "id",
    "index",
    "idx",
    "name",
    "is",
    "the",
    "one",
}
TIES = {"tie", "ties", "tied", "draw", "equal", "both", "same", "neither", "none"}
SWAP_FLAGS = {"swapped", "flipped", "inverted", "reversed", "switched"}


class Tie(ValueError):
    """A row that holds no preference: it is counted, and no fault of the row."""


def rating_keys(row: Row) -> set[str]:
    """Where a pair rates its two answers, under any name (`score_chosen`, `Chosen-Rating`,
    `votes_w`, `scores.chosen`, `chosen[].rating` of a turn), and `margin`: by how much the chosen
    one is better."""
    return {path for pair in _rated(row) for path in pair if path}


def margins(row: Row) -> tuple[float, ...]:
    """By how much the chosen answer is rated above the rejected one, by each name that rates both;
    a rank is better where it is lower.

    Raises: ValueError for a rating that is no finite number."""
    values, found = dict(_paths(row)), []
    for chosen, rejected in sorted(_rated(row), key=lambda pair: (pair[1] != "", pair)):
        above = _rating(chosen, values[chosen]) - (
            _rating(rejected, values[rejected]) if rejected else 0
        )
        words = plain(chosen).split("_")
        found.append(-above if "rank" in plain(chosen) or not LOWER.isdisjoint(words) else above)
    return tuple(found)


def check_verdicts_agree(row: Row, read: set[str]) -> set[str]:
    """The keys, none of `read`, that say which answer is the better, all for the chosen one.

    Raises: Tie; ValueError for a verdict for the other answer, a pair called bad, and a verdict
    that can't be told."""
    known = set()
    for key in row:
        if (
            isinstance(key, str)
            and key not in read
            and (followed := _verdict(row, key)) is not None
        ):
            if not followed:
                raise ValueError(
                    f"`{key}` is {shown(row[key])}: a pair called bad, wanted pairs to be followed; data.on_bad_row=skip leaves such "
                    f"rows out, data.columns.{key}=null trains them all the same"
                )
            known.add(key)
    return known


def may_be_verdict(key: str) -> bool:
    """Whether the key may say which answer is the better, by its words."""
    return not (VERDICTS | SWAP_FLAGS | {"tie", "tied", "draw", "best", "wins", "won"}).isdisjoint(
        plain(key).split("_")
    )


def _verdict(row: Row, key: str) -> bool | None:
    """Whether the key calls the chosen answer the better; None where it is no verdict."""
    value, words = row[key], set(plain(key).split("_"))
    good = parse_yes_no(value)
    if words - ONE_OF and words - ONE_OF <= {"tie", "tied", "draw"}:
        if good is None:
            raise ValueError(_untold(key, value, "true or false"))
        if good:
            raise Tie(f"`{key}`")
        return True
    if words & SWAP_FLAGS and isinstance(value, bool):
        if value:
            raise ValueError(
                _untold(
                    key,
                    value,
                    "false: whether chosen and rejected have been exchanged can't be told",
                )
            )
        return True
    if (
        words & {"chosen", "rejected"}
        and words & {"better", "best", "wins", "won", "preferred", "winner"}
        and good is not None
    ):
        return good == ("chosen" in words)
    if words & VERDICTS and words - ONE_OF <= VERDICTS:
        return _sided(row, key, value)
    return parse_label(key, value)


def _sided(row: Row, key: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    names = set(_sides_replaced(value).split("_")) - ONE_OF if isinstance(value, str) else set()
    if names and names <= TIES | {"bothbad", "(bothbad)", "bad"} and names & TIES:
        raise Tie(f"`{key}`")
    sides = {SIDES.get(name) for name in names}
    sides = (
        sides
        if None not in sides and sides
        else {side for of, side in _sided_texts(row, key) if of == value}
    )
    if len(sides) != 1:
        raise ValueError(
            _untold(key, value, "'chosen': which of `chosen` and `rejected` it means can't be told")
        )
    return sides == {"chosen"}


def _sided_texts(row: Row, besides: str) -> Iterator[tuple[object, str]]:
    """Texts of keys that are one side's, as `chosen` and `rejected_model`."""
    for key, value in row.items():
        if key != besides and isinstance(value, str) and value.strip():
            yield from (
                (value, SIDES[word])
                for word in _sides_replaced(key).split("_")
                if word in ("chosen", "rejected")
            )


def _untold(key: str, value: object, wanted: str) -> str:
    return f"`{key}` is {shown(value)}, wanted {wanted}; data.columns.{key}=null leaves it out and follows `chosen`"


def _rated(row: Row) -> set[tuple[str, str]]:
    """The keys of both ratings of a pair, and of margins, with "" for the other."""
    values, found = dict(_paths(row)), {}
    made = {(path, "") for path in values if _is_margin(path)}
    for path in values:
        words = _sides_replaced(path).split("_")
        for n, word in enumerate(words):
            if word in SIDES and len(words) > 1:
                found.setdefault((*words[:n], "", *words[n + 1 :]), {}).setdefault(
                    SIDES[word], path
                )
    for rest, sides in found.items():
        name = "_".join(filter(None, rest))
        if len(sides) == 2 and NOT_RATINGS.keys().isdisjoint(rest) and not OF_WORDS.search(name):
            if RATING.search(name) or all(
                type(values[path]) in (int, float) for path in sides.values()
            ):
                made.add((sides["chosen"], sides["rejected"]))
    return made


def _is_margin(path: str) -> bool:
    *rest, last = plain(path).split("_")
    name = "_".join(rest)
    return (
        last in MARGINS
        and (path == "margin" or bool(OPINION.search(name)))
        and NOT_RATINGS.keys().isdisjoint(rest)
    )


def _sides_replaced(key: str) -> str:
    return NOT_PREFERRED.sub("rejected", plain(key))


def _paths(row: Row, before: str = "", depth: int = 3) -> Iterator[tuple[str, object]]:
    """The row's keys and those of the objects in it (`scores.chosen`), and the numbers in the last
    turn of each answer."""
    for key, value in row.items():
        if not isinstance(key, str):
            continue
        turn = value[-1] if isinstance(value, list) and value else value
        if not before and key in ("chosen", "rejected") and isinstance(turn, Mapping):
            yield from (
                (f"{key}[].{name}", inner)
                for name, inner in turn.items()
                if type(inner) in (int, float)
            )
        elif isinstance(value, Mapping):
            yield from _paths(value, f"{before}{key}.", depth - 1) if depth else ()
        else:
            yield before + key, value


def _rating(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise ValueError(
            f"`{name}` is {type(value).__name__} {value!r:.60}, wanted a finite number; data.columns.{name.split('.')[0]}=null leaves "
            "it out"
        )
    return float(value)
