"""The folder of all rounds: its lock, the settings that it was started with, and the files of each
round. What is done is what is there: every file appears whole, under its final name."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from zephyr.analysis.runs import flatten
from zephyr.config import NOT_YAML, BadInput, DPOConfig, SFTConfig, read_yaml, to_yaml
from zephyr.data.jsonl import report_path, write_json
from zephyr.progress import info
from zephyr.rounds.config import RoundsConfig
from zephyr.training.files import READ_ERRORS, read_json, synced_digest, write_atomic

# Settings that may differ when a run is continued: they change neither samples nor weights, or
# their last digits only. The dtype changes more.
# What the config and the overrides of the training say is compared as a whole, in train.yaml.
FREE_KEYS = (
    "rounds train.config train.overrides train.processes scoring.concurrency "
    "scoring.timeout_seconds scoring.tries scoring.key_variable".split()
)
FREE_GROUPS = ("server.", "scoring.budget_", "hardware.", "run.wandb.")
FIXED_KEYS = ("hardware.dtype",)
LOCK_SECONDS = 900  # to wait for what is left of a run that was killed and still saves
IDENTITY = "identity.json"


class RoundsFolder:
    """The paths in the folder, and its lock from `open` to `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: TextIO | None = None

    def open(self) -> None:
        """Make the folder and take its lock. Where its owner is gone and a guard still ends what it
        started, wait.

        Raises: BadInput where another process runs there, or it can't be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock = (self.path / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise BadInput(f"dir: {self.path} can't be written: {error.strerror}") from None
        until, waits = time.monotonic() + LOCK_SECONDS, False
        while True:
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self.lock.seek(0)
                owner = self.lock.read().strip()
                if is_alive(owner) or time.monotonic() > until:
                    self.lock.close()
                    raise BadInput(f"dir: {self.path} is in use by {owner}") from None
            if not waits:
                info(f"{self.path}: waiting for the end of an earlier process, which was killed")
            waits = True
            time.sleep(0.1)
        self.lock.truncate(0)
        self.lock.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
        self.lock.flush()

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            self.lock.close()

    @property
    def lock_number(self) -> int | None:
        """The file descriptor of the lock."""
        return None if self.lock is None else self.lock.fileno()

    def claim(
        self,
        config: RoundsConfig,
        training: DPOConfig | SFTConfig,
        identity: Mapping[str, str],
    ) -> None:
        """Write the settings, or compare them with those that the folder was started with.

        Args: training: the config of train.config, resolved. identity: digests of the first model,
        the prompts, the scorer and the judge, by name.
        Raises: BadInput naming a setting with both values.
        """
        self.compare("config.yaml", flatten(asdict(config)))
        self.compare("train.yaml", flatten(asdict(training)))
        path = self.path / IDENTITY
        held = read_json(path) if path.exists() else dict(identity)
        for name, digest in identity.items():
            if held.get(name) != digest:
                raise BadInput(
                    f"{self.path}: {name} is not what the run began with: it was "
                    f"{held.get(name)}, it is {digest} (digests); name another dir"
                )
        if not path.exists():
            write_json(path, identity)
        write_atomic(self.path / "config.yaml", to_yaml(config).encode())
        write_atomic(self.path / "train.yaml", to_yaml(training).encode())

    def compare(self, name: str, settings: Mapping[str, object]) -> None:
        """Raises: BadInput naming a setting that is not that of the file, with both values."""
        path = self.path / name
        if not path.exists():
            return
        try:
            tree = read_yaml(path)
        except (OSError, *NOT_YAML) as error:
            raise BadInput(f"{path} can't be read: {error}") from None
        held = flatten(tree)
        for key in dict.fromkeys([*held, *settings]):
            was, now = held.get(key), settings.get(key)
            now = list(now) if isinstance(now, tuple) else now
            if was != now and not may_change(key, was, now):
                raise BadInput(
                    f"{self.path} holds rounds of other settings: {key} was {was!r}, it is "
                    f"{now!r}; take the setting back, or name another dir"
                )

    def round(self, number: int) -> Path:
        """The folder of a round, from 1; of 0: what belongs to the first policy."""
        return self.path / (f"round-{number}" if number else "start")

    def run(self, config: RoundsConfig, number: int) -> Path:
        """The run folder of a round's training."""
        return self.round(number) / config.method

    def policy(self, config: RoundsConfig, after: int) -> str:
        """The model after so many rounds."""
        return str(self.run(config, after) / "model") if after else config.model

    @property
    def ledger(self) -> Path:
        """Every reply of scorers and judges."""
        return self.path / "ledger.jsonl"


def may_change(key: str, was: object, now: object) -> bool:
    """Whether a run can be continued with another value of a setting.

    The command of a server may become another one, but who samples stays: a server, or processes of
    this package.
    """
    if key == "server.command":
        return was is not None and now is not None
    return key not in FIXED_KEYS and (key in FREE_KEYS or key.startswith(FREE_GROUPS))


def wait_until_free(path: Path) -> None:
    """Wait until nobody holds the lock on a file: ranks end some seconds after their launcher was
    killed. Raises: BadInput after LOCK_SECONDS."""
    until = time.monotonic() + LOCK_SECONDS
    while path.exists():
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > until:
                    raise BadInput(f"{path} is in use by another process") from None
        time.sleep(0.2)


def is_alive(owner: str) -> bool:
    """Whether the process that wrote its name into a lock still runs, as far as can be known."""
    words = owner.split()
    if len(words) != 5 or words[4] != socket.gethostname() or not words[1].isdigit():
        return True
    return os.path.exists(f"/proc/{words[1]}") or not os.path.exists("/proc/self")


def is_done(path: Path) -> bool:
    """Whether a file is there with its report, which is written after it.

    Raises: BadInput where the file is not the one that the report was written for.
    """
    report = report_path(path)
    if not path.exists() or not report.exists():
        return False
    try:
        expected = read_json(report)["sha256"]
    except READ_ERRORS as error:
        raise BadInput(f"{report} can't be read: {error}; delete it, it is made again") from None
    if synced_digest(path) != expected:
        raise BadInput(
            f"{path} was changed since it was written; delete it and {report.name}, and what was "
            "made of them, to make it again"
        )
    return True


def read_rows_of(path: Path) -> list[dict[str, object]]:
    """The rows of a file that this package wrote."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
