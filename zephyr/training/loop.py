"""The training loop of SFT and DPO. They differ in what a `Split` holds: how a micro-batch is
collated, and the objective. DPO also keeps a ledger of its pairs and checks the rewards of its
first step (`zephyr.training.initial_rewards`).

P: examples of a micro-batch.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from zephyr.config import DPOConfig, Optim, Published, SFTConfig, SFTOptim, to_yaml
from zephyr.packing import PackedBatch, Plan
from zephyr.progress import track
from zephyr.training import alarms, checkpoint
from zephyr.training.curves import Table
from zephyr.training.engine import Engine
from zephyr.training.flops import mfu
from zephyr.training.initial_rewards import require_zero_rewards
from zephyr.training.metrics import EVAL_PAIRS, Ledger, Record, Recorder, Row, Totals
from zephyr.training.published import compare
from zephyr.training.schedule import learning_rate

Number = TypeVar("Number", int, float)
Config = DPOConfig | SFTConfig
Sums = dict[str, float]  # metric name -> its sum over the examples of all ranks
# Metric name -> one value a pair [P], detached. `weight` is that of each pair in every sum.
Stats = Mapping[str, Tensor]
Objective = Callable[[Engine, PackedBatch], tuple[Tensor, Stats]]
# Generate answers to prompts after so many updates; returns metrics for the record.
Sample = Callable[[int], Record]

# What `reduce_totals` returns beside sums over examples: these have no mean over examples.
NOT_AVERAGED = {
    "units",
    "total_weight",
    "tokens",
    "flops",
    "micro_batches",
    "stop",
    "grad_norm",
    "update",
    "weight",
}


class Split(NamedTuple):
    """Examples of one kind (train or eval), their plan, and how a micro-batch becomes a loss."""

    plan: Plan
    collate: Callable[[Sequence[int]], PackedBatch]
    # Returns the loss summed over the micro-batch, and statistics of each pair. None: not known
    # yet, because it needs the reference.
    objective: Objective | None
    ids: Sequence[str]  # of each example
    tokens: Sequence[int]  # packed tokens of each example
    units: Sequence[int]  # 1 a pair, target tokens of a text
    # Of each example in every mean: the weight of a pair, the target tokens of a text.
    weights: Sequence[float]
    unit_name: str  # "pairs" or "target_tokens"
    forward_flops: Sequence[float]  # of each example
    identity: Mapping[str, str]  # digests that the trajectory depends on beside plan and config
    # Token counts that are logged with each visit of a pair, by name. None: no ledger is written.
    ledger: Mapping[str, Sequence[int]] | None = None
    # Whether the policy starts as its own reference: all rewards are 0 before the first update.
    starts_at_reference: bool = False
    # Loss of each pair while the policy is its reference. None: not checked.
    initial_loss: float | None = None

    def run_objective(self, engine: Engine, batch: PackedBatch) -> tuple[Tensor, Stats]:
        """The loss summed over a micro-batch, and statistics of each pair."""
        assert self.objective is not None, "the split has no objective yet"
        return self.objective(engine, batch)


class NonFiniteError(RuntimeError):
    """A loss or gradient is not finite. Raised before any parameter changed."""


class Stopped(RuntimeError):
    """A signal asked the run to stop: it finished its step and saved a checkpoint."""


@dataclass
class Interval:
    """The steps since the last record."""

    # time.perf_counter() at the start, plus the seconds since then that are no part of a step
    started: float
    steps: int = 0
    sums: Sums = field(default_factory=dict)

    def add(self, sums: Sums) -> None:
        """Add a step's sums."""
        self.steps += 1
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value


