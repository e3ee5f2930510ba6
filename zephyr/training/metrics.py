"""Sums over micro-batches of P pairs become exact means over all examples of all ranks:
metrics.jsonl, bar, wandb, ledger."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from zephyr.config import BadInput, Wandb
from zephyr.training.files import step_number, step_paths, write_atomic

Row = dict[str, float | int | str]
# the ledger's columns beside id, step and epoch
LEDGER = (
    "loss",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
    "prompt_tokens",
    "chosen_tokens",
    "rejected_tokens",
)


class Totals:
    """The sums of a step on the device, float64, without a host read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, loss_sum: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Add a micro-batch: its loss sum, and vectors [P] by metric name."""
        for name, value in {**stats, "loss": loss_sum}.items():
            total = value.detach().double().sum()
            self.sums[name] = self.sums[name] + total if name in self.sums else total


class Recorder:
    """Owns metrics.jsonl, the progress bar and the wandb run; does nothing on ranks other than
    0."""

    def __init__(
        self, run_dir: Path, wandb: Wandb, config: str, *, first_step: int, steps: int, active: bool
    ) -> None:
        self.active, self.path = active, run_dir / "metrics.jsonl"
        self.wandb, self.evaluations, self.raised = None, [], set()
        if not active:
            return
        from tqdm import tqdm

        self.evaluations += [
            r for r in truncate_records(self.path, first_step) if r["split"] == "eval"
        ]
        self.bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            file=sys.stderr,
            dynamic_ncols=True,
            mininterval=0.5,
        )
        if wandb.mode != "disabled":
            import wandb as client
            import yaml

            mark = (
                run_dir / "wandb" / "run-id"
            )  # a run that is started again goes on in its wandb run
            mark.parent.mkdir(exist_ok=True)
            if not mark.exists():
                mark.write_text(os.urandom(6).hex())
            self.wandb = client.init(
                mode=wandb.mode,
                project=wandb.project,
                name=wandb.name,
                dir=str(run_dir),
                id=mark.read_text(),
                resume="allow",
                config=yaml.safe_load(config),
                settings=client.Settings(silent=True),
            )

    def write(self, record: Row, alarms: Mapping[str, str]) -> None:
        """Append one record, with a flag for each alarm; show it, and say each alarm when it is
        first raised."""
        if not self.active:
            return
        record = record | {f"alarms/{name}": 1 for name in alarms}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        for name in alarms.keys() - self.raised:
            self.bar.write(f"alarm at step {record['step']}: {alarms[name]}", file=sys.stderr)
        self.raised = self.raised | alarms.keys()
        shown = {
            "loss": "loss",
            "margin": "rewards/margins",
            "acc": "rewards/accuracies",
            "win": "win_rate",
            "tok/s": "tokens_per_second",
        }
        text = " ".join(
            f"{short}={record[name]:.4g}"
            for short, name in shown.items()
            if record.get(name) is not None
        )
        if record["split"] == "eval":
            self.evaluations.append(record)
            self.bar.write(f"step {record['step']} eval: {text}", file=sys.stderr)
        else:
            self.bar.set_postfix_str(text, refresh=False)
        if self.wandb is not None:
            named = {
                f"{record['split']}/{k}": v for k, v in record.items() if k not in ("step", "split")
            }
            self.wandb.log(named, step=int(record["step"]))

    def sync(self) -> None:
        """Bring the records onto the disk: a checkpoint is about to stand for them."""
        if self.active and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def advance(self) -> None:
        if self.active:
            self.bar.update()

    def close(self) -> None:
        if self.active:
            self.bar.close()
            if self.wandb is not None:
                self.wandb.finish()


def truncate_records(path: Path, step: int) -> list[Row]:
    """Drop the records of steps that are about to be run again, train from `step` on, eval after
    it, and a last line that was cut off while it was written; returns those kept. Raises: BadInput
    naming a line before that is no record."""
    content = path.read_bytes() if path.exists() else b""
    kept: dict[bytes, Row] = {}
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            if record["step"] < step or (record["split"] == "eval" and record["step"] == step > 0):
                kept[line + b"\n"] = record
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadInput(
                f"{path}:{number}: no record: {line[:60]!r}; mend or remove the line"
            ) from None
    if b"".join(kept) != content:
        write_atomic(path, b"".join(kept))
    return list(kept.values())


class Ledger:
    """One row per pair and visit; vectors stay on the device until a checkpoint commits them."""

    def __init__(
        self,
        run_dir: Path,
        ids: Sequence[str],
        token_counts: Mapping[str, Sequence[int]],
        first_step: int,
        writes: bool,
    ) -> None:
        """Args: first_step: parts of steps after it go, they are about to be run again. writes: on
        one rank."""
        self.folder, self.writes = run_dir / "pairs", writes
        self.ids, self.token_counts = ids, token_counts
        self.visits: list[tuple[int, float, tuple[int, ...], dict[str, Tensor]]] = []
        for path in step_paths(self.folder, ".parquet") if writes else ():
            if step_number(path) > first_step:
                path.unlink()

    def add(
        self, step: int, epoch: float, indices: tuple[int, ...], stats: Mapping[str, Tensor]
    ) -> None:
        """Note the visit of the examples `indices`, with vectors [P] by ledger column."""
        if indices:
            self.visits.append(
                (
                    step,
                    epoch,
                    indices,
                    {name: stats[name].detach() for name in LEDGER if name in stats},
                )
            )

    def non_finite(self, step: int) -> list[str]:
        """Ids of this rank's pairs whose loss at `step` is not finite."""
        return [
            self.ids[i]
            for visit, _, indices, stats in self.visits
            if visit == step
            for i, finite in zip(indices, stats["loss"].isfinite().tolist())
            if not finite
        ]

    def rows(self) -> list[Row]:
        """What this rank noted since the last call, as rows; one host read a visit."""
        rows: list[Row] = []
        for step, epoch, indices, stats in self.visits:
            values = torch.stack([stats[name].double() for name in stats]).t().tolist()
            for i, of_pair in zip(indices, values):
                counts = {name: int(count[i]) for name, count in self.token_counts.items()}
                rows.append(
                    {
                        "id": self.ids[i],
                        "step": step,
                        "epoch": epoch,
                        **dict(zip(stats, of_pair)),
                        **counts,
                    }
                )
        self.visits.clear()
        return rows

    def commit(self, step: int, rows: list[Row]) -> None:
        """Write the part that belongs to the checkpoint at `step`, under a temporary name first."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self.writes or not rows:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        rows.sort(key=lambda row: (row["step"], row["id"]))
        content = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows), content)
        write_atomic(self.folder / f"step-{step}.parquet", content.getvalue())
