"""A command becomes a server that answers as the policy, from when it is ready until it is no
longer needed: its memory is then free for training, and the next round loads the next weights."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from zephyr.config import BadInput
from zephyr.progress import info
from zephyr.rounds.config import Server
from zephyr.rounds.processes import guarded
from zephyr.teacher import Teacher
from zephyr.teacher.endpoint import endpoint

STOP_SECONDS = 30  # until a server that was asked to stop is killed
LOG_CHARS = 400  # of the end of its log in an error


@contextlib.contextmanager
def serving(
    server: Server, model: str, weights: str, log: Path, lock: int | None
) -> Iterator[Teacher]:
    """The policy behind a server of its own, as a teacher, until the end of the block.

    Args:
        model: path of the policy.
        weights: digest of the policy: a reply belongs to it, not to the port of the server.
        log: gets all that the server writes.
        lock: as of `launcher`.
    Raises:
        BadInput: the server ends, or is not ready in time; with the end of its log.
    """
    assert server.command is not None
    port = free_port()
    words = shlex.split(server.command)
    command = [word.replace("{model}", model).replace("{port}", str(port)) for word in words]
    if shutil.which(command[0]) is None:
        raise BadInput(f"server.command: no program {command[0]!r} is found here")
    teacher = endpoint(
        server.name.replace("{model}", model),
        f"http://127.0.0.1:{port}/v1",
        concurrency=server.concurrency,
        timeout_seconds=server.request_seconds,
        identity=f"{model} {weights} by {server.command}",
    )
    info(f"starting {shlex.join(command)}; its log is {log}")
    with (
        log.open("ab") as output,
        guarded(command, output.fileno(), lock=lock, grace=STOP_SECONDS) as process,
    ):
        wait_until_ready(server, process, f"http://127.0.0.1:{port}{server.health}", log)
        yield teacher


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_ready(server: Server, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Ask the path of health until it answers with a success. Raises: BadInput."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy
    until = time.monotonic() + server.start_seconds
    while True:
        with contextlib.suppress(OSError):
            opener.open(url, timeout=5).close()
            return
        if process.poll() is not None:
            why = f"it ended with code {process.returncode}"
        elif time.monotonic() > until:
            why = f"it was not ready within {server.start_seconds} s"
        else:
            time.sleep(0.1)
            continue
        raise BadInput(f"server.command: {why}; the end of its log {log}: {log_end(log)}")


def log_end(log: Path) -> str:
    """The last characters of a log."""
    with log.open("rb") as file:
        file.seek(max(0, os.path.getsize(log) - LOG_CHARS))
        return file.read().decode(errors="replace")
