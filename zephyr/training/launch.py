"""A command line becomes a run: config, engine, exit code, `status.json`. What both training
scripts start with."""

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
from pathlib import Path
from types import FrameType
from typing import NoReturn

from zephyr.config import BadInput, C, load, to_yaml
from zephyr.training.engine import Engine
from zephyr.training.folder import RunFolder, require_separate_paths
from zephyr.training.loop import Stopped

BAD_INPUT, STOPPED = 2, 75
RANK0_TIMEOUT_SECONDS = (
    10  # seconds that a rank which lost another one waits to see whether it was rank 0
)
Train = Callable[[Engine, C, RunFolder | None], None]


def launch(
    kind: type[C], check: Callable[[C], None], train: Train, usage: str, argv: Sequence[str]
) -> int:
    """Run `train(engine, config, folder)` for `CONFIG.yaml [key.sub=value ...] [--dry-run]`;
    returns the exit code.

    Bad input is one line on standard error and code 2; a run that was asked to stop, and saved, is
    code 75. `status.json` says the same, unless the run folder holds another run.
    Args: check: raises BadInput for what needs no process group. train: its folder is None for a
    dry run."""
    if not argv or {"-h", "--help"} & set(argv):
        print(usage)
        return 0 if argv else BAD_INPUT
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|deepspeed")
    path, *overrides = [a for a in argv if a != "--dry-run"] or [""]
    folder = None
    try:
        config = load(kind, path, overrides)
        require_separate_paths(config)
        folder = None if "--dry-run" in argv else RunFolder(Path(config.run.dir))
        check(config)
        run(config, folder, train)
    except BadInput as error:  # of whichever rank: told once a node
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
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
            why = f"another rank ended or can't be reached; started again, the run goes on from its last checkpoint ({why})"
            print(f"error: {why}", file=sys.stderr)
        finish_run(folder, 1, why)
        raise
    return finish_run(folder, 0, "finished")


def finish_run(folder: RunFolder | None, code: int, message: str) -> int:
    """Write the end into `status.json`, give the folder back; returns the code."""
    if folder is not None:
        folder.write_status(code, message)
        folder.close()
    return code


def is_lost_rank_error(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and re.search("peer|NCCL", str(error)) is not None


def exit_process(code: int) -> NoReturn:
    """End the process with the code of `launch`: all is written, and no thread of a library, taken
    down with the interpreter (which can abort), may make another code of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(config: C, folder: RunFolder | None, train: Train) -> None:
    """Train under the run folder's lock. Args: folder: None for a dry run."""
    engine = Engine(config.hardware, config.run.seed)
    exit_with_torchrun()
    try:
        if folder is not None:
            engine.on_all_ranks(
                lambda: folder.open(config.run.resume) if engine.rank == 0 else None
            )
            folder.claimed = engine.broadcast(folder.claimed)
            folder.write_file("config.yaml", to_yaml(config).encode())
            folder.write_status(None, "running")
            watch_rank0(engine, folder)
        with handle_stop_signals(engine):
            try:
                train(engine, config, folder)
            except RuntimeError as error:  # while torchrun's SIGTERM does not yet end this process
                if folder is not None and engine.rank > 0 and is_lost_rank_error(error):
                    folder.write_status_for_rank0(RANK0_TIMEOUT_SECONDS)
                raise
    except (BadInput, Stopped):  # on all ranks; after any other, closing might wait for dead ones
        engine.close()
        raise
    engine.close()


def watch_rank0(engine: Engine, folder: RunFolder) -> None:
    """On the other ranks: write the end of a rank 0 that dies while they hang, as they do in a
    collective of NCCL."""

    def watch() -> None:
        while not folder.write_status_for_rank0(0):
            time.sleep(5)

    if engine.rank > 0:
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def handle_stop_signals(engine: Engine) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT ask the run to stop after the step; a second SIGINT stops at
    once."""

    def ask(number: int, _: FrameType | None) -> None:
        if engine.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        engine.stop_requested = True

    before = {
        number: signal.signal(number, ask)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_with_torchrun() -> None:
    """Under torchrun, end this process within seconds of its launcher's death: an orphan must not
    train on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(5)
        os._exit(1)

    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()
