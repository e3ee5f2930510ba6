"""Requests become replies: those in the ledger are read, the others are answered by the teacher and
appended to the ledger as they arrive."""

from collections.abc import Sequence

from zephyr.config import BadInput
from zephyr.progress import Bar
from zephyr.teacher.ledger import Ledger
from zephyr.teacher.request import Budget, BudgetSpent, Reply, Request, Spending, Teacher
from zephyr.training import ranks


def ask(
    teacher: Teacher, requests: Sequence[Request], ledger: Ledger, budget: Budget
) -> list[Reply]:
    """Return the teacher's replies, each distinct request answered once.

    A collective under torchrun: every rank calls it with the same requests and gets the same
    replies.

    Args:
        teacher: answers the requests that the ledger does not hold.
        requests: any number, duplicates allowed.
        ledger: open for writing.
        budget: what the ledger already holds counts as spent.
    Returns:
        The replies in the order of `requests`.
    Raises:
        BudgetSpent: if the missing replies would or could exceed the budget.
        BadInput: if the teacher cannot be reached.
        In both cases the ledger keeps every reply that arrived, and the same call continues from
        there.
    """
    digests = [request.digest(teacher.identity or teacher.name) for request in requests]
    request_by_digest = dict(zip(digests, requests))

    def keep(reply: Reply) -> None:
        ledger.append(reply, teacher.name, request_by_digest.get(reply.digest))
        # rank 0 keeps its share; the others are as far
        at_a_time = ranks.world_size() if teacher.shared else 1
        bar.update(min(at_a_time, len(missing) - bar.done))

    def find_missing() -> tuple[list[str], Spending]:
        return [digest for digest in request_by_digest if digest not in ledger], budget.spent

    def answer_missing() -> Spending:
        if teacher.shared or ranks.rank() == 0:
            teacher.answer([request_by_digest[digest] for digest in missing], keep, budget)
        return budget.spent

    budget.count_ledger(ledger.path, ledger.held)
    # all ranks use what rank 0 finds: another rank may have read the ledger earlier
    missing, budget.spent = ranks.gather_from_ranks(find_missing)[0]
    bar = Bar(teacher.name, len(missing), "replies")
    try:
        if missing:
            budget.spent = ranks.gather_from_ranks(answer_missing, BadInput, BudgetSpent)[0]
    finally:
        bar.close()
        ledger.refresh()
    replies = []
    for digest in digests:
        reply = ledger.get(digest)
        assert reply is not None, "the teacher left a request without a reply"
        replies.append(reply)
    return replies
