"""Here a key's spellings become one name, and the words that say what may be trained, or who
speaks, are told from others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

MASKS = {  # of a turn -> whether a yes says that it is trained
    **dict.fromkeys(
        (
            "train",
            "train_on_turn",
            "trainable",
            "training",
            "trained",
            "weight",
            "loss",
            "loss_weight",
            "loss_mask",
            "step_loss_mask",
            "loss_multiplier",
            "compute_loss",
            "calculate_loss",
            "requires_loss",
            "has_loss",
            "is_target",
            "is_trainable",
            "learn",
        ),
        True,
    ),
    **dict.fromkeys(
        (
            "masked",
            "is_masked",
            "ignore",
            "ignored",
            "no_loss",
            "skip",
            "skipped",
            "exclude",
            "excluded",
        ),
        False,
    ),
}
MARKS = {
    "train",
    "trained",
    "trainable",
    "loss",
    "mask",
    "masked",
    "ignore",
    "ignored",
    "skip",
    "skipped",
    "learn",
    "exclude",
    "excluded",
}
BESIDE_MARKS = {  # words that say of such a mark how or of what it is one
    "use",
    "used",
    "uses",
    "is",
    "are",
    "in",
    "for",
    "from",
    "to",
    "on",
    "at",
    "of",
    "do",
    "dont",
    "no",
    "not",
    "has",
    "have",
    "be",
    "this",
    "it",
    "only",
    "compute",
    "calculate",
    "apply",
    "require",
    "requires",
    "with",
    "without",
    "step",
    "turn",
    "turns",
    "row",
    "message",
    "sample",
    "example",
    "token",
    "tokens",
    "assistant",
    "user",
    "response",
    "answer",
    "target",
    "targets",
    "training",
    "sft",
    "dpo",
    "flag",
}
LABELS = {  # of an answer by itself (KTO) -> whether a yes calls it good
    **dict.fromkeys(
        (
            "label",
            "labels",
            "kto_tag",
            "kto_label",
            "desirable",
            "is_desirable",
            "good",
            "is_good",
            "accepted",
            "is_accepted",
            "acceptable",
            "approved",
            "is_approved",
            "chosen",
            "is_chosen",
            "preferred",
            "is_preferred",
            "thumbs_up",
            "liked",
            "safe",
            "is_safe",
            "correct",
            "is_correct",
            "valid",
            "is_valid",
            "verdict",
            "feedback",
            "thumbs",
        ),
        True,
    ),
    **dict.fromkeys(
        (
            "rejected",
            "is_rejected",
            "undesirable",
            "is_undesirable",
            "thumbs_down",
            "disliked",
            "bad",
            "is_bad",
            "unsafe",
            "is_unsafe",
            "incorrect",
            "is_incorrect",
            "invalid",
            "is_invalid",
        ),
        False,
    ),
}
GOOD = {
    True,
    "true",
    "1",
    "yes",
    "y",
    "good",
    "chosen",
    "desirable",
    "safe",
    "positive",
    "accept",
    "accepted",
    "preferred",
    "correct",
    "valid",
    "approved",
    "thumbs_up",
    "up",
    "like",
    "liked",
    "pass",
}
BAD = {
    False,
    -1,
    "false",
    "0",
    "-1",
    "no",
    "n",
    "bad",
    "rejected",
    "reject",
    "undesirable",
    "unsafe",
    "negative",
    "dispreferred",
    "incorrect",
    "wrong",
    "invalid",
    "thumbs_down",
    "down",
    "dislike",
    "disliked",
    "fail",
    "failed",
}
YES_OR_NO = {"true", "false", "1", "0", "yes", "no", "y", "n"}
SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}  # in any case -> the role


@lru_cache(maxsize=4096)
def plain(key: str) -> str:
    """The name that `Chosen-Rating`, `chosenRating`, `CHOSEN RATING` and `chosen.rating` are
    spellings of: `chosen_rating`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key.strip())
    return re.sub(r"[-_\s./\[\]]+", "_", parted).lower().strip("_") or key


@lru_cache(maxsize=64)
def _by_plain(names: frozenset[str]) -> dict[str, str]:
    return {plain(name): name for name in names}


def unify_keys(
    given: Mapping[str, object], names: frozenset[str]
) -> tuple[dict[str, object], dict[str, str]]:
    """What is given with each key that is a spelling of one of `names` called so, and name ->
    spelling of the keys that were renamed.

    Raises: ValueError for two spellings of one name that differ."""
    known, named, written = _by_plain(names), {}, {}
    for key, value in given.items():
        name = key if key in names or not isinstance(key, str) else known.get(plain(key), key)
        other = given if name != key and name in given else named
        if name in other and other[name] != value:
            first = name if other is given else written[name]
            raise ValueError(
                f"`{first}` and `{key}` are spellings of one name, and differ, wanted one of them; data.columns.{name}={first} "
                "takes the first"
            )
        if name not in other:
            named[name] = value
            if name != key:
                written[name] = key
    return named, written


def is_mark(key: str, value: object) -> bool:
    """Whether a key that no table holds looks like a mark of what is trained: by its words, with a
    yes or no.

    A word of another matter makes it a key of that matter: `in_gsm8k_train`,
    `skip_prompt_formatting`."""
    words = set(plain(key).split("_"))
    return (
        type(value) in (bool, int)
        and value in (0, 1)
        and not MARKS.isdisjoint(words)
        and words <= MARKS | BESIDE_MARKS
    )


def parse_yes_no(value: object) -> bool | None:
    """Whether a value is a yes (good, chosen, ...) or a no; None where it says neither. A list is a
    no where one in it is."""
    if isinstance(value, list):
        said = [parse_yes_no(inner) for inner in value]
        return None if None in said or not said else all(said)
    if not isinstance(value, (bool, int, float, str)):
        return None
    value = (
        value.strip().lower()
        if isinstance(value, str) and value.strip().lower() in BAD
        else plain(value)
        if isinstance(value, str)
        else value
    )
    return True if value in GOOD else False if value in BAD else None


def parse_label(key: str, value: object) -> bool | None:
    """Whether a label calls an answer good; None where it doesn't say it, or the key is none of
    `LABELS`."""
    name = plain(key)
    if name in ("chosen", "rejected", "preferred", "feedback") and not isinstance(
        value, (bool, str)
    ):
        return None  # an answer, or a number on a scale that nobody knows
    if name not in LABELS or (
        not LABELS[name] and isinstance(value, str) and plain(value) not in YES_OR_NO
    ):
        return None
    good = parse_yes_no(value)
    return None if good is None else good == LABELS[name]


def role_of(who: object) -> str | None:
    """The role of who speaks, as ShareGPT and others call it; None for anybody else."""
    return SPEAKERS.get(who.strip().lower()) if isinstance(who, str) else None


def restore_spelling(message: str, written: Iterable[tuple[str, str]]) -> str:
    """An error's message with the row's own spelling of the keys that it names."""
    for name, spelling in written:
        message = message.replace(f"`{name}`", f"`{spelling}`")
    return message
