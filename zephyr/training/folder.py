"""A run folder under its lock, and the files about the run in it.

Where the folder holds a run already, files wait until it is known to be this run.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig, source_paths
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
EXPORT = ("model", "model.part", "adapter", "adapter.part")  # folders that are replaced
FOLDERS = (*EXPORT, "checkpoints", "pairs", "eval_pairs")
RANK0_LOST = (
    "rank 0 ended without a message, as when it is killed; started again, the run continues from "
    "its last checkpoint"
)


class RunFolder:
    """Owns a run folder: its lock, which rank 0 holds until its process ends, and its files.

    In a folder without a run, files are written at once. In a folder that holds a run they wait for
    `claim`, which is called when its checkpoint is known to be of this run: a start that is refused
    leaves the record of the other run as it was.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.writes = path, os.environ.get("RANK", "0") == "0"
        self.lock: TextIO | None = None
        self.claimed = False
        self.pending: dict[str, bytes] = {}

    def open(self, resume: str = "auto") -> None:
        """Make the folder and take its lock.

        Args: resume: the config key run.resume.
        Raises: BadInput where another process holds the lock, where resume is never and the folder
        holds a run, or where it can't be written.
        """
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
                with lock:
                    lock.seek(0)
                    owner = lock.read().strip()
                raise BadInput(f"run.dir: {self.path} is in use by {owner}") from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
            lock.flush()
        except OSError as error:
            raise ConfigError(f"run.dir: {self.path} can't be written: {error.strerror}") from None
        self.lock, self.claimed = lock, not self.contains_run()

    def require_files(self) -> None:
        """Check that the names of the run's files and folders can be written.

        Raises: BadInput where one is a link, or a folder's name is taken by a file.
        """
        for name in (*FILES, *EXPORT):
            if (self.path / name).is_symlink():
                raise BadInput(
                    f"run.dir: {self.path / name} is a link, and the run would write to the file "
                    "that it points to: remove the link"
                )
        for name in FOLDERS:
            if os.path.lexists(self.path / name) and not (self.path / name).is_dir():
                raise BadInput(
                    f"run.dir: {self.path / name} is no folder, and the run writes its {name}/ "
                    "there; remove it"
                )

    def contains_run(self) -> bool:
        """Whether the folder holds the start of a run or more: records, pairs, a checkpoint, an
        export."""
        begun = any(os.path.exists(self.path / name) for name in ("metrics.jsonl", "checkpoints"))
        return begun or bool(find_run_output(self.path))

    def claim(self) -> None:
        """Write the files that waited; from now on files are written at once.

        Called on every rank when the run in the folder is known to be this one.
        """
        self.claimed = True
        for name, content in self.pending.items():
            self.write_file(name, content)
        self.pending = {}

    def write_file(self, name: str, content: bytes) -> None:
        """Write a file on rank 0, now or at `claim`; it is whole or as it was before."""
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

    def write_status(
        self, code: int | None, message: str, more: Mapping[str, object] | None = None
    ) -> None:
        """Write `status.json`: the exit code, which torchrun hides, and a message.

        A disk that refuses is not an error here: the folder may be what the message is about.
        Args: code: None while the run is running. more: further fields.
        """
        content = json_bytes({"code": code, "message": message, **(more or {})})
        # Where the start failed before it took the lock
        if self.writes and self.lock is None and not self.contains_run():
            with contextlib.suppress(BadInput):
                self.open()
        if self.lock is None:
            return
        try:
            self.write_file(STATUS, content)
        except ConfigError:  # the disk is full: overwrite the old file in place
            with contextlib.suppress(OSError):
                (self.path / STATUS).write_bytes(content)

    def write_status_for_rank0(self, seconds: float) -> bool:
        """On another rank: write status.json for a rank 0 that ended without doing so.

        That is where its lock is free, and the status says that it runs.
        Args: seconds: how long to wait for the lock.
        Returns: whether rank 0 has ended.
        """
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
        """Release the lock."""
        if self.lock is not None:
            self.lock.close()


def require_separate_paths(config: DPOConfig | SFTConfig) -> None:
    """Check that the run does not write where it reads.

    Raises: BadInput where a model, rows or the reference store lie in a file or folder that the run
    writes, or run.dir lies in a folder of rows or is the model's. Links are followed.
    """
    models = {"model": [config.model], "tokenizer": [config.tokenizer or config.model]}
    rows = {
        "data.train": source_paths(config.data.train),
        "data.eval": source_paths(config.data.eval),
        "samples.prompts": config.samples.prompts,
    }
    if isinstance(config, DPOConfig) and config.reference.model is not None:
        models["reference.model"] = [config.reference.model]
    stores = {"reference.dir": [config.reference.dir]} if isinstance(config, DPOConfig) else {}
    run_dir = resolve_path(config.run.dir)
    written = [run_dir / name for name in (*FOLDERS, *FILES)]
    for key, texts in {**models, **rows, **stores}.items():
        for text in texts:
            path = resolve_path(text)
            if key not in stores and not os.path.lexists(os.path.expanduser(text)):
                path = resolve_path(text.partition(":")[0])  # path:split
            for place in written:
                if path.is_relative_to(place):
                    raise ConfigError(
                        f"{key}: {text} lies where the run writes: {place} "
                        f"(run.dir {config.run.dir}); name another run.dir"
                    )
            holds_run = key in rows and run_dir.is_relative_to(path)
            if os.path.isdir(path) and (holds_run or (key in models and path == run_dir)):
                raise ConfigError(
                    f"{key}: {text} is or holds run.dir, {run_dir}, which the run writes to; "
                    "name another run.dir"
                )


def resolve_path(text: str) -> Path:
    """The absolute path with its links followed; it need not exist."""
    return Path(os.path.realpath(os.path.expanduser(text)))


def json_bytes(value: object) -> bytes:
    """The value as indented JSON; half of a surrogate pair, which UTF-8 can't hold, is escaped."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"
