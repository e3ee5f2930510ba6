"""A question to a teacher, what came back, and what it took: plain records, and a budget that no
sum of them passes."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from zephyr.config import BadInput

TEMPLATE_TOKENS = (
    64  # what a chat template may write of its own around a conversation, beside its roles
)


class Request(NamedTuple):
    """One question to a teacher."""

    messages: tuple[
        Mapping[str, str], ...
    ]  # {"role", "content"}: system, user, assistant turns; the last is a user's
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0  # of sampling; also what makes a re-ask another request
    about: Mapping[str, object] = MappingProxyType(
        {}
    )  # the question in fields, for embedded teachers; never sent, no part of the digest

    def payload(self) -> dict[str, object]:
        """All that decides the reply, as JSON would have it: every field but `about`."""
        return {
            "messages": [dict(message) for message in self.messages],
            "max_tokens": int(self.max_tokens),
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "seed": int(self.seed),
        }

    def digest(self, teacher: str) -> str:
        """SHA-256 (hex) of the canonical JSON of `payload()` and the teacher's identity, its name
        where it has no other."""
        canonical = json.dumps(
            {"teacher": teacher, **self.payload()}, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


class Reply(NamedTuple):
    """What came back. `text` None: this one request was refused, and `error` says why."""

    digest: str  # of its request
    text: str | None
    model: str
    version: str  # system_fingerprint, weights digest or package version; "" where unknown
    prompt_tokens: int
    completion_tokens: int
    price: float  # in the currency of the budget's prices
    time: str  # UTC, ISO 8601
    finish_reason: str = "stop"
    error: str = ""
    raw: object = None  # the endpoint's JSON body as parsed; None elsewhere


class Spending(NamedTuple):
    """Attempts, prompt and completion tokens together, and money."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: "Spending", sign: int = 1) -> "Spending":
        return Spending(*(mine + sign * its for mine, its in zip(self, other)))


class Reservation(NamedTuple):
    """An attempt: tokens that it takes, or may take at most; `price` (prompt, completion) per
    million."""

    prompt_tokens: int
    completion_tokens: int
    price: tuple[float, float]

    def spending(self) -> Spending:
        cost = (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6
        return Spending(1, self.prompt_tokens + self.completion_tokens, cost)


class BudgetSpent(RuntimeError):
    """A further request would, or could, exceed the budget. All that was answered is in the
    ledger."""


class Budget:
    """Hard limits in requests, tokens and money, None: no limit; what the ledger holds at its first
    use is spent already.

    Tries that failed count as requests, and with their worst case where the server may have worked
    for them; the ledger keeps them too. Only what was in flight when a process was killed is not
    counted. `prices`: model -> (prompt, completion) per million tokens."""

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        cost: float | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.limits, self.prices = (
            {"requests": requests, "tokens": tokens, "cost": cost},
            dict(prices or {}),
        )
        self.spent, self.in_flight = (
            Spending(),
            0,
        )  # spent: with the worst case of what is in flight
        self._counted: set[Path] = set()

    def count_ledger(self, ledger: Path, held: Spending) -> None:
        """Count what a ledger holds; once, however often it is told."""
        if ledger not in self._counted:
            self._counted.add(ledger)
            self.spent = self.spent.plus(held)

    def price(self, model: str) -> tuple[float, float]:
        """The model's price. Raises: BadInput where money is limited and the model has none."""
        if self.limits["cost"] is not None and model not in self.prices:
            raise BadInput(
                f"budget: a limit of cost wants a price for {model!r}, prices has {sorted(self.prices) or 'none'}"
            )
        return self.prices.get(model, (0.0, 0.0))

    def reserve(
        self,
        messages: Sequence[Mapping[str, str]],
        max_tokens: int,
        price: tuple[float, float] = (0.0, 0.0),
    ) -> Reservation:
        """Set aside the most that one attempt can take: the UTF-8 bytes of the prompt, as JSON,
        bound its tokens.

        Raises: BudgetSpent, with nothing set aside, where that is more than is left."""
        prompt = json.dumps([dict(message) for message in messages], ensure_ascii=False).encode(
            "utf-8", "backslashreplace"
        )
        reservation = Reservation(len(prompt) + TEMPLATE_TOKENS, max_tokens, price)
        for (name, limit), spent, needs in zip(
            self.limits.items(), self.spent, reservation.spending()
        ):
            if limit is not None and spent + needs > limit:
                raise BudgetSpent(
                    f"budget: {name} is limited to {limit:.12g}, {spent:.12g} are spent, one more request could take "
                    f"{needs:.12g}; what was answered is in the ledger, a higher limit goes on"
                )
        self.spent, self.in_flight = self.spent.plus(reservation.spending()), self.in_flight + 1
        return reservation

    def settle(self, reservation: Reservation, prompt_tokens: int, completion_tokens: int) -> float:
        """Put what an attempt did take in the place of its worst case; returns its price."""
        took = Reservation(prompt_tokens, completion_tokens, reservation.price).spending()
        self.spent, self.in_flight = (
            self.spent.plus(reservation.spending(), -1).plus(took),
            self.in_flight - 1,
        )
        return took.cost


class Teacher(NamedTuple):
    """Whoever answers: `answer(requests, keep, budget)` calls `keep(reply)` as soon as each reply
    is there, in any order."""

    name: str  # how rows and the ledger call it
    answer: Callable[[Sequence[Request], Callable[[Reply], None], Budget], None]
    shared: bool = (
        False  # ranks of torchrun share the requests (local models), or rank 0 alone asks
    )
    identity: str = ""  # in digests in place of the name: a local model's weights belong to it


def utc_now() -> str:
    """This moment in UTC, ISO 8601, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
