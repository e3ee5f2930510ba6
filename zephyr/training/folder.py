"""A run folder under its lock: what is kept about a run waits there until the run that lies in it
is known to be the same."""

import contextlib
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig
from zephyr.training.checkpoint import find_run_output
from zephyr.training.files import IDENTITY, READ_ERRORS, read_json, write_atomic

STATUS = "status.json"
FILES = (
    "lock",
    "config.yaml",
    STATUS,
    IDENTITY,
    "metrics.jsonl",
    "data.json",
    "preflight.json",
    "chat_template.jinja",
    "samples.jsonl",
    "samples.ledger.jsonl",
    "report.html",
)
EXPORT = ("model", "model.part")  # folders that are written anew
FOLDERS = (*EXPORT, "checkpoints", "pairs")
RANK0_LOST = "rank 0 ended without a word, as when it is killed; started again, the run goes on from its last checkpoint"


class RunFolder:
    """Owns a run folder: its lock, which rank 0 holds until its process ends, and the files about
    the run.

    In a folder that holds no run yet, files are written as they come. Where one lies, they wait for
    `claim`, which is called when its checkpoint is found to be of the same run: a start that is
    refused leaves that run's record as it was."""

    def __init__(self, path: Path) -> None:
        self.path, self.writes = path, os.environ.get("RANK", "0") == "0"
        self.lock: TextIO | None = None
        self.claimed = False
        self.pending: dict[str, bytes] = {}

    def open(self, resume: str = "auto") -> None:
        """Make the folder and take its lock. Args: resume: the config key run.resume.

        Raises: BadInput where another process holds it, where resume is never and a run lies there,
        or it can't be written."""
        if resume == "never" and self.contains_run():
            raise BadInput(
                f"run.resume is never, and {self.path} holds a run already; name another run.dir"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.require_files()
            lock = (self.path / "lock").open("a+", encoding="utf-8")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                with lock:
                    raise BadInput(
                        f"run.dir: {self.path} is in use by {lock.read().strip()}"
                    ) from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
            lock.flush()
        except OSError as error:
            raise ConfigError(f"run.dir: {self.path} can't be written: {error.strerror}") from None
        self.lock, self.claimed = lock, not self.contains_run()

    def require_files(self) -> None:
        """Raises: BadInput where a file of the run, or its export, is a link: it would be written
        through; where a folder's name is taken by a file."""
        for name in (*FILES, *EXPORT):
            if (self.path / name).is_symlink():
                raise BadInput(
                    f"run.dir: {self.path / name} is a link, which would be written through; "
                    "wanted a file of the run: remove it"
                )
        for name in FOLDERS:
            if os.path.lexists(self.path / name) and not (self.path / name).is_dir():
                raise BadInput(
                    f"run.dir: {self.path / name} is no folder, and the run's {name}/ is to be written there; remove it"
                )

    def contains_run(self) -> bool:
        """Whether steps of a run are recorded here: whose, records, pairs, a checkpoint, or an
        export."""
        begun = any(os.path.exists(self.path / name) for name in ("metrics.jsonl", "checkpoints"))
        return begun or bool(find_run_output(self.path))

    def claim(self) -> None:
        """The run here is this one: what waited is written, and what comes is written at once. On
        every rank."""
        self.claimed = True
        for name, content in self.pending.items():
            self.write_file(name, content)
        self.pending = {}

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file whole, on rank 0, now or when the folder is accepted."""
        if not self.writes:
            return
        if not self.claimed:
            self.pending[name] = content
            return
        try:
            write_atomic(self.path / name, content)
        except OSError as error:
            raise ConfigError(
                f"run.dir: {self.path / name} can't be written: {error.strerror}"
            ) from None

    def write_status(self, code: int | None, message: str) -> None:
        """Keep `status.json`: the exit code (null: running), which torchrun hides, and message. A
        disk that refuses is no error here: the folder itself may be what is wrong."""
        content = json_bytes({"code": code, "message": message})
        if (
            self.writes and self.lock is None and not self.contains_run()
        ):  # the start failed before the lock was taken
            with contextlib.suppress(BadInput):
                self.open()
        if self.lock is not None:
            try:
                self.write_file(STATUS, content)
            except ConfigError:  # a full disk: in the room that the old one has
                with contextlib.suppress(OSError):
                    (self.path / STATUS).write_bytes(content)

    def write_status_for_rank0(self, seconds: float) -> bool:
        """On another rank: write the end that rank 0 did not live to write, once its lock is free
        and the status says that it runs; waits so long for that. Returns whether rank 0 is gone."""
        until = time.monotonic() + seconds
        with (
            contextlib.suppress(*READ_ERRORS),
            (self.path / "lock").open("a+", encoding="utf-8") as lock,
        ):
            while True:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    status = self.path / STATUS
                    if self.claimed and read_json(status)["code"] is None:
                        write_atomic(status, json_bytes({"code": 1, "message": RANK0_LOST}))
                    return True
                if time.monotonic() >= until:
                    return False
                time.sleep(0.1)
        return False

    def close(self) -> None:
        if self.lock is not None:
            self.lock.close()


def require_separate_paths(config: DPOConfig | SFTConfig) -> None:
    """Raises: BadInput where what the run reads lies in what it will write, or its folder in a
    folder of rows: by whatever path or link."""
    run_dir = resolve_path(config.run.dir)
    written = [run_dir / name for name in (*FOLDERS, *FILES)]
    models = {"model": [config.model], "tokenizer": [config.tokenizer or config.model]}
    rows = {
        "data.train": config.data.train,
        "data.eval": config.data.eval,
        "samples.prompts": config.samples.prompts,
    }
    stores = {"reference.dir": [config.reference.dir]} if isinstance(config, DPOConfig) else {}
    for key, paths in {**models, **rows, **stores}.items():
        for text in paths:
            path = resolve_path(
                text
                if os.path.lexists(os.path.expanduser(text)) or key in stores
                else text.partition(":")[0]
            )
            inside = next((place for place in written if path.is_relative_to(place)), None)
            if (
                inside is None
                and os.path.isdir(path)
                and (
                    path == run_dir
                    if key in models
                    else key in rows and run_dir.is_relative_to(path)
                )
            ):
                inside = run_dir
            if inside is not None:
                raise ConfigError(
                    f"{key}: {text} lies where the run writes: {inside} (run.dir {config.run.dir}); name another run.dir"
                    if inside != run_dir
                    else f"{key}: {text} is or holds run.dir, {run_dir}, which the run writes to; "
                    "name another run.dir"
                )


def resolve_path(text: str) -> Path:
    """Where a path leads, its links followed, whether it is there or not."""
    return Path(os.path.realpath(os.path.expanduser(text)))


def json_bytes(value: object) -> bytes:
    """The value in indented lines; half of a surrogate pair, which UTF-8 can't hold, is escaped."""
    return (
        json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    )
