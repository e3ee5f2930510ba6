"""Questions become replies, each paid for once: from the ledger where it holds them, else from a
teacher, whoever that is."""

from collections.abc import Callable, Sequence

from zephyr.config import BadInput
from zephyr.teacher.endpoint import endpoint
from zephyr.teacher.ledger import Ledger
from zephyr.teacher.local import local
from zephyr.teacher.request import Budget, BudgetSpent, Reply, Request, Teacher, utc_now
from zephyr.training import ranks

__all__ = [
    "Budget",
    "BudgetSpent",
    "Ledger",
    "Reply",
    "Request",
    "Teacher",
    "ask",
    "embedded",
    "endpoint",
    "local",
]


def ask(
    teacher: Teacher, requests: Sequence[Request], ledger: Ledger, budget: Budget
) -> list[Reply]:
    """Replies in the order of the requests: from the ledger where they are in it, else asked (each
    distinct request once) and appended at once. Under torchrun every rank calls it with the same
    requests and gets the same replies.

    Raises: BudgetSpent where the rest would or could exceed the budget; BadInput where the teacher
    can't be asked. Either way everything that was answered is in the ledger, and the same call goes
    on from there."""
    digests = [request.digest(teacher.identity or teacher.name) for request in requests]
    of_digest = dict(zip(digests, requests))

    def keep(reply: Reply) -> None:
        ledger.append(reply, teacher.name, of_digest.get(reply.digest))

    def answer() -> object:
        if teacher.shared or ranks.rank() == 0:
            teacher.answer([of_digest[digest] for digest in missing], keep, budget)
        return budget.spent

    budget.count_ledger(ledger.path, ledger.held)
    missing, budget.spent = ranks.gather_from_ranks(
        lambda: ([d for d in of_digest if d not in ledger], budget.spent)
    )[0]
    try:
        if missing:
            budget.spent = ranks.gather_from_ranks(answer, BadInput, BudgetSpent)[0]
    finally:
        ledger.refresh()
    replies = [ledger.get(digest) for digest in digests]
    assert None not in replies, "a teacher left a request without a reply"
    return replies


def embedded(name: str, reply: Callable[[Request], str], version: str) -> Teacher:
    """A teacher that is a function of the request. It costs nothing; its tokens are words."""
    identity = f"{name} {version}"

    def answer(requests: Sequence[Request], keep: Callable[[Reply], None], budget: Budget) -> None:
        for request in requests:
            reservation = budget.reserve(request.messages, request.max_tokens)
            text = reply(request)
            words = (
                sum(len(message["content"].split()) for message in request.messages),
                len(text.split()),
            )
            keep(
                Reply(
                    request.digest(identity),
                    text,
                    name,
                    version,
                    *words,
                    budget.settle(reservation, *words),
                    utc_now(),
                )
            )

    return Teacher(name, answer, identity=identity)
