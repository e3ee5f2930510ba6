"""A part of a round becomes processes: under torchrun where there are several, always under a
guard, so that none of them outlives this one."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import zephyr
from zephyr.rounds import guard

# Seconds until a process that was asked to end is killed: a training saves a checkpoint first.
GRACE_SECONDS = 600
STOPPED = 75  # exit code of what was saved and stopped


class Job(NamedTuple):
    """A Python program of this package, or a training script beside it, and its arguments."""

    program: str  # `train_dpo.py`, or a module such as `zephyr.rounds.work`
    arguments: Sequence[str]
    processes: int
    log: Path  # gets all that they write


Launch = Callable[[Job], int]  # runs a job to its end; returns its exit code


class Stopped(BaseException):
    """A signal asked this process to stop; every finished part is on the disk."""


def launcher(lock: int | None) -> Launch:
    """A function that runs a job. Args: lock: a file descriptor that the guard keeps open, so that
    the lock on it is held until the job has ended."""

    def launch(job: Job) -> int:
        with (
            job.log.open("ab") as output,
            guarded(command_of(job), output.fileno(), lock=lock) as process,
        ):
            return process.wait()

    return launch


def command_of(job: Job) -> list[str]:
    """The command line of a job: plain Python for one process, torchrun for several."""
    is_script = job.program.endswith(".py")
    script = str(Path(zephyr.__file__).parents[1] / job.program)
    words = [script] if is_script else ["-m", job.program]
    if job.processes == 1:
        return [sys.executable, *words, *job.arguments]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={job.processes}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
        *shutdown_options(),
        *words,
        *job.arguments,
    ]


def shutdown_options() -> list[str]:
    """What lets torchrun wait for ranks that save a checkpoint, where this torchrun has it.

    Its source is searched, because importing it imports torch.
    """
    torch = importlib.util.find_spec("torch")
    assert torch is not None and torch.submodule_search_locations
    source = Path(torch.submodule_search_locations[0]) / "distributed" / "run.py"
    is_known = "--shutdown-timeout" in source.read_text(encoding="utf-8").replace("_", "-")
    return [f"--shutdown-timeout={GRACE_SECONDS}"] if is_known else []


@contextlib.contextmanager
def guarded(
    command: Sequence[str],
    output: int,
    *,
    lock: int | None = None,
    grace: float = GRACE_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs until the end of the block at most: then it gets SIGTERM, and SIGKILL
    after `grace` seconds. The same happens when this process ends, however it ends.

    Args: output: file descriptor for all that it writes. environment: in place of this process's.
    """
    process = subprocess.Popen(
        [sys.executable, guard.__file__, str(grace), *command],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env=environment,
        start_new_session=True,
        pass_fds=() if lock is None else (lock,),
    )
    try:
        yield process
    finally:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """SIGTERM, SIGINT and SIGUSR1 raise Stopped in the main thread; a second one is ignored while
    what runs is saved, except for a second SIGINT, which ends this process as usual."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def stop(_: int, __: FrameType | None) -> None:
        for number in numbers:
            is_interrupt = number == signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_interrupt else signal.SIG_IGN)
        raise Stopped

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
