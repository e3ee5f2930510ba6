"""Sums over micro-batches become exact means over all examples of all ranks.

They are written to metrics.jsonl, the progress bar, wandb and the ledger of pairs. README.md in
this folder has a table of every metric. `update_ratio`, for example, is the norm of the last update
divided by the norm of the float32 weights: how much of their size one step moves the weights.

P: pairs of a micro-batch.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from zephyr import progress
from zephyr.config import BadInput, Wandb
from zephyr.training.curves import Table, log_record, log_table, open_wandb
from zephyr.training.files import step_number, step_paths, write_atomic

if TYPE_CHECKING:
    import wandb as wandb_client

Record = Mapping[str, object]  # a line of metrics.jsonl
Row = dict[str, float | int | str]  # a row of the ledger
EVAL_PAIRS = "eval_pairs"  # the folder of the evaluations' ledger; that of the steps is `pairs`
# The ledger's columns beside id, step and epoch
LEDGER = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
    "weight",
)
# What the progress bar and the log show of a record, under shorter names
SHOWN = {
    "loss": "loss",
    "margin": "rewards/margins",
    "acc": "rewards/accuracies",
    "win": "win_rate",
    "tok/s": "tokens_per_second",
}


class Totals:
    """The sums of a step, float64 on the device; adding to them never waits for the device.

    Args: counts: whether this rank's micro-batches are counted; False: another rank counts them,
    and the sums are 0.
    """

    def __init__(self, counts: bool = True) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts = counts

    def add(self, loss_sum: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Add a micro-batch: its loss sum, and vectors [P] by metric name.

        Each pair counts with its weight: the vector `weight`, where there is one.
        """
        weight_P = stats.get("weight", torch.ones((), device=loss_sum.device)).double()
        sums = {
            name: (value_P.detach().double() * weight_P).sum()
            for name, value_P in stats.items()
            if name not in ("loss", "weight")
        }
        sums["loss"] = loss_sum.detach().double()
        for name, value in sums.items():
            value = value if self.counts else torch.zeros_like(value)
            self.sums[name] = self.sums[name] + value if name in self.sums else value


class Recorder:
    """Owns metrics.jsonl, the progress bar and the wandb run. On ranks other than 0 it does
    nothing."""

    def __init__(
        self,
        run_dir: Path,
        wandb: Wandb,
        config: str,
        *,
        first_step: int,
        steps: int,
        active: bool,
        digests: Mapping[str, object] | None = None,
    ) -> None:
        """Open them, without the records of steps from `first_step` on.

        Args: config: YAML, for wandb. steps: of the whole run. active: whether this is rank 0.
        digests: what the run depends on, by name, for wandb.
        """
        self.active, self.path = active, run_dir / "metrics.jsonl"
        self.evaluations: list[Record] = []
        self.raised: set[str] = set()  # names of alarms that were logged
        self.wandb: wandb_client.Run | None = None
        if not active:
            return
        kept = truncate_records(self.path, first_step)
        self.evaluations += [record for record in kept if record["split"] == "eval"]
        self.bar = progress.Bar("train", steps, "steps", initial=first_step, keep=True)
        if wandb.mode != "disabled":
            self.wandb = open_wandb(run_dir, wandb, config, digests or {})

    def write(self, record: Record, alarms: Mapping[str, str]) -> None:
        """Append a record, with a flag for each alarm, and show it. An alarm is logged once."""
        if not self.active:
            return
        flags = {f"alarms/{name}": 1 for name in alarms}
        record = {**record, **flags}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name in alarms.keys() - self.raised:
            progress.write(f"alarm at step {record['step']}: {alarms[name]}")
        self.raised = self.raised | alarms.keys()
        text = format_shown(record)
        if record["split"] == "eval":
            self.evaluations.append(record)
            progress.info(f"step {record['step']} eval: {text}")
        else:
            self.bar.show(text)
        if self.wandb is not None:
            log_record(self.wandb, record)

    def add_table(self, name: str, make: Callable[[], Table | None], step: int) -> None:
        """Add the table that `make` returns to the wandb run, if there is one of each. An error is
        a warning: the run is trained, and its model is not written yet."""
        if self.wandb is None:
            return
        try:
            table = make()
            if table is not None:
                log_table(self.wandb, name, table, step)
        except Exception as error:
            progress.warn(f"wandb gets no table {name}: {type(error).__name__}: {error}")

    def sync(self) -> None:
        """Flush the records to the disk, before a checkpoint that relies on them."""
        if self.active and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def advance(self) -> None:
        """Move the progress bar on by a step."""
        if self.active:
            self.bar.update()

    def close(self) -> None:
        """Close the progress bar and finish the wandb run."""
        if self.active:
            self.bar.close()
            if self.wandb is not None:
                self.wandb.finish()


