"""A run folder becomes a `Run`: its config, state and records, checked."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import NOT_YAML, BadInput, read_yaml
from zephyr.training.files import step_paths

Leaves = Mapping[str, object]  # of a file, by dotted names


class Record(NamedTuple):
    """A line of metrics.jsonl; values that are not finite are None."""

    step: int
    values: Mapping[str, float | None]  # with the step, without the split


Records = Mapping[str, Sequence[Record]]  # of each split ("train", "eval"), in the file's order


class Run(NamedTuple):
    """What the files of a run folder say, apart from its pairs and samples."""

    folder: Path
    name: str  # unique among the runs that were read together
    config: Leaves
    status: Leaves  # code and message
    data: Leaves  # what was read, cut and left out
    preflight: Leaves
    identity: Leaves  # digests of model, data and reference, by name
    records: Records

    @property
    def is_dpo(self) -> bool:
        return "beta" in self.config

    @property
    def loss(self) -> str:
        """The name of the preference loss. Its own settings are `loss.SETTING` of the config."""
        return str(self.config.get("loss.name", self.config.get("loss", "sigmoid")))

    @property
    def has_reference(self) -> bool:
        """Whether a reward is beta times a log-ratio to a reference model."""
        if not self.is_dpo or self.loss == "sigmoid":  # known without torch, which takes seconds
            return self.is_dpo
        from zephyr.losses import LOSSES

        return self.loss not in LOSSES or not LOSSES[self.loss].reference_free

    @property
    def starts_at_reference(self) -> bool:
        """Whether the reference is the model that training starts from: all rewards start at 0."""
        return self.has_reference and self.config.get("reference.model") is None

    @property
    def starts_even(self) -> bool:
        """Whether every pair has the same loss before the first update."""
        plain = not self.config.get("sft_weight") and self.config.get("weighting") != "wpo"
        return self.starts_at_reference and plain


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders, each under its last name or, where two share it, its path.

    Raises: BadInput for a broken file (with the line); OSError for a folder that is no run.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_run(folder, name) for folder, name in zip(folders, names)]


def read_run(folder: Path, name: str) -> Run:
    """Read one run folder. Raises: as `read_runs`."""
    config = read_leaves(folder / "config.yaml")
    status, data, preflight = (
        read_leaves(folder / file) for file in ("status.json", "data.json", "preflight.json")
    )
    records = read_records(folder / "metrics.jsonl")
    return Run(folder, name, config, status, data, preflight, read_identity(folder), records)


def read_identity(folder: Path) -> Leaves:
    """The digests that the newest checkpoint was trained under, by name; {} without one."""
    states = [
        checkpoint / "state.json"
        for checkpoint in step_paths(folder / "checkpoints")
        if (checkpoint / "state.json").exists()
    ]
    state = read_leaves(states[-1]) if states else {}
    prefix = "identity."
    names = [name for name in state if name.startswith(prefix)]
    return {name.removeprefix(prefix): state[name] for name in names}


def flatten(tree: object, name: str = "") -> dict[str, object]:
    """The leaves of nested mappings by their dotted names."""
    if not isinstance(tree, Mapping) or not tree:
        return {name: tree} if name else {}
    leaves: dict[str, object] = {}
    for key, value in tree.items():
        leaves |= flatten(value, f"{name}.{key}" if name else str(key))
    return leaves


def read_leaves(path: Path) -> dict[str, object]:
    """Read the leaves of a YAML or JSON file; {} for a JSON file that is not there.

    Raises: BadInput where the file holds no mapping; OSError where there is no YAML file.
    """
    try:
        if path.suffix != ".json":
            tree = read_yaml(path)
        elif path.exists():
            tree = dict(json.loads(path.read_text(encoding="utf-8")))
        else:
            return {}
        if not isinstance(tree, dict):
            raise TypeError(f"found {type(tree).__name__}")
        return flatten(tree)
    except NOT_YAML as error:
        raise BadInput(f"{path}: a mapping is wanted: {error}") from None


def read_records(path: Path) -> Records:
    """Read metrics.jsonl; a last line without its end is still being written and is left out.

    Raises: BadInput naming the line that is no record.
    """
    records: dict[str, list[Record]] = {"train": [], "eval": []}
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
            of_split = records[found.pop("split")]
            values = {
                name: None if value is None or not math.isfinite(value) else value
                for name, value in found.items()
            }
            of_split.append(Record(int(found["step"]), values))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise BadInput(
                f"{path}:{number}: no record: {line[:60]!r}; mend or remove the line"
            ) from None
    return records
