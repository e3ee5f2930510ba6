"""What tests need to start the real scripts: the folder they are in, and a free port."""

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
Launch = Callable[..., subprocess.CompletedProcess[str]]  # the fixture `launch` of conftest.py


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
