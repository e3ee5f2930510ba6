"""A request becomes a reservation of what it could cost at most, and its reply what it did cost; no sum passes its limit."""
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput

TEMPLATE_TOKENS = 64            # what a chat template may write of its own around a conversation, beside its roles


class BudgetSpent(RuntimeError):
    """A further request would, or could, exceed the budget. All that was answered is in the ledger."""


class Spending(NamedTuple):
    """Attempts, prompt and completion tokens together, and money."""
    requests: int = 0
    tokens: int = 0
    cost: float = 0.0

    def plus(self, other: "Spending", sign: int = 1) -> "Spending":
        return Spending(*(mine + sign * its for mine, its in zip(self, other)))


class Hold(NamedTuple):
    """An attempt: tokens that it takes, or may take at most; `price` (prompt, completion) per million."""
    prompt_tokens: int
    completion_tokens: int
    price: tuple[float, float]

    def spending(self) -> Spending:
        cost = (self.prompt_tokens * self.price[0] + self.completion_tokens * self.price[1]) / 1e6
        return Spending(1, self.prompt_tokens + self.completion_tokens, cost)


class Budget:
    """Hard limits in requests, tokens and money, None: no limit; what the ledger holds at its first use is spent already.

    Tries that failed count as requests, and with their worst case where the server may have worked for them; those of an
    earlier process are not in the ledger, and so not counted. `prices`: model -> (prompt, completion) per million tokens."""

    def __init__(self, requests: int | None = None, tokens: int | None = None, cost: float | None = None,
                 prices: Mapping[str, tuple[float, float]] | None = None) -> None:
        self.limits, self.prices = {"requests": requests, "tokens": tokens, "cost": cost}, dict(prices or {})
        self.spent, self.in_flight = Spending(), 0      # spent: with the worst case of what is in flight
        self._counted: set[Path] = set()

    def start_from(self, ledger: Path, held: Spending) -> None:
        """Count what a ledger holds; once, however often it is told."""
        if ledger not in self._counted:
            self._counted.add(ledger)
            self.spent = self.spent.plus(held)

    def price(self, model: str) -> tuple[float, float]:
        """The model's price. Raises: BadInput where money is limited and the model has none."""
        if self.limits["cost"] is not None and model not in self.prices:
            raise BadInput(f"budget: a limit of cost wants a price for {model!r}, prices has {sorted(self.prices) or 'none'}")
        return self.prices.get(model, (0.0, 0.0))

    def reserve(self, messages: Sequence[Mapping[str, str]], max_tokens: int, price: tuple[float, float] = (0.0, 0.0)) -> Hold:
        """Set aside the most that one attempt can take: the UTF-8 bytes of the prompt, as JSON, bound its tokens.

        Raises: BudgetSpent, with nothing set aside, where that is more than is left."""
        prompt = json.dumps([dict(message) for message in messages], ensure_ascii=False).encode("utf-8", "backslashreplace")
        hold = Hold(len(prompt) + TEMPLATE_TOKENS, max_tokens, price)
        after = self.spent.plus(hold.spending())
        for name, limit in self.limits.items():
            if limit is not None and getattr(after, name) > limit:
                needs, spent = getattr(hold.spending(), name), getattr(self.spent, name)
                raise BudgetSpent(f"budget: {name} is limited to {limit:.12g}, {spent:.12g} are spent, one more request could take "
                                  f"{needs:.12g}; what was answered is in the ledger, a higher limit goes on")
        self.spent, self.in_flight = after, self.in_flight + 1
        return hold

    def settle(self, hold: Hold, prompt_tokens: int, completion_tokens: int) -> float:
        """Put what an attempt did take in the place of its worst case; returns its price."""
        took = Hold(prompt_tokens, completion_tokens, hold.price).spending()
        self.spent, self.in_flight = self.spent.plus(hold.spending(), -1).plus(took), self.in_flight - 1
        return took.cost
