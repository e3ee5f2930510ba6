"""A process that imports once what train_dpo.py needs, and forks for every run: a run costs what it does, not its imports.

Each run is a process of its own, with its own environment, exit code and files for what it says, and ends as python does. A
request is a line of JSON on standard input, the answer a line on standard output.
"""
from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

ROOT = Path(__file__).resolve().parents[2]
LATE = 124  # the exit code of a run that was ended for taking too long, as of timeout(1)
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Done(NamedTuple):
    code: int
    out: str
    err: str


class ForkServer:
    """The client's side: starts the process, ends it with `close`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env={**os.environ, **ENVIRONMENT}, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(self, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float = 60) -> Done:
        """`python train_dpo.py *arguments`, started in `folder`, which is given what it says as files."""
        request = {"arguments": list(arguments), "environment": dict(environment), "seconds": seconds, "folder": str(folder),
                   "out": str(folder / "stdout"), "err": str(folder / "stderr")}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        return Done(code, *((folder / name).read_text("utf-8", "surrogateescape") for name in ("stdout", "stderr")))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def serve() -> None:
    """Answers requests till standard input ends, each by a fork."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    sys.path.insert(0, str(ROOT))
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    import train_dpo  # noqa: F401
    gc.collect()
    gc.freeze()  # a fork's collections leave alone what all share
    while line := sys.stdin.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            become_the_script(request)
        answers.write(f"{ended(pid, request['seconds'])}\n")
        answers.flush()


def ended(pid: int, seconds: float) -> int:
    """The exit code of a fork; negative: of a signal."""
    deadline = time.monotonic() + seconds
    while (state := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return LATE
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(state[1])


def become_the_script(request: Mapping[str, object]) -> NoReturn:
    """Runs train_dpo.py as `python train_dpo.py` does, and ends with its exit code, or its traceback and 1."""
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, request["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
                                (2, request["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)):
        file = os.open(str(path), flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.update(request["environment"])
    os.chdir(str(request["folder"]))
    script = str(ROOT / "train_dpo.py")
    sys.argv = [script, *request["arguments"]]
    code = 1
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # clearing up memory that is shared with the server would first copy it


if __name__ == "__main__":
    serve()
