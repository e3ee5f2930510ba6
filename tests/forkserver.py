"""A process that imports what the training scripts need once, and forks for every run.

A run then takes no time for imports. Each rank of a run is a process with its own environment and
exit code, and ends as `python SCRIPT` does. A request is a line of JSON on standard input, the
answer a line on standard output.
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
GRACE = 30  # seconds that the other ranks get to end when one failed, as under torchrun
LATE = 124  # exit code of a run that took too long, as that of timeout(1)
ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


class Done(NamedTuple):
    code: int
    out: str
    err: str


class ForkServer:
    """Owns the process, from the client's side; `close` ends it."""

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
        """Run `python SCRIPT *arguments` in `cwd` (default: `folder`).

        Args: environment: added to this process's. folder: for the files stdout and stderr.
        seconds: after these it is killed. ranks: number of processes with torchrun's variables;
        where one fails, the others are ended and its code is returned. 0: one process without
        torchrun's variables.
        """
        port = free_port()
        variables = [torchrun(rank, ranks, port) for rank in range(ranks)]
        request = {
            "script": script,
            "arguments": list(arguments),
            "environment": {**os.environ, **environment},
            "seconds": seconds,
            "folder": str(cwd or folder),
            "out": str(folder / "stdout"),
            "err": str(folder / "stderr"),
            "ranks": variables or [{}],
        }
        for name in ("stdout", "stderr"):
            (folder / name).write_bytes(b"")
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        out = (folder / "stdout").read_text("utf-8", "surrogateescape")
        err = (folder / "stderr").read_text("utf-8", "surrogateescape")
        return Done(code, out, err)

    def close(self) -> None:
        """End the process."""
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def torchrun(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The environment variables that torchrun sets for a rank on one machine."""
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
    """Answer requests until standard input ends, each with a fork."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints must not be taken for an answer
    sys.path.insert(0, str(ROOT))
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401
    from transformers import AutoTokenizer  # noqa: F401

    import train_dpo  # noqa: F401
    import train_sft  # noqa: F401

    gc.collect()
    gc.freeze()  # a fork's garbage collections then don't copy the memory that all share
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
    """Wait for the forks; returns their exit code, negative for a signal.

    When one fails, the others are ended, as under torchrun.
    """
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
    """Run the script as `python SCRIPT` does; end with its exit code, or its traceback and 1."""
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
    os._exit(code)  # freeing memory that is shared with the server would first copy it


if __name__ == "__main__":
    serve()