def fit(
    engine: Engine,
    config: Config,
    train: Split,
    evaluation: Split | None,
    sample: Sample | None = None,
    on_resume_checked: Callable[[], None] = lambda: None,
    worst_pairs: Callable[[], Table | None] | None = None,
) -> None:
    """Run the steps of `train.plan` that come after the newest checkpoint.

    The held-out split is evaluated before the first update, every `run.eval_every` updates, and
    after the last.

    Args: sample: called at each evaluation. on_resume_checked: called once the folder is known to
    hold this run or none, before the first write. worst_pairs: makes a table of the run's end, for
    wandb; called on rank 0, if wandb is used.
    Raises: BadInput (see `checkpoint.restore`, `require_zero_rewards`); NonFiniteError before the
    update; Stopped after a signal, when the run is saved.
    """
    run, run_dir, steps = config.run, Path(config.run.dir), train.plan.steps
    identity = checkpoint.identity(config, train.plan, train.identity)
    first_step = checkpoint.restore(engine, run_dir, run.resume, identity)
    on_resume_checked()
    rates = learning_rates(config.optim, len(steps))
    ledger = open_ledger(engine, run_dir, train, first_step)
    held_out = open_ledger(engine, run_dir, evaluation, first_step, EVAL_PAIRS)
    digests = {name: identity[name] for name in (*train.identity, "plan")}
    opened = open_recorder(engine, config, first_step, len(steps), digests)
    with contextlib.closing(opened) as recorder:
        start = None
        if first_step == 0 and (evaluation or sample):
            # Where the held-out curves start: for DPO, loss ln 2 and the reference's log-probs.
            # Recorded once the first step has passed its checks: a refused run leaves no record.
            start = evaluate(engine, evaluation, sample, 0, 0.0, held_out)
        interval = Interval(time.perf_counter())
        for step in range(first_step, len(steps)):
            updates, last = step + 1, step == len(steps) - 1  # so many updates, this one included
            # No record spans a checkpoint, or a resumed run would lose half of it.
            saves = updates % run.save_every == 0 or last
            records = step % run.log_every == 0 or saves
            sums = train_step(engine, config, train, step, rates[step], ledger, records)
            if step == first_step:  # from here on the folder holds something to lose
                checkpoint.write_identity(engine, run_dir, step, identity)
                if start:
                    record_evaluation(engine, recorder, start, held_out)
            require_finite(engine, train, step, sums, ledger, recorder)
            interval.add(sums)

            stop = bool(sums["stop"])
            if records or stop:
                write_train_record(engine, config, train, step, rates, sums, interval, recorder)
                interval = Interval(time.perf_counter())
            recorder.advance()

            pause_started = time.perf_counter()
            if (evaluation or sample) and (updates % run.eval_every == 0 or last):
                epoch = float(config.optim.epochs) if last else steps[updates].epoch
                found = evaluate(engine, evaluation, sample, updates, epoch, held_out)
                compare_with_published(engine, config.published if last else None, found)
                record_evaluation(engine, recorder, found, held_out)
            if saves or stop:
                save_checkpoint(engine, config, updates, identity, ledger, recorder)
            interval.started += time.perf_counter() - pause_started
            if stop and not last:
                raise Stopped(
                    f"by a signal after step {step}; the run is saved, start it again to continue"
                )
        if worst_pairs:
            recorder.add_table("pairs/worst", worst_pairs, len(steps))


def train_step(
    engine: Engine,
    config: Config,
    split: Split,
    step: int,
    rate: float,
    ledger: Ledger | None,
    records: bool,
) -> Sums:
    """Gradient and update of a step; returns its sums over all ranks.

    Args: records: whether a record follows. Only then the squared norms of update and weights are
    among the sums: they read the whole optimizer state.
    Raises: BadInput before the first update (see `require_zero_rewards`).
    """
    totals = forward_backward(engine, split, step, ledger)
    if step == 0 and ledger and split.starts_at_reference and isinstance(config, DPOConfig):
        examples = split.plan.steps[0].examples()
        require_zero_rewards(engine, ledger, config, examples, split.initial_loss)
    grad_norm = engine.step(rate)
    if records:
        # Squared norms, of this rank's shard: they add up over ranks, as norms would not.
        update, weight = engine.update_and_weight_sq_norms(rate)
        totals.sums["update"] = update
        totals.sums["weight"] = weight
    return reduce_totals(engine, split, step, totals, grad_norm)


def forward_backward(engine: Engine, split: Split, step: int, ledger: Ledger | None) -> Totals:
    """Forward and backward of this rank's micro-batches of a step.

    The gradient is that of the mean over the pairs, or target tokens, of all ranks: each
    micro-batch's sum is divided by the weight of the whole step, never by its own.
    """
    epoch, ranks = split.plan.steps[step]
    step_weight = total(split.weights, split.plan.steps[step].examples())
    totals = Totals(engine.counts_rows)
    batches = (engine.place(split.collate(indices)) for indices in ranks[engine.data_rank])
    batch = next(batches, None)
    while batch is not None:
        loss_sum, stats = split.run_objective(engine, batch)
        # The next micro-batch is made while the device runs this forward: at the end of the
        # backward, DeepSpeed waits for the device.
        following = next(batches, None)
        # 0 * inf and 0 * nan are nan, so a loss that is not finite makes the whole gradient NaN.
        # `engine.step` then leaves the parameters as they are, and the host need not wait for the
        # loss before the update.
        loss = loss_sum / step_weight * (1 + 0 * loss_sum.detach())
        engine.backward(loss, last=following is None)
        totals.add(loss_sum, stats)
        if ledger and engine.counts_rows:
            ledger.add(step, epoch, batch.indices, stats)
        batch = following
    # Summed with the rest, so that all ranks learn of a signal at the same step.
    totals.sums["stop"] = torch.full_like(totals.sums["loss"], engine.stop_requested)
    return totals


