"""A question to a teacher and what came back: plain records, told apart by the digest of what was asked and of whom."""
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from types import MappingProxyType
from typing import NamedTuple

from zephyr.teacher.budget import Budget


class Request(NamedTuple):
    """One question to a teacher."""
    messages: tuple[Mapping[str, str], ...]             # {"role", "content"}: system, user, assistant turns; the last is a user's
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0                                       # of sampling; also what makes a re-ask another request
    about: Mapping[str, object] = MappingProxyType({})  # the question in fields, for embedded teachers; never sent, no part of the digest

    def asked(self) -> dict[str, object]:
        """All that decides the reply, as JSON would have it: every field but `about`."""
        return {"messages": [dict(message) for message in self.messages], "max_tokens": int(self.max_tokens),
                "temperature": float(self.temperature), "top_p": float(self.top_p), "seed": int(self.seed)}

    def digest(self, teacher: str) -> str:
        """SHA-256 (hex) of the canonical JSON of `asked()` and the teacher's identity, its name where it has no other."""
        canonical = json.dumps({"teacher": teacher, **self.asked()}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


class Reply(NamedTuple):
    """What came back. `text` None: this one request was refused, and `error` says why."""
    digest: str                                         # of its request
    text: str | None
    model: str
    version: str                                        # system_fingerprint, weights digest or package version; "" where unknown
    prompt_tokens: int
    completion_tokens: int
    price: float                                        # in the currency of the budget's prices
    time: str                                           # UTC, ISO 8601
    finish_reason: str = "stop"
    error: str = ""
    raw: object = None                                  # the endpoint's JSON body as parsed; None elsewhere


class Teacher(NamedTuple):
    """Whoever answers: `answer(requests, keep, budget)` calls `keep(reply)` as soon as each reply is there, in any order."""
    name: str                                           # how rows and the ledger call it
    answer: Callable[[Sequence[Request], Callable[[Reply], None], Budget], None]
    shared: bool = False                                # ranks of torchrun share the requests (local models), or rank 0 alone asks
    identity: str = ""                                  # in digests in place of the name: a local model's weights belong to it


def now() -> str:
    """This moment in UTC, ISO 8601, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
