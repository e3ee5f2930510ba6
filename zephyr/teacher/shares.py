"""Replies that other ledgers hold are used before a teacher is asked, and the requests of one run
are divided over shards that run at the same time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from zephyr.config import BadInput
from zephyr.progress import info
from zephyr.teacher.ledger import Ledger
from zephyr.teacher.replies import ask
from zephyr.teacher.request import Budget, Reply, Request, Teacher
from zephyr.training import ranks

Keep = Callable[[Reply], None]
POLL_SECONDS = 0.2  # between two looks into the ledgers of the other shards
TOLD_SECONDS = 30.0  # of waiting, after which a line says for whom
MAX_WAIT_SECONDS = 3600.0  # without any reply of another shard


class ShardsAway(RuntimeError):
    """Another shard did not answer its share in time. The ledger holds every reply so far."""


def open_existing(paths: Sequence[Path]) -> list[Ledger]:
    """The ledgers of those paths that exist, for reading only."""
    return [Ledger(path, read_only=True) for path in paths if path.is_file()]


def find_reply(ledgers: Sequence[Ledger], digest: str) -> Reply | None:
    """The reply to a request in the first ledger that has it."""
    for ledger in ledgers:
        reply = ledger.get(digest)
        if reply is not None:
            return reply
    return None


def reusing(teacher: Teacher, ledgers: Sequence[Ledger]) -> Teacher:
    """`teacher`, which is asked only what none of the ledgers holds. What they hold is copied."""
    if not ledgers:
        return teacher
    identity = teacher.identity or teacher.name

    def answer(requests: Sequence[Request], keep: Keep, budget: Budget) -> None:
        missing = []
        for request in requests:
            reply = find_reply(ledgers, request.digest(identity))
            if reply is None:
                missing.append(request)
            elif ranks.rank() == 0:
                keep(reply)
        if missing:
            teacher.answer(missing, keep, budget)

    return teacher._replace(answer=answer)


def absent(name: str, identity: str, where: str) -> Teacher:
    """A teacher that is not asked: each of its replies must be in a ledger.

    Args: where: the ledgers, for the message.
    """

    def answer(requests: Sequence[Request], keep: Keep, budget: Budget) -> None:
        asked = str(requests[0].messages[-1]["content"])
        raise BadInput(
            f"{where}: {len(requests)} replies of {name} are missing, expected those of all "
            f"shards; the first is to {asked!r:.100}; run the shards again: they ask only for what "
            "is missing"
        )

    return Teacher(name, answer, identity=identity)


class Shares:
    """The ledgers of all shards, each of which asks its share of every list of requests.

    A shard finds the other replies in the ledgers of the others, so that all shards go on with the
    same replies.
    """

    def __init__(self, index: int, paths: Sequence[Path]) -> None:
        """Args: index: of this shard. paths: of all shards' ledgers. They may not exist yet."""
        self.index = index
        self.paths = list(paths)
        self.opened: dict[int, Ledger] = {}
        self.owners: dict[str, int] = {}  # digest -> the shard that asks it

    def ask(
        self, teacher: Teacher, requests: Sequence[Request], ledger: Ledger, budget: Budget
    ) -> list[Reply]:
        """As `replies.ask`, which is called with this shard's share.

        Raises:
            ShardsAway: if no reply of another shard came for `MAX_WAIT_SECONDS`.
            BudgetSpent, BadInput: as `replies.ask`.
        """
        identity = teacher.identity or teacher.name
        by_digest = {request.digest(identity): request for request in requests}
        for number, digest in enumerate(by_digest):
            self.owners.setdefault(digest, number % len(self.paths))
        owners = {digest: self.owners[digest] for digest in by_digest}
        mine = [request for digest, request in by_digest.items() if owners[digest] == self.index]
        ask(teacher, mine, ledger, budget)
        self.wait_for({d: owner for d, owner in owners.items() if owner != self.index})
        replies = []
        for request in requests:
            digest = request.digest(identity)
            owner = owners[digest]
            holder = ledger if owner == self.index else self.opened[owner]
            reply = holder.get(digest)
            assert reply is not None, "`wait_for` and `ask` return once all replies are there"
            replies.append(reply)
        return replies

    def wait_for(self, owners: dict[str, int]) -> None:
        """Wait until the ledger of each reply's shard holds it. Args: owners: shards by digest."""
        last_change = time.monotonic()
        is_told = False
        while owners := self.find_missing(before := owners):
            now = time.monotonic()
            if len(owners) < len(before):
                last_change, is_told = now, False
            waited = now - last_change
            names = ", ".join(self.paths[owner].name for owner in sorted(set(owners.values())))
            if waited > MAX_WAIT_SECONDS:
                raise ShardsAway(
                    f"no reply came into {names} for {waited:.0f} s, {len(owners)} are missing; "
                    "all shards must run at the same time; run them again: they continue from here"
                )
            if waited > TOLD_SECONDS and not is_told:
                info(f"waits for {len(owners)} replies of other shards, in {names}")
                is_told = True
            time.sleep(POLL_SECONDS)

    def find_missing(self, owners: dict[str, int]) -> dict[str, int]:
        """Those that are not yet in the ledger of their shard."""
        for owner in set(owners.values()):
            if owner not in self.opened and self.paths[owner].is_file():
                self.opened[owner] = Ledger(self.paths[owner], read_only=True)
            elif owner in self.opened:
                self.opened[owner].refresh()
        return {
            digest: owner
            for digest, owner in owners.items()
            if owner not in self.opened or digest not in self.opened[owner]
        }