def reduce_totals(
    engine: Engine, split: Split, step: int, totals: Totals, grad_norm: Tensor | None = None
) -> Sums:
    """A step's sums over all ranks, its gradient norm, and its counts from the plan.

    One reduction, and the only time that the host waits for the device in a step.
    """
    values = engine.all_reduce(torch.stack(list(totals.sums.values())))
    names = list(totals.sums)
    if grad_norm is not None:
        values = torch.cat([values, grad_norm[None]])
        names.append("grad_norm")
    sums: Sums = dict(zip(names, values.tolist()))

    planned = split.plan.steps[step]
    examples = planned.examples()
    sums["units"] = total(split.units, examples)
    sums["total_weight"] = total(split.weights, examples)
    sums["tokens"] = total(split.tokens, examples)
    sums["flops"] = total(split.forward_flops, examples)
    sums["micro_batches"] = sum(1 for rank in planned.ranks for micro in rank if micro)
    return sums


@torch.no_grad()
def evaluate(
    engine: Engine,
    split: Split | None,
    sample: Sample | None,
    step: int,
    epoch: float,
    ledger: Ledger | None = None,
) -> dict[str, object]:
    """The means over all examples of a split after `step` updates, and what `sample` returns.

    Losses are computed in evaluation mode, without dropout. Then the policy is set back to training
    at once: `sample` comes after, because generation switches the mode and restores it by itself.

    Args: ledger: gets each pair's values.
    """
    record: dict[str, object] = {"step": step, "split": "eval", "epoch": epoch}
    engine.train(False)
    totals = Totals(engine.counts_rows)
    if split:
        micro_batches = split.plan.steps[0].ranks[engine.data_rank]
        for indices in track(micro_batches, "eval", "micro-batches"):
            batch = engine.place(split.collate(indices))
            loss_sum, stats = split.run_objective(engine, batch)
            totals.add(loss_sum, stats)
            if ledger and engine.counts_rows:
                ledger.add(step, epoch, batch.indices, stats)
    engine.train()
    if split:
        sums = reduce_totals(engine, split, 0, totals)
        record.update(mean_metrics(sums, split.unit_name))
    if sample:
        record.update(sample(step))
    return record


def compare_with_published(
    engine: Engine, published: Published | None, record: dict[str, object]
) -> None:
    """Log how the last evaluation compares with the published run, if there is one, and add it to
    the record."""
    if published is None:
        return
    compared = compare(published, cast(float, record["loss"]))
    record.update(compared.metrics())
    (engine.log if compared.is_reached else engine.warn)(compared.line())


def record_evaluation(
    engine: Engine, recorder: Recorder, record: dict[str, object], ledger: Ledger | None
) -> None:
    """Write what `evaluate` returned, with its alarms, and each pair's values. A collective."""
    recorder.write(record, alarms.evaluation_alarms(record, recorder.evaluations))
    if ledger:
        rows = gathered_rows(engine, ledger)
        engine.on_rank0(lambda: ledger.commit(cast(int, record["step"]), rows))


def save_checkpoint(
    engine: Engine,
    config: Config,
    updates: int,
    identity: checkpoint.Identity,
    ledger: Ledger | None,
    recorder: Recorder,
) -> None:
    """Write a checkpoint after so many updates. A collective.

    Records and the ledger's part are on the disk before the checkpoint that relies on them.
    """
    rows = gathered_rows(engine, ledger) if ledger else []

    def write_records() -> None:
        recorder.sync()
        if ledger:
            ledger.commit(updates, rows)

    engine.on_rank0(write_records)
    checkpoint.save(engine, Path(config.run.dir), updates, identity, config.run.keep)


def gathered_rows(engine: Engine, ledger: Ledger) -> list[Row]:
    """The rows of all ranks since the last call. A collective."""
    return [row for rank in engine.all_gather(ledger.rows()) for row in rank]


def learning_rates(optim: Optim | SFTOptim, num_steps: int) -> list[float]:
    """The rates of all steps: each step uses its own, and the alarms use their sum."""
    return [
        learning_rate(
            step,
            num_steps,
            lr_peak=optim.lr_peak,
            schedule=optim.schedule,
            warmup_fraction=optim.warmup_fraction,
        )
        for step in range(num_steps)
    ]


def open_ledger(
    engine: Engine, run_dir: Path, split: Split | None, first_step: int, name: str = "pairs"
) -> Ledger | None:
    """The ledger of each pair's visits, where the split asks for one; rank 0 writes it.

    That of an evaluation also has `row`, the pair's place among the encoded ones: the rewards of
    published cards are of some places only (`zephyr.analysis.cards`).
    """
    if split is None or not split.ledger:
        return None
    counts = dict(split.ledger)
    if name == EVAL_PAIRS:
        counts["row"] = range(len(split.ids))
    return Ledger(run_dir, split.ids, counts, first_step, engine.rank == 0, name)


