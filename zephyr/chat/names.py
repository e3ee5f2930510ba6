"""The spellings of a key become one name; keys that say what is trained, and words that say who
speaks, are recognized here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

# Keys of a turn that say whether it is trained. Those of TRAINED say so by a yes, those of
# NOT_TRAINED by a no.
TRAINED = (
    "train train_on_turn trainable training trained weight loss loss_weight loss_mask "
    "step_loss_mask loss_multiplier compute_loss calculate_loss requires_loss has_loss is_target "
    "is_trainable learn"
).split()
NOT_TRAINED = "masked is_masked ignore ignored no_loss skip skipped exclude excluded".split()
MASKS = {**dict.fromkeys(TRAINED, True), **dict.fromkeys(NOT_TRAINED, False)}

# A key that is in no table, but has one of MARKS among its words and no word of another matter, may
# say so too: `use_loss`, `is_trained_turn`.
MARKS = frozenset(
    "train trained trainable loss mask masked ignore ignored skip skipped learn exclude "
    "excluded".split()
)
BESIDE_MARKS = frozenset(
    "use used uses is are in for from to on at of do dont no not has have be this it only "
    "compute calculate apply require requires with without step turn turns row message sample "
    "example token tokens assistant user response answer target targets training sft dpo "
    "flag".split()
)

# Keys that judge an answer by itself (KTO). Those of LABELS_OF_GOOD call it good by a yes, those of
# LABELS_OF_BAD by a no.
LABELS_OF_GOOD = (
    "label labels kto_tag kto_label desirable is_desirable good is_good accepted is_accepted "
    "acceptable approved is_approved chosen is_chosen preferred is_preferred thumbs_up liked safe "
    "is_safe correct is_correct valid is_valid verdict feedback thumbs"
).split()
LABELS_OF_BAD = (
    "rejected is_rejected undesirable is_undesirable thumbs_down disliked bad is_bad unsafe "
    "is_unsafe incorrect is_incorrect invalid is_invalid"
).split()
LABELS = {**dict.fromkeys(LABELS_OF_GOOD, True), **dict.fromkeys(LABELS_OF_BAD, False)}
GOOD: set[object] = {
    True,
    *(
        "true 1 yes y good chosen desirable safe positive accept accepted preferred correct valid "
        "approved thumbs_up up like liked pass"
    ).split(),
}
BAD: set[object] = {
    False,
    -1,
    *(
        "false 0 -1 no n bad rejected reject undesirable unsafe negative dispreferred incorrect "
        "wrong invalid thumbs_down down dislike disliked fail failed"
    ).split(),
}
YES_OR_NO = {"true", "false", "1", "0", "yes", "no", "y", "n"}

# Who speaks, in any case -> the role.
SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}


@lru_cache(maxsize=4096)
def plain(key: str) -> str:
    """`chosen_rating` for `Chosen-Rating`, `chosenRating`, `CHOSEN RATING` and `chosen.rating`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", key.strip())
    return re.sub(r"[-_\s./\[\]]+", "_", parted).lower().strip("_") or key


@lru_cache(maxsize=64)
def _by_plain(names: frozenset[str]) -> dict[str, str]:
    return {plain(name): name for name in names}


def unify_keys(
    given: Mapping[str, object], names: frozenset[str]
) -> tuple[dict[str, object], dict[str, str]]:
    """`given` with every key that is a spelling of one of `names` renamed to it.

    Returns:
        The mapping, and name -> spelling of the keys that were renamed.
    Raises:
        ValueError: for two spellings of one name with different values.
    """
    known = _by_plain(names)
    named: dict[str, object] = {}
    written: dict[str, str] = {}
    for key, value in given.items():
        name = key if key in names or not isinstance(key, str) else known.get(plain(key), key)
        other = given if name != key and name in given else named
        if name in other and other[name] != value:
            first = name if other is given else written[name]
            raise ValueError(
                f"`{first}` and `{key}` are spellings of one name, and differ, expected one of "
                f"them; data.columns.{name}={first} takes the first"
            )
        if name not in other:
            named[name] = value
            if name != key:
                written[name] = key
    return named, written


def is_mark(key: str, value: object) -> bool:
    """Whether a key that is in no table looks like a mark of what is trained.

    The value must be a yes or no, one word of the key one of `MARKS`, and all others words that
    stand beside them. `in_gsm8k_train` and `skip_prompt_formatting` are about something else.
    """
    words = set(plain(key).split("_"))
    yes_or_no = type(value) in (bool, int) and value in (0, 1)
    return yes_or_no and not MARKS.isdisjoint(words) and words <= MARKS | BESIDE_MARKS


def parse_yes_no(value: object) -> bool | None:
    """True for a yes (good, chosen, ...), False for a no, None for anything else.

    A list is a no if one of its values is.
    """
    if isinstance(value, list):
        parsed = [parse_yes_no(inner) for inner in value]
        return None if None in parsed or not parsed else all(parsed)
    word: object = value
    if isinstance(value, str):
        lower = value.strip().lower()
        word = lower if lower in BAD else plain(value)  # `plain` would turn "-1" into "1"
    elif not isinstance(value, (bool, int, float)):
        return None
    if word in GOOD:
        return True
    return False if word in BAD else None


def parse_label(key: str, value: object) -> bool | None:
    """Whether a label calls an answer good; None where the value does not say, or the key is not
    one of `LABELS`."""
    name = plain(key)
    also_other = name in ("chosen", "rejected", "preferred", "feedback")
    if also_other and not isinstance(value, (bool, str)):
        return None  # an answer, or a number on an unknown scale
    if name not in LABELS:
        return None
    if not LABELS[name] and isinstance(value, str) and plain(value) not in YES_OR_NO:
        return None
    good = parse_yes_no(value)
    return None if good is None else good == LABELS[name]


def role_of(speaker: object) -> str | None:
    """The role of a speaker, also by the names that ShareGPT and others use; None if unknown."""
    return SPEAKERS.get(speaker.strip().lower()) if isinstance(speaker, str) else None


def restore_spelling(message: str, written: Iterable[tuple[str, str]]) -> str:
    """An error message with the keys as the row spells them. Args: written: (name, spelling)."""
    for name, spelling in written:
        message = message.replace(f"`{name}`", f"`{spelling}`")
    return message
