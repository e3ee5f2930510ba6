"""A command whose end is sure: it ends with all its processes when the process that started it
ends, also by SIGKILL.

This file is a program, `python guard.py GRACE COMMAND ...`: it starts the command, waits for it and
exits with its code. Its standard input is a pipe from whoever started it. When the pipe closes, it
sends SIGTERM to the command, and SIGKILL to whatever is left of it after GRACE seconds. It imports
nothing of this package, so that it starts at once.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

import psutil  # type: ignore[import-untyped]  # its stubs are another package


def run(grace: float, command: Sequence[str]) -> int:
    """Run the command until it ends or the pipe closes. Returns: its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    closed = threading.Event()

    def watch() -> None:
        while os.read(0, 2**12):
            pass
        closed.set()

    threading.Thread(target=watch, daemon=True).start()
    while child.poll() is None and not closed.is_set():
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.05)
    if closed.is_set():
        end(child, grace)
    code = child.wait()
    return code if code >= 0 else 128 - code


def end(child: "subprocess.Popen[bytes]", grace: float) -> None:
    """Ask the command to end, wait, and kill what is left, also processes in other sessions."""
    left = [psutil.Process(child.pid)] if psutil.pid_exists(child.pid) else []
    with contextlib.suppress(psutil.NoSuchProcess):
        left += left[0].children(recursive=True) if left else []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    until = time.monotonic() + grace
    while child.poll() is None and time.monotonic() < until:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.1)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=10)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # the pipe says when to end
    sys.exit(run(float(sys.argv[1]), sys.argv[2:]))
