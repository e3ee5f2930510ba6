"""Commands that compute nothing with a model start without torch and the hub's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from processes import ROOT

from zephyr.data.jsonl import write_rows

SLOW_TO_IMPORT = ("torch", "transformers", "datasets", "deepspeed")
# Run as `zephyr` runs; the exit code is the command's, then 3 where a library was imported.
COMMAND = f"""
import sys
from zephyr.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code
imported = sorted({set(SLOW_TO_IMPORT)!r} & set(sys.modules))
if imported:
    print("imported:", *imported, file=sys.stderr)
sys.exit(code or (3 if imported else 0))
"""


def run_command(folder: Path, *arguments: str) -> str:
    """Run `zephyr *arguments` in a process of its own; fails where it imports a slow library."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One feedback row, and a run folder that was trained on the pair of it."""
    completions = [
        {"model": f"m{n}", "text": text, "scores": {"honesty": n, "helpfulness": n}, "overall": n}
        for n, text in enumerate("abcd", start=1)
    ]
    row = {"prompt_id": "p0", "prompt": "a question", "completions": completions}
    write_rows(tmp_path / "feedback.jsonl", [row])
    run = tmp_path / "run"
    run.mkdir()
    config = {"model": "m", "beta": 0.1, "data": {"train": [str(tmp_path / "pairs.jsonl")]}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    record = {"step": 0, "split": "train", "loss": 0.7}
    (run / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    sample = {"step": 0, "prompt_id": "p0", "prompt": "a question", "text": "an answer"}
    (run / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    write_visit(run / "pairs")
    return tmp_path


def write_visit(pairs: Path) -> None:
    """The ledger of visits of a run that trained on one pair once."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pairs.mkdir()
    numbers = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
    tokens = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
    visit = {"id": "p0", "step": 0, "epoch": 0.5}
    visit |= dict.fromkeys(numbers, 0.5) | dict.fromkeys(tokens, 2)
    pq.write_table(pa.Table.from_pylist([visit]), pairs / "step-1.parquet")


@pytest.mark.parametrize("command", ["report", "lineage", "binarize"])
def test_help_imports_no_slow_library(tmp_path: Path, command: str) -> None:
    """Fails where a module imports torch or a library of the hub before it needs one: ten seconds
    to read a help text."""
    assert f"zephyr {command}" in run_command(tmp_path, command, "--help")


def test_commands_on_files_import_no_slow_library(folder: Path) -> None:
    """Pairs, their story and the page of a run are made of files alone. Fails where one of the
    commands imports, on its way, a package whose `__init__` imports torch."""
    run_command(folder, "binarize", "feedback.jsonl", "--rule", "paper", "--out", "pairs.jsonl")
    assert "pair p0" in run_command(folder, "lineage", "p0", "--run", "run")
    run_command(folder, "report", "run")
    page = (folder / "run" / "report.html").read_text()
    assert "an answer" in page and 'id="pairs"' in page
