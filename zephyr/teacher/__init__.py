"""Requests become replies, each paid for once: a reply in the ledger is used again, and only the
missing ones are requested from a teacher (an endpoint, a local model, the embedded world)."""

from zephyr.teacher.embedded import embedded
from zephyr.teacher.endpoint import endpoint
from zephyr.teacher.ledger import Ledger
from zephyr.teacher.local import local
from zephyr.teacher.pool import pool
from zephyr.teacher.replies import ask
from zephyr.teacher.request import Budget, BudgetSpent, Reply, Request, Teacher

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
    "pool",
]
