"""Ranks tell each other every few seconds that they are alive: one that is cut off is noticed.

A thread of each rank meets those of all others over a gloo group of its own, whatever the main
threads do meanwhile: train, encode rows for an hour, or wait for those who do. So ranks wait for
work on the host for as long as it takes, and a rank that is dead or cannot be reached ends the run
within the time-out, also where the main threads hang in a collective of NCCL.
"""

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as distributed

from zephyr.config import is_first_of_node

BEAT_SECONDS = 5.0  # between two meetings, so a rank is missed at most so long after it was lost
# Rank 0 waits for a meeting so much less than the time-out, the others half as much less: the run
# has ended when collectives of the main threads reach the time-out, and rank 0 says who is missing.
MARGIN_SECONDS = 10.0
# How long main threads have to report an error of their own, where a connection was closed.
GRACE_SECONDS = 15.0


class Heartbeat:
    """Owns the thread, and the group in which it meets those of the other ranks. A collective.

    on_lost: called by the thread with a message before it ends the process.
    """

    def __init__(self, timeout_seconds: float, hosts: Sequence[str]) -> None:
        """Args: hosts: the name of the host of each rank."""
        self.on_lost: Callable[[str], None] = lambda _: None
        self.limit = timedelta(seconds=timeout_seconds - MARGIN_SECONDS)
        limit_of_others = self.limit + timedelta(seconds=MARGIN_SECONDS / 2)
        self.group = distributed.new_group(backend="gloo", timeout=limit_of_others)
        self.hosts = hosts
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Meet the other ranks until all of them close."""
        closed = 0
        while closed < len(self.hosts):
            self.closing.wait(BEAT_SECONDS)
            began = time.monotonic()
            try:
                closed = self.meet()
            except RuntimeError as error:
                seconds = time.monotonic() - began
                if seconds < self.limit.total_seconds():
                    self.closing.wait(GRACE_SECONDS)
                if not self.closing.is_set():
                    self.end_process(missing_ranks(str(error)), seconds)
                return

    def meet(self) -> int:
        """Wait for all ranks. Returns: how many are closing. Raises: RuntimeError for a lost rank;
        its text says which (`missing_ranks`)."""
        flag = torch.tensor([int(self.closing.is_set())])
        distributed.monitored_barrier(self.group, timeout=self.limit, wait_all_ranks=True)
        distributed.all_reduce(flag, group=self.group)
        return int(flag.item())

    def end_process(self, ranks: list[int], seconds: float) -> None:
        """Report lost ranks and end this process with code 1. Args: seconds: that they were waited
        for."""
        named = ", ".join(f"rank {rank} on host {self.hosts[rank]}" for rank in ranks)
        reason = f"no sign of life for {seconds:.0f} s"
        if seconds < self.limit.total_seconds():
            reason = "its connection was closed"
        why = lost_message(named or "another rank", reason)
        if is_first_of_node():
            print(f"error: {why}", file=sys.stderr, flush=True)
        self.on_lost(why)
        os._exit(1)

    def close(self) -> None:
        """End the thread, when the other ranks close too."""
        self.closing.set()
        self.thread.join()


def missing_ranks(error: str) -> list[int]:
    """The ranks that did not come to a monitored barrier, by the text of its error.

    Rank 0 is told of all of them; the others are told of rank 0 only. [] where the text says none.
    """
    if "waiting for send/recv from rank 0" in error:
        return [0]
    found = re.search(r"Ranks? ([\d, ]+) failed to pass monitoredBarrier", error)
    return [int(rank) for rank in re.findall(r"\d+", found[1])] if found else []


def lost_message(who: str, reason: str) -> str:
    """What is told about a lost rank."""
    return (
        f"{who} ended or cannot be reached; start the run again, it resumes from its last "
        f"checkpoint ({reason})"
    )
