"""A process that imports once what the training scripts need, and forks for every run: a run costs
what it does, not its imports.

Each rank of a run is a process of its own, with its own environment and exit code, and ends as
python does. A request is a line of JSON on standard input, the answer a line on standard output.
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

from processes import free_port

ROOT = Path(__file__).resolve().parents[1]
GRACE = 30  # seconds that the other ranks have where one failed, as torchrun gives them
LATE = 124  # the exit code of a run that was ended for taking too long, as of timeout(1)
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Done(NamedTuple):
    code: int
    out: str
    err: str


class ForkServer:
    """The client's side: starts the process, ends it with `close`."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        seconds: float = 60,
        *,
        script: str = "train_dpo.py",
        ranks: int = 0,
        cwd: Path | None = None,
    ) -> Done:
        """`python SCRIPT *arguments`, started in `cwd`, else in `folder`, which is given what it
        says as files.

        environment: what is added to this process's. ranks: so many processes with torchrun's
        variables; where one fails, the others are ended and the code is its own; 0: one process
        without them."""
        request = {
            "script": script,
            "arguments": list(arguments),
            "environment": {**os.environ, **environment},
            "seconds": seconds,
            "folder": str(cwd or folder),
            "out": str(folder / "stdout"),
            "err": str(folder / "stderr"),
            "ranks": [
                torchrun(rank, ranks, port) for port in [free_port()] for rank in range(ranks)
            ]
            or [{}],
        }
        for name in ("stdout", "stderr"):
            (folder / name).write_bytes(b"")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        return Done(
            code,
            *(
                (folder / name).read_text("utf-8", "surrogateescape")
                for name in ("stdout", "stderr")
            ),
        )

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun gives to a rank of one machine."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


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
    import train_sft  # noqa: F401

    gc.collect()
    gc.freeze()  # a fork's collections leave alone what all share
    while line := sys.stdin.readline():
        request = json.loads(line)
        forks = []
        for variables in request["ranks"]:
            if (pid := os.fork()) == 0:
                answers.close()
                become_the_script(request, variables)
            forks.append(pid)
        answers.write(f"{ended(forks, request['seconds'])}\n")
        answers.flush()


def ended(forks: Sequence[int], seconds: float) -> int:
    """The exit code of the forks; negative: of a signal. The first that fails takes the others with
    it, as under torchrun."""
    deadline, code, left = time.monotonic() + seconds, 0, list(forks)
    while left:
        for pid in left:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                left.remove(pid)
                failed = os.waitstatus_to_exitcode(status)
                if failed and not code:
                    code, deadline = failed, min(deadline, time.monotonic() + GRACE)
                    for other in left:
                        os.kill(other, signal.SIGTERM)
                break
        else:
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                return code or LATE
            time.sleep(0.002)
    return code


def become_the_script(request: Mapping[str, object], variables: Mapping[str, str]) -> NoReturn:
    """Runs the script as `python SCRIPT` does, and ends with its exit code, or its traceback and
    1."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["out"], os.O_WRONLY | os.O_APPEND),
        (2, request["err"], os.O_WRONLY | os.O_APPEND),
    ):
        file = os.open(str(path), flags, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"] | variables)
    os.chdir(str(request["folder"]))
    script = str(ROOT / request["script"])
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
