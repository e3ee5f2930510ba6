"""A task file becomes optimiser steps on demand: each line `step K` on standard input is answered
by one line of JSON, and so is a line `evaluate` by who has held-out pairs.

What every contender shares. One calls `done` after each of its steps, whoever owns its loop; the
clock runs from a line to its answer."""

import json
import math
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zephyr.chat import EncodedPair


class Task(NamedTuple):
    """What is alike for all contenders, and the settings of one."""

    folder: str  # for what a contender keeps; of the whole comparison
    model: str
    rows: str  # JSON lines of [id, prompt ids, chosen ids, rejected ids]
    pairs_per_step: int
    lr: float
    beta: float
    grad_clip: float
    threads: int
    gpu: bool
    settings: dict[str, "int | bool | str"]
    held_out: str = ""  # a file as `rows`, or none
    schedule: str = "constant"  # of the learning rate after its warm-up
    warmup_fraction: float = 0.0  # of all steps

    def pairs(self) -> list[EncodedPair]:
        return read_pairs(self.rows)

    def held_out_pairs(self) -> list[EncodedPair]:
        return read_pairs(self.held_out) if self.held_out else []

    def steps(self) -> int:
        """Of one pass over the pairs."""
        return math.ceil(len(self.pairs()) / self.pairs_per_step)


class Rounds:
    """Owns standard input and output, and the clock.

    evaluate: figures of the held-out pairs as the model is now; who has none leaves it out."""

    evaluate: Callable[[], dict[str, float]]

    def __init__(self) -> None:
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        self.task = Task(**json.loads(Path(sys.argv[1]).read_text()))
        torch.set_num_threads(self.task.threads)
        torch.manual_seed(0)

    def begin(self) -> None:
        """All is loaded, and the reference's log-probs are taken: wait for the first round."""
        self.answer(ready=True)

    def done(self, loss: Tensor | float, grad_norm: Tensor | float) -> None:
        """A step is done, its update included. Args: loss: mean over the step's pairs. grad_norm:
        before clipping."""
        self.steps.append((loss, grad_norm))
        if len(self.steps) < self.wanted:
            return
        if self.task.gpu:
            self.events[1].record()
            torch.cuda.synchronize()
        cpu, wall = cpu_seconds() - self.since[0], time.perf_counter() - self.since[1]
        device = (
            {"device_seconds": self.events[0].elapsed_time(self.events[1]) / 1e3}
            if self.task.gpu
            else {}
        )
        peak = (
            torch.cuda.max_memory_allocated()
            if self.task.gpu
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        )
        self.answer(
            cpu_seconds=cpu,
            wall_seconds=wall,
            **device,
            peak_bytes=peak,
            pairs=self.wanted * self.task.pairs_per_step,
            losses=[float(loss) for loss, _ in self.steps],
            grad_norms=[float(norm) for _, norm in self.steps],
        )

    def answer(self, **content: object) -> None:
        """Answer, evaluate where that is asked, wait for the next round, start the clock; the
        process ends where there is none."""
        print(json.dumps(content), file=self.answers, flush=True)
        while (line := sys.stdin.readline()) == "evaluate\n":
            started = time.perf_counter()
            figures = self.evaluate()
            figures["wall_seconds"] = time.perf_counter() - started
            print(json.dumps(figures), file=self.answers, flush=True)
        if not line:
            os._exit(0)  # past what libraries do at the end of a process
        self.steps, self.wanted = [], int(line.removeprefix("step "))
        if self.task.gpu:
            self.events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.events[0].record()
        self.since = cpu_seconds(), time.perf_counter()


def read_pairs(rows: str) -> list[EncodedPair]:
    return [EncodedPair(*json.loads(line)) for line in Path(rows).read_text().splitlines()]


def cpu_seconds() -> float:
    """Of all threads of this process, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
