"""The records of a run become curves of a wandb run, which has the config, and tables.

wandb draws the metrics that share the part of their name before the `/` in one section, either the
part before the first `/` or all parts, as the workspace is set. So every name has one `/`, and both
settings give the same sections.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from zephyr.config import Wandb

if TYPE_CHECKING:
    import wandb

# Metrics of training that have a section of their own, beside `train`.
SECTIONS = {
    "grad_norm": "optimizer",
    "learning_rate": "optimizer",
    "update_ratio": "optimizer",
    "tokens_per_second": "speed",
    "step_seconds": "speed",
    "packing_efficiency": "speed",
    "peak_memory_bytes": "speed",
    "mfu": "speed",
}
# What the table of runs shows of a curve, where it is not the last value.
BEST = {"eval/loss": "min", "eval_rewards/accuracies": "max", "eval/win_rate": "max"}


class Table(NamedTuple):
    """A table of a wandb run: each row has a value for each column."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def curve_name(split: str, metric: str) -> str:
    """The name of a metric's curve: `train/loss`, `train_rewards/chosen`, `speed/mfu`."""
    head, slash, tail = metric.partition("/")
    if head == "alarms":
        return metric
    if slash and head in ("rewards", "logps"):
        return f"{split}_{head}/{tail}"
    return f"{SECTIONS.get(metric, split)}/{metric.replace('/', '_')}"


def open_wandb(
    run_dir: Path, settings: Wandb, config: str, digests: Mapping[str, object]
) -> "wandb.Run":
    """Start the wandb run of a run folder, or continue the one that an earlier start made.

    Its steps are ours. Where a run resumes from a checkpoint before its last record, wandb keeps
    what it has of the steps that run again: they are equal.
    Args: config: YAML. digests: of model, data, reference and plan, by name.
    """
    import wandb
    import yaml

    run = wandb.init(
        mode=settings.mode,
        project=settings.project,
        name=settings.name,
        dir=str(run_dir),
        id=wandb_run_id(run_dir),
        resume="allow",
        config={**yaml.safe_load(config), "digests": dict(digests)},
        settings=wandb.Settings(silent=True),
    )
    for name, best in BEST.items():
        run.define_metric(name, summary=best)
    return run


def wandb_run_id(run_dir: Path) -> str:
    """The id of the folder's wandb run, made at the first start: a resumed run continues it."""
    path = run_dir / "wandb" / "run-id"
    path.parent.mkdir(exist_ok=True)
    if not path.exists():
        path.write_text(os.urandom(6).hex())
    return path.read_text()


def log_record(run: "wandb.Run", record: Mapping[str, object]) -> None:
    """Add a record of metrics.jsonl to the curves of its split."""
    split, step = record["split"], record["step"]
    assert isinstance(split, str) and isinstance(step, int), "records are written by the loop"
    named = {
        curve_name(split, metric): value
        for metric, value in record.items()
        if metric not in ("step", "split")
    }
    run.log(named, step=step)


def log_table(run: "wandb.Run", name: str, table: Table, step: int) -> None:
    """Add a table as it is after `step` updates."""
    import wandb

    rows = [list(row) for row in table.rows]
    run.log({name: wandb.Table(columns=list(table.columns), data=rows)}, step=step)
