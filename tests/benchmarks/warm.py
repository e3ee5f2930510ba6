"""Does its imports, waits for a line of standard input, and becomes the script that the line names.

The imports of a step take seconds, and need no GPU: they are done while the step before it
measures. The line is JSON: [script, argument, ...]; without a line the process ends."""

import importlib.util
import json
import os
import runpy
import sys
from pathlib import Path

IMPORTS = ("torch", "transformers", "pyarrow", "deepspeed", "zephyr.config", "zephyr.model.load")


def main() -> None:
    for name in IMPORTS:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    line = sys.stdin.readline()
    if not line:
        return
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    script, *arguments = json.loads(line)
    if script == "-m":
        sys.argv = arguments
        sys.path.pop(0)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [script, *arguments]
        sys.path[0] = str(Path(script).parent)
        runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
