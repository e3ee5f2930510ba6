"""A request to a teacher, its reply and its price as plain records, and the budget that limits
their sum."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from zephyr.config import BadInput

Message = Mapping[str, object]  # {"role", "content"}, and other keys of a chat message

# Upper bound of the tokens that a chat template adds to a conversation, besides its text and roles.
TEMPLATE_TOKENS = 64


class Request(NamedTuple):
    """One request to a teacher.

    `messages`: system, user and assistant turns, the last by the user.
    `seed`: of sampling. A repeated request gets another seed, which makes it a new request.
    `about`: the question as fields, for embedded teachers. It is never sent, and is not part of the
    digest.
    """

    messages: tuple[Message, ...]
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    about: Mapping[str, object] = MappingProxyType({})

    def payload(self) -> dict[str, object]:
        """Return every field that the reply depends on, as JSON values: all but `about`."""
        return {
            "messages": [dict(message) for message in self.messages],
            "max_tokens": int(self.max_tokens),
            "temperature": float(self.temperature),
            "top_p": float(self.top_p),
            "seed": int(self.seed),
        }

    def digest(self, teacher: str) -> str:
        """Return the SHA-256 (hex) of the canonical JSON of `payload()` and the teacher's identity.

        Args:
            teacher: `Teacher.identity`, or the teacher's name if it has none.
        """
        canonical = json.dumps(
            {"teacher": teacher, **self.payload()}, sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode()).hexdigest()


class Reply(NamedTuple):
    """A teacher's reply to one request.

    `text`: None if the request was refused; `error` then gives the reason.
    `version`: the endpoint's system_fingerprint, a digest of the weights, or a package's version;
    "" if unknown.
    `price`: in the currency of the budget's prices.
    `time`: UTC, ISO 8601.
    `raw`: the endpoint's parsed JSON body; None for other teachers.
    """

    digest: str  # of the request
    text: str | None
    model: str
    version: str
    prompt_tokens: int
    completion_tokens: int
    price: float
    time: str
    finish_reason: str = "stop"
    error: str = ""
    raw: object = None


class Spending(NamedTuple):
    """Number of attempts, of prompt and completion tokens together, and their price."""

    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: "Spending") -> "Spending":
        return Spending(
            self.requests + other.requests, self.tokens + other.tokens, self.cost + other.cost
        )

    def minus(self, other: "Spending") -> "Spending":
        return Spending(
            self.requests - other.requests, self.tokens - other.tokens, self.cost - other.cost
        )


class Reservation(NamedTuple):
    """The tokens that one attempt uses, or their upper bounds, and the price per million tokens
    (prompt, completion)."""

    prompt_tokens: int
    completion_tokens: int
    price: tuple[float, float]

    def spending(self) -> Spending:
        cost = (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6
        return Spending(1, self.prompt_tokens + self.completion_tokens, cost)


class BudgetSpent(RuntimeError):
    """One more request would or could exceed the budget. The ledger holds every reply so far."""


class Budget:
    """Hard limits on requests, tokens and cost.

    Replies that the ledger already holds count as spent. So do failed attempts: as requests, and
    with their upper bound of tokens if the server may have worked on them. The ledger keeps failed
    attempts too, so that a restart counts them. Only requests in flight when a process is killed
    are not counted.

    Attributes:
        spent: includes the upper bounds of requests in flight.
        in_flight: number of reservations that are not settled.
    """

    def __init__(
        self,
        requests: int | None = None,
        tokens: int | None = None,
        cost: float | None = None,
        prices: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        """Args: requests, tokens, cost: the limits; None for no limit. prices: by model, (prompt,
        completion) per million tokens."""
        self.limits = {"requests": requests, "tokens": tokens, "cost": cost}
        self.prices = dict(prices or {})
        self.spent = Spending()
        self.in_flight = 0
        self._counted: set[Path] = set()

    def count_ledger(self, ledger: Path, held: Spending) -> None:
        """Count what a ledger holds as spent. Later calls with the same path change nothing."""
        if ledger not in self._counted:
            self._counted.add(ledger)
            self.spent = self.spent.plus(held)

    def price(self, model: str) -> tuple[float, float]:
        """Return the model's price. Raises: BadInput if cost is limited and the model has none."""
        if self.limits["cost"] is not None and model not in self.prices:
            raise BadInput(
                f"budget: a limit of cost needs a price for {model!r}, found prices of "
                f"{sorted(self.prices) or 'no model'}"
            )
        return self.prices.get(model, (0.0, 0.0))

    def reserve(
        self,
        messages: Sequence[Message],
        max_tokens: int,
        price: tuple[float, float] = (0.0, 0.0),
    ) -> Reservation:
        """Reserve the upper bound of one attempt.

        The number of UTF-8 bytes of the prompt, as JSON, bounds its tokens.

        Raises:
            BudgetSpent: if that is more than what is left. Nothing is reserved then.
        """
        prompt = json.dumps([dict(message) for message in messages], ensure_ascii=False)
        prompt_bytes = len(prompt.encode("utf-8", "backslashreplace"))
        reservation = Reservation(prompt_bytes + TEMPLATE_TOKENS, max_tokens, price)
        needed = reservation.spending()
        for (name, limit), spent, needs in zip(self.limits.items(), self.spent, needed):
            if limit is not None and spent + needs > limit:
                raise BudgetSpent(
                    f"budget: {name}: the limit is {limit:.12g}, {spent:.12g} are spent, one more "
                    f"request could take {needs:.12g}; the ledger holds all replies so far, and a "
                    "run with a higher limit continues from there"
                )
        self.spent = self.spent.plus(needed)
        self.in_flight += 1
        return reservation

    def settle(self, reservation: Reservation, prompt_tokens: int, completion_tokens: int) -> float:
        """Replace a reservation by the tokens that the attempt used; returns their price."""
        used = Reservation(prompt_tokens, completion_tokens, reservation.price).spending()
        self.spent = self.spent.minus(reservation.spending()).plus(used)
        self.in_flight -= 1
        return used.cost


class Teacher(NamedTuple):
    """Answers requests.

    `name`: its name in rows and in the ledger.
    `answer(requests, keep, budget)`: calls `keep(reply)` as soon as each reply arrives, in any
    order.
    `shared`: all ranks of torchrun call `answer` and divide the requests (local models); otherwise
    only rank 0 calls it.
    `identity`: replaces the name in digests if the name is not enough, e.g. for a local model whose
    weights may change.
    """

    name: str
    answer: Callable[[Sequence[Request], Callable[[Reply], None], Budget], None]
    shared: bool = False
    identity: str = ""


def utc_now() -> str:
    """Return the current time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
