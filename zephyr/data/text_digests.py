"""The texts of a row become digests, by which duplicates are found: white space and the tokenizer
make no difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from zephyr.chat.messages import without_space

NO_DIGEST = b""  # of an example that was made without texts
Turn = Mapping[str, object]


def conversation_digest(turns: Sequence[Turn]) -> bytes:
    """128 bits of all turns: their roles, their texts without white space, and their tool calls."""
    parts: list[object] = []
    for turn in turns:
        rest = {k: value for k, value in turn.items() if k not in ("role", "content", "train")}
        parts.append([turn["role"], without_space(str(turn["content"])), rest])
    return _digest(parts)


def prompt_digest(turns: Sequence[Turn]) -> bytes:
    """128 bits of the user's first turn, then 128 bits of all of the user's turns: without white
    space, in lower case. Turns of other roles make no difference."""
    texts = [
        without_space(str(turn["content"])).casefold() for turn in turns if turn["role"] == "user"
    ]
    return _digest(texts[:1]) + _digest(texts)


def _digest(value: object) -> bytes:
    written = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(written.encode(), digest_size=16).digest()
