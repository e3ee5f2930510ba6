"""A process that imports once all libraries, but nothing of this project, and forks for every run
of tests on a copy of it.

A request is a line of JSON on standard input: the copy, the module to import, pytest's arguments;
the answer is an exit code on standard output: pytest's, `BROKEN` where the copy's module does not
import, `LATE` where the tests took too long."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
from forkserver import ENVIRONMENT, ended  # noqa: E402

del sys.path[0], sys.modules["forkserver"], sys.modules["processes"]  # each copy imports its own

BROKEN = 90
PASSED, FAILED = 0, 1  # pytest's exit codes; 2 and more: it could not run the tests


class TestServer:
    """The client's side: starts the process, ends it with `close`."""

    __test__ = False  # pytest takes it for tests by its name

    def __init__(self) -> None:
        environment = {
            name: value
            for name, value in os.environ.items()
            if name != "PYTHONPATH" and not name.startswith("PYTEST")
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd="/",
            env={**environment, **ENVIRONMENT},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, copy: Path, module: str, arguments: Sequence[str], seconds: float) -> int:
        """The exit code of pytest with these arguments in the copy; what it says is in the file
        `said` of the copy."""
        request = {
            "copy": str(copy),
            "module": module,
            "arguments": list(arguments),
            "seconds": seconds,
        }
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def serve() -> None:
    """Answers requests till standard input ends, each by a fork."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import hypothesis  # noqa: F401
    import pytest  # noqa: F401
    import transformers.models.mistral.modeling_mistral  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

    assert not any(name.split(".")[0] == "zephyr" for name in sys.modules), (
        "a fork would test this project, not its copy"
    )
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            answers.close()
            run_tests(request)
        answers.write(f"{ended([pid], request['seconds'])}\n")
        answers.flush()


def run_tests(request: Mapping[str, object]) -> NoReturn:
    """Imports the module from the copy, runs pytest there, and ends with its exit code."""
    import hypothesis
    import pytest

    copy = Path(str(request["copy"]))
    said = os.open(copy / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.setsid()  # ended late, it takes its children with it
    os.environ["PYTHONPATH"] = str(copy)
    os.chdir(copy)
    sys.path[:0] = [str(copy)]
    hypothesis.settings.register_profile(  # that a test fails is enough: no smallest example
        "mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None
    )
    hypothesis.settings.load_profile("mutants")
    try:
        module = importlib.import_module(str(request["module"]))
        assert Path(str(module.__file__)).is_relative_to(copy), (
            f"{module.__file__} is not of the copy"
        )
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(BROKEN)
    code = int(pytest.main([str(argument) for argument in request["arguments"]]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    serve()
