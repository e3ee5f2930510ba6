"""Compare the last records of a run with those that experiments/README.md documents.

    python tests/expected_records.py quickstart        what `make quickstart` left in runs/tiny
    python tests/expected_records.py real              what `make real` left in runs/real

Exit code 1, and one line a value, where a value is outside its tolerance. A run with another seed,
on other data, or on a GPU has no documented record: that is said, and the exit code is 0.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "experiments" / "README.md"
RUNS = {"quickstart": Path("runs/tiny"), "real": Path("runs/real")}
BLOCK = re.compile(r"```json expected (\w+)/(\w+)\n(.*?)```", re.DOTALL)


class Expected(NamedTuple):
    """A documented record: the values, and how far from each a run may be."""

    record: Mapping[str, float | str]
    tolerance: Mapping[str, float]


def documented(command: str) -> dict[str, Expected]:
    """Name of a run (`base`, `sft`, `dpo`) -> the record that the guide shows for it."""
    found = BLOCK.findall(GUIDE.read_text(encoding="utf-8"))
    return {run: Expected(**json.loads(body)) for of, run, body in found if of == command}


def last_record(metrics: Path, split: str) -> Mapping[str, float | str]:
    """The last record of a split. Raises: ValueError where the file has none."""
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    of_split = [record for record in records if record["split"] == split]
    if not of_split:
        raise ValueError(f"{metrics} has no record of the split {split!r}")
    return of_split[-1]


def differences(expected: Expected, found: Mapping[str, float | str]) -> list[str]:
    """One line for each value that is missing or outside its tolerance."""
    lines = []
    for name, wanted in expected.record.items():
        value, allowed = found.get(name), expected.tolerance.get(name, 0)
        if isinstance(wanted, str) or value is None:
            outside = value != wanted
        else:
            outside = not abs(value - wanted) <= allowed
        if outside:
            lines.append(f"{name} is {value}, expected {wanted} within {allowed}")
    return lines


def without_expectation(command: str, folder: Path) -> str:
    """Why the guide documents no record for the runs in the folder; "" where it does."""
    config = yaml.safe_load((folder / "dpo" / "config.yaml").read_text(encoding="utf-8"))
    if config["hardware"]["attention"] != "sdpa":
        return (
            f"it ran with {config['hardware']['attention']}, the documented run with sdpa on a CPU"
        )
    seed = {"quickstart": 0, "real": 42}[command]
    if config["run"]["seed"] != seed:
        return f"its seed is {config['run']['seed']}, the documented run's is {seed}"
    if command == "real":
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        return other_data(result, json.loads((ROOT / "experiments/real/run.json").read_text()))
    return ""


def other_data(result: Mapping[str, object], known: Mapping[str, object]) -> str:
    """What differs between the data and model of `make real` and those of the documented run."""
    file = Path(str(result["data"]))
    same = file.suffix == ".jsonl" and file.is_file() and digest(file) == known["data_sha256"]
    if not same:
        return f"{file} does not hold the pairs of the documented run ({known['data']})"
    for name in ("train", "held_out"):
        if result[name] != known[name]:
            return f"it has {result[name]} pairs ({name}), the documented run has {known[name]}"
    if Path(str(result["model"])).name != known["model"]:
        return f"its model is {result['model']}, the documented run's is {known['model']}"
    return ""


def digest(pairs: Path) -> str:
    """SHA-256 of what is trained of the pairs in a .jsonl file: prompt, chosen, rejected."""
    of = hashlib.sha256()
    with pairs.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            row = json.loads(line)
            texts = [row[field] for field in ("prompt", "chosen", "rejected") if field in row]
            of.update(json.dumps(texts).encode() + b"\n")
    return of.hexdigest()


def check(command: str, folder: Path) -> list[str]:
    """Prints what was compared; returns one line for each value outside its tolerance."""
    why = without_expectation(command, folder)
    if why:
        print(f"expected records: none are documented for this run: {why}")
        return []
    wrong = []
    for run, expected in documented(command).items():
        metrics = folder / run / "metrics.jsonl"
        lines = differences(expected, last_record(metrics, str(expected.record["split"])))
        print(
            f"expected records: {metrics}: {'as documented' if not lines else 'NOT as documented'}"
        )
        wrong += [f"{metrics}: {line}" for line in lines]
    return wrong


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (1, 2) or arguments[0] not in RUNS:
        print(f"usage: python tests/expected_records.py {'|'.join(RUNS)} [FOLDER]", file=sys.stderr)
        return 2
    command = arguments[0]
    folder = Path(arguments[1]) if len(arguments) == 2 else RUNS[command]
    wrong = check(command, folder)
    for line in wrong:
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        print(f"The documented records are in {GUIDE.relative_to(ROOT)}.", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
