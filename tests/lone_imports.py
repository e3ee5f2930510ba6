"""Imports each of some modules alone: in a process of its own that has imported nothing else.

    python tests/lone_imports.py FOLDER LIBRARIES MODULE ...

prints a JSON object of the modules that fail, with their tracebacks. The libraries (joined by
commas) are imported once, and each module in a fork: a new interpreter for each module would import
them again, which takes seconds."""

from __future__ import annotations

import gc
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

LIBRARIES = (
    "datasets",
    "deepspeed",
    "numpy",
    "pyarrow",
    "torch",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.mistral.modeling_mistral",
    "yaml",
)


def failed_imports(
    folder: Path, modules: Sequence[str], libraries: Sequence[str] = LIBRARIES
) -> dict[str, str]:
    """The modules below `folder` that don't import alone, each with its traceback.

    Args: libraries: what may be imported before them."""
    done = subprocess.run(
        [sys.executable, __file__, str(folder), ",".join(libraries), *modules],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    failed: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return failed


def import_in_fork(module: str) -> str:
    """Import a module in a fork. Returns: its traceback, "" where it imports."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.dup2(2, 1)  # a module that prints does not spoil the answer
        try:
            importlib.import_module(module)
        except BaseException:
            os.write(write, traceback.format_exc().encode()[-4000:])
        os._exit(0)  # exit handlers are the parent's
    os.close(write)
    with os.fdopen(read, encoding="utf-8", errors="replace") as file:
        message = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return message or (f"the process ended with {code}" if code else "")


def main() -> None:
    folder, libraries, *modules = sys.argv[1:]
    sys.path[0] = folder  # in place of the folder of this script
    for library in filter(None, libraries.split(",")):
        importlib.import_module(library)
    ours = {module.partition(".")[0] for module in modules}
    imported = ours & set(sys.modules)
    assert not imported, f"{imported} is imported already: no fork would import it alone"
    gc.freeze()
    messages = {module: import_in_fork(module) for module in modules}
    print(json.dumps({module: message for module, message in messages.items() if message}))


if __name__ == "__main__":
    main()
