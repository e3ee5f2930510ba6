"""A command line becomes a run: config, engine, exit code, `status.json`. What both training scripts start with."""
import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from zephyr.config import BadInput, C, ConfigError, load, to_yaml
from zephyr.training.checkpoint import write_whole
from zephyr.training.engine import Engine
from zephyr.training.loop import Stopped

BAD_INPUT, STOPPED = 2, 75
RUN_FILES = ("lock", "config.yaml", "status.json", "status.json.part", "metrics.jsonl", "data.json", "preflight.json", "samples.jsonl",
             "samples.ledger.jsonl", "report.html")


class InUse(BadInput):
    """The run folder is another run's: nothing of it may be touched."""


def launch(kind: type[C], check: Callable[[C], None], train: Callable[[Engine, C, bool], None], usage: str, argv: Sequence[str]) -> int:
    """Run `train(engine, config, dry_run)` for `CONFIG.yaml [key.sub=value ...] [--dry-run]`; returns the exit code.

    Bad input is one line on standard error and code 2; a run that was asked to stop, and saved, is code 75.
    Args: check: raises BadInput for what needs no process group."""
    if not argv or {"-h", "--help"} & set(argv):
        print(usage)
        return 0 if argv else BAD_INPUT
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|transformers|deepspeed")
    path, *overrides = [a for a in argv if a != "--dry-run"] or [""]
    run_dir = None
    try:
        config = load(kind, path, overrides)
        run_dir = None if "--dry-run" in argv else Path(config.run.dir)
        check(config)
        run(config, run_dir, train)
    except BadInput as error:                       # of whichever rank: told once a node
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return ended(None if isinstance(error, InUse) else run_dir, BAD_INPUT, str(error))
    except Stopped as stop:
        if os.environ.get("RANK", "0") == "0":
            print(f"stopped: {stop}", file=sys.stderr)
        return ended(run_dir, STOPPED, str(stop))
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            print(f"error: {error}", file=sys.stderr)
            return ended(run_dir, BAD_INPUT, str(error))
        why = "".join(traceback.format_exception_only(error)).strip()
        if isinstance(error, RuntimeError) and re.search("peer|NCCL", why):
            why = f"another rank ended or can't be reached; started again, the run goes on from its last checkpoint ({why})"
            print(f"error: {why}", file=sys.stderr)
        ended(run_dir, 1, why)
        raise
    return ended(run_dir, 0, "finished")


def end(code: int) -> NoReturn:
    """End the process with the code of `launch`: all is written, and no thread of a library, taken down with the interpreter (which
    can abort), may make another code of it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(config: C, run_dir: Path | None, train: Callable[[Engine, C, bool], None]) -> None:
    """Train between taking the run folder's lock and giving it back. Args: run_dir: None for a dry run."""
    engine = Engine(config.hardware, config.run.seed)
    end_with_torchrun()
    try:
        lock = engine.agreed(lambda: open_run(run_dir, config) if run_dir and engine.rank == 0 else None)
        ended(run_dir, None, "running")
        with lock or contextlib.nullcontext(), stop_signals(engine):
            train(engine, config, run_dir is None)
    except (BadInput, Stopped):                     # on all ranks; after any other, closing might wait for dead ones
        engine.close()
        raise
    engine.close()


def open_run(run_dir: Path, config: C) -> TextIO:
    """Make the run folder and hold its lock, which ends with the process; write the resolved config.

    Raises: BadInput where another process holds it, where run.resume is never and a run lies there, or it can't be written."""
    if config.run.resume == "never" and ((run_dir / "metrics.jsonl").exists() or (run_dir / "checkpoints").exists()):
        raise InUse(f"run.resume is never, and {run_dir} holds a run already; name another run.dir")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if links := [name for name in RUN_FILES if (run_dir / name).is_symlink()]:
            raise InUse(f"run.dir: {run_dir / links[0]} is a link, which would be written through; wanted a file of the run: remove it")
        lock = (run_dir / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            with lock:
                raise InUse(f"run.dir: {run_dir} is in use by {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
        lock.flush()
        write_whole(run_dir / "config.yaml", to_yaml(config).encode())
    except OSError as error:
        raise ConfigError(f"run.dir: {run_dir} can't be written: {error.strerror}") from None
    return lock


@contextlib.contextmanager
def stop_signals(engine: Engine) -> Iterator[None]:
    """SIGTERM, SIGUSR1 and SIGINT ask the run to stop after the step; a second SIGINT stops at once."""
    def ask(number: int, _: FrameType | None) -> None:
        if engine.stop_asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        engine.stop_asked = True
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_torchrun() -> None:
    """Under torchrun, end this process within seconds of its launcher's death: an orphan must not train on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(5)
        os._exit(1)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def ended(run_dir: Path | None, code: int | None, message: str) -> int | None:
    """Write `status.json` on rank 0: the exit code (null: running), which torchrun hides, and message; returns the code."""
    if run_dir is None or os.environ.get("RANK", "0") != "0":
        return code
    status, content = run_dir / "status.json", json.dumps({"code": code, "message": message}) + "\n"
    with contextlib.suppress(OSError):              # the folder itself may be what is wrong
        run_dir.mkdir(parents=True, exist_ok=True)
        part = status.with_name("status.json.part")
        try:
            part.write_text(content, encoding="utf-8")
            os.replace(part, status)
        except OSError:                             # a full disk: in the room that the old one has
            part.unlink(missing_ok=True)
            status.write_text(content, encoding="utf-8")
    return code