def open_recorder(
    engine: Engine,
    config: Config,
    first_step: int,
    num_steps: int,
    digests: Mapping[str, object],
) -> Recorder:
    """metrics.jsonl, progress bar and wandb run, on rank 0."""
    return Recorder(
        Path(config.run.dir),
        config.run.wandb,
        to_yaml(config),
        first_step=first_step,
        steps=num_steps,
        active=engine.rank == 0,
        digests=digests,
    )


def write_train_record(
    engine: Engine,
    config: Config,
    split: Split,
    step: int,
    rates: Sequence[float],
    sums: Sums,
    interval: Interval,
    recorder: Recorder,
) -> None:
    """Record the means over the interval that ends with `step`, with alarms. A collective.

    Args: sums: of the last step; gradient norm and update are the last step's, not means.
    """
    update_ratio = last_update_ratio(engine, sums, rates[step])
    metrics = {
        "epoch": split.plan.steps[step].epoch,
        **mean_metrics(interval.sums, split.unit_name),
        "learning_rate": rates[step],
        "grad_norm": sums["grad_norm"],
        "update_ratio": update_ratio,
    }
    beta = config.beta if isinstance(config, DPOConfig) and "reference" in split.identity else None
    precision = torch.finfo(getattr(torch, config.hardware.dtype)).eps
    raised = alarms.training_alarms(metrics, beta, rates, precision)
    metrics.update(throughput_metrics(engine, interval, config.hardware.tokens_per_micro_batch))
    recorder.write({"step": step, "split": "train", **metrics}, raised)


def last_update_ratio(engine: Engine, sums: Sums, rate: float) -> float:
    """Norm of the last update over the norm of the weights. A collective.

    Where a signal asked for the record, the step did not know of it and its sums lack both norms:
    they are reduced here.
    """
    if "update" in sums:
        update, weight = sums["update"], sums["weight"]
    else:
        update, weight = engine.all_reduce(engine.update_and_weight_sq_norms(rate)).tolist()
    return math.sqrt(update / weight)


def mean_metrics(sums: Sums, unit_name: str) -> dict[str, float]:
    """Sums over examples as means over their weight, with the counts of units and packed tokens.

    Where the weight is another number than the count, it is a metric too: `weight`.
    """
    units, weight = sums["units"], sums["total_weight"]
    means = {name: value / weight for name, value in sums.items() if name not in NOT_AVERAGED}
    counts: dict[str, float] = {unit_name: int(units), "tokens": int(sums["tokens"])}
    return {**means, **counts} if weight == units else {**means, **counts, "weight": weight}


def throughput_metrics(engine: Engine, interval: Interval, budget_tokens: int) -> dict[str, float]:
    """Speed and memory of the interval's steps; memory of the rank that holds most. A collective.

    Args: budget_tokens: of a micro-batch.
    """
    sums, seconds = interval.sums, time.perf_counter() - interval.started
    metrics = {
        "tokens_per_second": sums["tokens"] / seconds,
        "step_seconds": seconds / interval.steps,
        "packing_efficiency": sums["tokens"] / (sums["micro_batches"] * budget_tokens),
        "peak_memory_bytes": max(engine.all_gather(engine.peak_memory_bytes())),
    }
    utilization = mfu(sums["flops"], seconds, engine.world_size)
    if utilization is not None:
        metrics["mfu"] = utilization
    return metrics


def total(values: Sequence[Number], examples: Sequence[int]) -> Number:
    return sum(values[i] for i in examples)


def require_finite(
    engine: Engine,
    split: Split,
    step: int,
    sums: Sums,
    ledger: Ledger | None,
    recorder: Recorder,
) -> None:
    """Check a step's loss and gradient norm.

    Raises: NonFiniteError naming the pairs whose own loss is not finite or, where none is, all
    examples of the step.
    """
    for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
        value = sums[name]
        if math.isfinite(value):
            continue
        ids_of_rank = ledger.non_finite(step) if ledger else []
        ids = [id for rank in engine.all_gather(ids_of_rank) for id in rank]
        if not ids:
            ids = [split.ids[i] for i in split.plan.steps[step].examples()]
        record = {"step": step, "split": "train", "loss": None}
        recorder.write(record, {"non_finite": f"the {what} is {value}"})
        raise NonFiniteError(
            f"step {step}: the {what} is {value}; no parameter was changed. "
            f"Its examples: {', '.join(ids)}"
        )
