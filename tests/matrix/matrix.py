"""`make test-matrix`: the tests under sets of versions and under several Pythons, as a table.

For each set and each Python it makes an environment, installs the package under the set's
constraints, and runs tests in it. A Python that is not on the machine is skipped, and said so.

example: python tests/matrix/matrix.py --sets oldest --pythons 3.10,3.12 --tests tests/chat
"""

from __future__ import annotations

import argparse
import glob
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-matrix"
SETS = {
    "oldest": "tests/matrix/oldest.txt",
    "torch2.11": "tests/matrix/torch2.11.txt",
    "tested": "constraints.txt",
    "newest": "tests/matrix/newest.txt",
}
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NUMPY_2_5 = (3, 12)  # the oldest Python of the newest set
# The rooms that depend most on the libraries: what a run computes, reads and writes.
CORE = (
    *("tests/chat", "tests/cli/test_options.py", "tests/data", "tests/model", "tests/packing"),
    *("tests/report/test_publish.py", "tests/test_config.py", "tests/test_losses.py"),
    *("tests/test_reference.py", "tests/test_structure.py", "tests/training"),
)


class Row(NamedTuple):
    """A line of the table."""

    constraints: str
    python: str
    result: str
    seconds: float


def find_python(version: str) -> str | None:
    """The interpreter of a version, such as 3.12, on the path or among those of pyenv."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    candidates = [shutil.which(name), *sorted(glob.glob(f"{pyenv}/versions/*/bin/{name}"))]
    for candidate in candidates:
        if candidate and answers(candidate, version):
            return candidate
    return None


def answers(interpreter: str, version: str) -> bool:
    """Whether an interpreter runs and is of the version: a shim of pyenv may do neither."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    done = subprocess.run([interpreter, "-c", code], capture_output=True, text=True)
    return done.returncode == 0 and done.stdout.strip() == version


def run_cell(name: str, version: str, tests: Sequence[str], *, keep: bool) -> Row:
    """Install a set under one Python, and run the tests there."""
    interpreter = find_python(version)
    if interpreter is None:
        return Row(name, version, f"skipped: no python{version} on this machine", 0.0)
    if name == "newest" and tuple(map(int, version.split("."))) < NUMPY_2_5:
        return Row(name, version, "skipped: the newest set needs Python 3.12", 0.0)
    folder = ENVIRONMENTS / f"{name}-{version}"
    start = time.monotonic()
    try:
        for step, command in commands(interpreter, folder, SETS[name], tests):
            print(f"== {name}, Python {version}: {step}", flush=True)
            code = subprocess.run(command, cwd=ROOT, env=environment()).returncode
            if code:
                return Row(name, version, f"FAILED: {step}, exit {code}", time.monotonic() - start)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return Row(name, version, "passed", time.monotonic() - start)


def commands(
    interpreter: str, folder: Path, constraints: str, tests: Sequence[str]
) -> list[tuple[str, list[str]]]:
    """What makes an environment, and tests in it, by step."""
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    steps = [] if Path(python).exists() else [("venv", [interpreter, "-m", "venv", str(folder)])]
    return [
        *steps,
        ("install", [*install, "-c", constraints, "-e", ".[data,test]"]),
        ("tests", [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", *tests]),
    ]


def environment() -> dict[str, str]:
    """That of this process, without what points Python at other packages."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}


def table(rows: Sequence[Row]) -> str:
    """The results as a Markdown table."""
    lines = [f"| {r.constraints} | {r.python} | {r.result} | {r.seconds:.0f} |" for r in rows]
    return "\n".join(["| set | Python | result | seconds |", "|---|---|---|---|", *lines])


def listed(text: str, known: Sequence[str]) -> list[str]:
    """The comma-separated names. Raises: SystemExit naming one that is not known."""
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in known:
            raise SystemExit(f"error: {name!r} is none of {', '.join(known)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", default="oldest,newest", help=", ".join(SETS))
    parser.add_argument("--pythons", default=",".join(PYTHONS))
    parser.add_argument("--tests", nargs="*", default=list(CORE), help="paths for pytest")
    parser.add_argument("--keep", action="store_true", help="keep the environments, gigabytes each")
    options = parser.parse_args()
    sets, pythons = listed(options.sets, list(SETS)), listed(options.pythons, PYTHONS)
    rows = [
        run_cell(name, version, options.tests, keep=options.keep)
        for name in sets
        for version in pythons
    ]
    print(table(rows))
    return int(any(row.result.startswith("FAILED") for row in rows) or not sets or not pythons)


if __name__ == "__main__":
    sys.exit(main())