def format_shown(record: Record) -> str:
    """The metrics of SHOWN that the record has."""
    shown = []
    for short, name in SHOWN.items():
        if record.get(name) is not None:
            shown.append(f"{short}={record[name]:.4g}")
    return " ".join(shown)


def truncate_records(path: Path, step: int) -> list[Record]:
    """Drop the records of steps that will run again; returns those that are kept.

    These are train records from `step` on, evaluations after it (at step 0 also that of step 0),
    and a last line that was cut off while it was written.
    Raises: BadInput naming an earlier line that is not a record.
    """
    content = path.read_bytes() if path.exists() else b""
    kept: dict[bytes, Record] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            evaluated = record["split"] == "eval" and record["step"] == step > 0
            if record["step"] < step or evaluated:
                kept[line + b"\n"] = record
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(
                f"{path}:{number}: no record: {line[:60]!r}; mend or remove the line"
            ) from None
    if b"".join(kept) != content:
        write_atomic(path, b"".join(kept))
    return list(kept.values())


class Visit(NamedTuple):
    """A micro-batch of P pairs in a step."""

    step: int
    epoch: float
    indices: tuple[int, ...]
    stats: dict[str, Tensor]  # vectors [P] by ledger column, on the device


class Ledger:
    """One row per pair and visit. Vectors stay on the device until a checkpoint commits them."""

    def __init__(
        self,
        run_dir: Path,
        ids: Sequence[str],
        token_counts: Mapping[str, Sequence[int]],
        first_step: int,
        writes: bool,
        name: str = "pairs",
    ) -> None:
        """Open the ledger in the folder `name` of a run.

        Args: first_step: parts of later steps are removed, these steps will run again. writes: true
        on one rank.
        """
        self.folder, self.writes = run_dir / name, writes
        self.ids, self.token_counts = ids, token_counts
        self.visits: list[Visit] = []
        for path in step_paths(self.folder, ".parquet") if writes else ():
            if step_number(path) > first_step:
                path.unlink()

    def add(
        self, step: int, epoch: float, indices: tuple[int, ...], stats: Mapping[str, Tensor]
    ) -> None:
        """Note a visit of the examples `indices`, with vectors [P] by ledger column."""
        if indices:
            columns = {name: stats[name].detach() for name in LEDGER if name in stats}
            self.visits.append(Visit(step, epoch, indices, columns))

    def non_finite(self, step: int) -> list[str]:
        """Ids of this rank's pairs whose loss at `step` is not finite."""
        ids = []
        for visit in self.visits:
            if visit.step == step:
                is_finite = visit.stats["loss"].isfinite().tolist()
                ids += [self.ids[i] for i, finite in zip(visit.indices, is_finite) if not finite]
        return ids

    def rows(self) -> list[Row]:
        """This rank's visits since the last call, as rows. Waits for the device once a visit."""
        rows: list[Row] = []
        for step, epoch, indices, stats in self.visits:
            values = torch.stack([stats[name].double() for name in stats]).t().tolist()
            for i, of_pair in zip(indices, values):
                row: Row = {"id": self.ids[i], "step": step, "epoch": epoch}
                row.update(zip(stats, of_pair))
                row.update((name, int(count[i])) for name, count in self.token_counts.items())
                rows.append(row)
        self.visits.clear()
        return rows

    def commit(self, step: int, rows: list[Row]) -> None:
        """Write the part of `step`, of its checkpoint or evaluation, whole or not at all."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.writes or not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows.sort(key=lambda row: (row["step"], row["id"]))
        content = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), content)
        write_atomic(self.folder / f"step-{step}.parquet", content.getvalue())
