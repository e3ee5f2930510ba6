"""A command line becomes a run: config, engine, exit code, `status.json`.

Both training scripts start here."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import NoReturn

from zephyr import progress
from zephyr.config import (
    BAD_INPUT,
    BadInput,
    C,
    DryRun,
    help_text,
    load_arguments,
    print_bad_input,
    read_dry_run,
    to_yaml,
)
from zephyr.training.engine import Engine, use_expandable_segments
from zephyr.training.folder import RunFolder, require_separate_paths
from zephyr.training.heartbeat import lost_message
from zephyr.training.launchers import use_launcher
from zephyr.training.loop import Stopped
from zephyr.training.published import Comparison, last_comparison

STOPPED = 75  # exit code
# A rank that lost another rank waits so long for rank 0 to write the end of the run.
RANK0_TIMEOUT_SECONDS = 10
Train = Callable[[Engine, C, RunFolder], None]
Predict = Callable[[Engine, C, DryRun], None]


def launch(
    kind: type[C],
    check: Callable[[C], None],
    train: Train[C],
    predict: Predict[C],
    usage: str,
    argv: Sequence[str],
) -> int:
    """Run `train(engine, config, folder)` for `CONFIG.yaml [key.sub=value ...] [--quiet]`, or
    `predict(engine, config, asked)` where --dry-run is there.

    The arguments may stand in any order. Bad input is one line on standard error. `status.json`
    says the same as the exit code, unless the run folder holds another run.

    Args:
        check: raises BadInput for what can be known before the process group of a run starts.
        train: the whole run.
        predict: prints what a run will be; it does its own checks.
        usage: what `--help` prints before the keys of the config.
    Returns:
        The exit code: 0, 2 for bad input, 75 for a run that was asked to stop and has saved.
    Raises:
        Exception: every other error of `train`, after `status.json` is written.
    """
    if {"-h", "--help"} & set(argv):
        print(help_text(kind, usage))
        return 0
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|deepspeed")
    use_expandable_segments()  # `check` may start CUDA
    folder = None
    # Signals are handled until the end is written: when a rank ends, torchrun sends SIGTERM to the
    # others, whose default is to end at once, with a status.json that says they run.
    with contextlib.ExitStack() as signals:
        try:
            config = load_arguments(kind, argv)
            use_launcher()
            require_separate_paths(config)
            asked = read_dry_run(argv)
            with progress.quiet("--quiet" in argv):
                if asked is not None:
                    dry_run(config, asked, predict)
                    return 0
                folder = RunFolder(Path(config.run.dir))
                check(config)
                run(config, folder, train, signals)
        except BadInput as error:  # of any rank
            print_bad_input(error)
            return finish_run(folder, BAD_INPUT, str(error))
        except Stopped as stop:
            if os.environ.get("RANK", "0") == "0":
                print(f"stopped: {stop}", file=sys.stderr)
            return finish_run(folder, STOPPED, str(stop))
        except BaseException as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                print(f"error: {error}", file=sys.stderr)
                return finish_run(folder, BAD_INPUT, str(error))
            why = "".join(traceback.format_exception_only(error)).strip()
            if is_lost_rank_error(error):
                why = lost_message("another rank", why)
                print(f"error: {why}", file=sys.stderr)
            finish_run(folder, 1, why)
            raise
        return finish_run(folder, 0, "finished", last_comparison(config.published, config.run.dir))


def finish_run(
    folder: RunFolder | None, code: int, message: str, compared: Comparison | None = None
) -> int:
    """Write the end into `status.json` and release the folder. Returns: the code."""
    if folder is not None:
        more = {} if compared is None else {"published": compared.status()}
        folder.write_status(code, message, more)
        folder.close()
    return code


def is_lost_rank_error(error: BaseException) -> bool:
    """Whether gloo or NCCL raised the error because another rank ended or does not answer."""
    found = re.search("peer|NCCL|timed out|No route to host|Broken pipe", str(error), re.IGNORECASE)
    return isinstance(error, RuntimeError) and found is not None


def exit_process(code: int) -> NoReturn:
    """End the process at once with the code of `launch`, when all files are written.

    The interpreter's own shutdown ends the threads of libraries, which can abort the process with
    another code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def dry_run(config: C, asked: DryRun, predict: Predict[C]) -> None:
    """Start the engine and print what a run will be; writes nothing."""
    engine = Engine(config.hardware, config.run.seed)
    try:
        predict(engine, config, asked)
    except BadInput:  # raised on all ranks; after other errors, closing could hang
        engine.close()
        raise
    engine.close()


def run(config: C, folder: RunFolder, train: Train[C], signals: contextlib.ExitStack) -> None:
    """Start the engine and train under the lock of the run folder.

    Args: signals: gets the handlers of signals; they are there until it is closed.
    """
    engine = Engine(config.hardware, config.run.seed)
    exit_with_torchrun()
    try:
        require_one_config(engine, to_yaml(config))
        if engine.rank == 0:
            engine.on_all_ranks(partial(folder.open, config.run.resume))
        else:
            engine.on_all_ranks(lambda: None)
        folder.claimed = engine.broadcast(folder.claimed)
        folder.write_file("config.yaml", to_yaml(config).encode())
        folder.write_status(None, "running")
        watch_rank0(engine, folder)
        if engine.heartbeat is not None:
            engine.heartbeat.on_lost = partial(write_lost_rank, engine, folder)
        signals.enter_context(handle_stop_signals(engine))
        try:
            train(engine, config, folder)
        except RuntimeError as error:
            if engine.rank > 0 and is_lost_rank_error(error):
                folder.write_status_for_rank0(RANK0_TIMEOUT_SECONDS)
            raise
    except (BadInput, Stopped):  # raised on all ranks; after other errors, closing could hang
        engine.close()
        raise
    engine.close()


def require_one_config(engine: Engine, config: str) -> None:
    """Compare the resolved config, as YAML, with rank 0's. A collective.

    Raises: BadInput, on every rank, with the first line that differs on some rank.
    """
    configs = engine.all_gather(config)
    for rank, other in enumerate(configs):
        if other != configs[0]:
            lines = zip_longest(configs[0].splitlines(), other.splitlines(), fillvalue="")
            ours, theirs = next((a, b) for a, b in lines if a != b)
            raise BadInput(
                f"rank {rank} has another config than rank 0: {theirs.strip()!r} there, "
                f"{ours.strip()!r} on rank 0. Start every rank with the same config and overrides; "
                "start separate runs by launches of their own (in Slurm one srun each)"
            )


def write_lost_rank(engine: Engine, folder: RunFolder, why: str) -> None:
    """Write the end of the run where a rank was lost; another rank does if rank 0 has ended."""
    if engine.rank == 0:
        folder.write_status(1, why)
    else:
        folder.write_status_for_rank0(RANK0_TIMEOUT_SECONDS)


def watch_rank0(engine: Engine, folder: RunFolder) -> None:
    """On the other ranks, write the end of the run when rank 0 dies.

    A thread does it, because their main threads hang in a collective of NCCL.
    """

    def watch() -> None:
        while not folder.write_status_for_rank0(0):
            time.sleep(5)

    if engine.rank > 0:
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def handle_stop_signals(engine: Engine) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT ask the run to stop after the step; a second SIGINT stops it
    immediately."""

    def request_stop(number: int, _: FrameType | None) -> None:
        if engine.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        engine.stop_requested = True

    signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.signal(number, request_stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_with_torchrun() -> None:
    """Under torchrun, end this process within seconds of the launcher's death.

    Otherwise it would go on training and hold the run folder.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(5)
        os._exit(1)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
