"""Here what a row says becomes digests, by which rows are compared: white space and the tokenizer
make no difference."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from zephyr.chat import without_space

NO_DIGEST = b""  # of a row that was made without words
Turn = Mapping[str, object]


def conversation_digest(turns: Sequence[Turn]) -> bytes:
    """128 bits of all turns: their words without white space, who says them, and their calls."""
    return _digest(
        [
            [
                of["role"],
                without_space(str(of["content"])),
                {
                    key: value
                    for key, value in of.items()
                    if key not in ("role", "content", "train")
                },
            ]
            for of in turns
        ]
    )


def prompt_digest(turns: Sequence[Turn]) -> bytes:
    """128 bits of the user's first turn, then 128 of all turns of the user: without white space, in
    lower case, whatever the system or the assistant says."""
    words = [without_space(str(of["content"])).casefold() for of in turns if of["role"] == "user"]
    return _digest(words[:1]) + _digest(words)


def _digest(value: object) -> bytes:
    return hashlib.blake2b(
        json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16
    ).digest()
