"""The training loop. SFT and DPO differ in how a micro-batch is collated, and in the objective.

P: examples of a micro-batch.
"""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from zephyr.config import BadInput, DPOConfig, Optim, SFTConfig, SFTOptim, to_yaml
from zephyr.packing import PackedBatch, Plan
from zephyr.training import alarms, checkpoint
from zephyr.training.engine import Engine
from zephyr.training.flops import mfu
from zephyr.training.metrics import Ledger, Record, Recorder, Totals
from zephyr.training.schedule import learning_rate
from zephyr.training.tolerance import SUM_TOLERANCE, SUMS_RMS_TOLERANCE, response_tolerance_nats

Number = TypeVar("Number", int, float)
Config = DPOConfig | SFTConfig
Sums = dict[str, float]  # metric name -> its sum over the examples of all ranks
Stats = Mapping[str, Tensor]  # metric name -> one value a pair [P], detached
Objective = Callable[[Engine, PackedBatch], tuple[Tensor, Stats]]
# Generate answers to prompts after so many updates; returns metrics for the record.
Sample = Callable[[int], Record]

# What `reduce_totals` returns beside sums over examples: these have no mean over examples.
NOT_AVERAGED = {
    "units",
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
    units: Sequence[int]  # what losses are averaged over: 1 a pair, target tokens of a text
    unit_name: str  # "pairs" or "target_tokens"
    forward_flops: Sequence[float]  # of each example
    identity: Mapping[str, str]  # digests that the trajectory depends on beside plan and config
    # Token counts that are logged with each visit of a pair, by name. None: no ledger is written.
    ledger: Mapping[str, Sequence[int]] | None = None
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

    started: float  # time.perf_counter() at the start, moved on by what is no part of a step
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
) -> None:
    """Run the steps of `train.plan` that come after the newest checkpoint.

    Args: sample: called at step 0 and at each evaluation. on_resume_checked: called before anything
    is written, when the run in the folder is known to be this one.
    Raises: BadInput (see `checkpoint.restore`, `require_zero_rewards`); NonFiniteError before the
    update; Stopped after a signal, when the run is saved.
    """
    run, run_dir, steps = config.run, Path(config.run.dir), train.plan.steps
    identity = checkpoint.identity(config, train.plan, train.identity)
    first_step = checkpoint.restore(engine, run_dir, run.resume, identity)
    on_resume_checked()
    rates = learning_rates(config.optim, len(steps))
    ledger = open_ledger(engine, run_dir, train, first_step)
    with contextlib.closing(open_recorder(engine, config, first_step, len(steps))) as recorder:
        if sample and first_step == 0:
            sample(0)
        interval = Interval(time.perf_counter())
        for step in range(first_step, len(steps)):
            sums = train_step(engine, config, train, step, rates[step], ledger)
            if step == first_step:  # from here on the folder holds something to lose
                checkpoint.write_identity(engine, run_dir, step, identity)
            require_finite(engine, train, step, sums, ledger, recorder)
            interval.add(sums)

            done, last, stop = step + 1, step == len(steps) - 1, bool(sums["stop"])
            saves = done % run.save_every == 0 or last or stop
            # No record spans a checkpoint, or a resumed run would lose half of it.
            if step % run.log_every == 0 or saves:
                write_train_record(engine, config, train, step, rates, sums, interval, recorder)
                interval = Interval(time.perf_counter())
            recorder.advance()

            paused = time.perf_counter()
            if (evaluation or sample) and (done % run.eval_every == 0 or last):
                epoch = float(config.optim.epochs) if last else steps[done].epoch
                evaluate(engine, evaluation, sample, done, epoch, recorder)
            if saves:
                save_checkpoint(engine, config, done, identity, ledger, recorder)
            interval.started += time.perf_counter() - paused
            if stop and not last:
                raise Stopped(
                    f"by a signal after step {step}; the run is saved, start it again to continue"
                )


def train_step(
    engine: Engine, config: Config, split: Split, step: int, rate: float, ledger: Ledger | None
) -> Sums:
    """Gradient and update of a step; returns its sums over all ranks.

    Raises: BadInput before the first update (see `require_zero_rewards`).
    """
    totals = forward_backward(engine, split, step, ledger)
    if step == 0 and ledger and isinstance(config, DPOConfig):
        require_zero_rewards(engine, split, ledger, config)
    grad_norm = engine.step(rate)
    update, weight = engine.update_and_weight_sq_norms(rate)
    totals.sums["update"] = update
    totals.sums["weight"] = weight
    return reduce_totals(engine, split, step, totals, grad_norm)


def forward_backward(engine: Engine, split: Split, step: int, ledger: Ledger | None) -> Totals:
    """Forward and backward of this rank's micro-batches of a step.

    The gradient is that of the mean over the units of all ranks: each micro-batch's sum is divided
    by the step's units, never by its own.
    """
    epoch, ranks = split.plan.steps[step]
    units = total(split.units, split.plan.steps[step].examples())
    micro_batches, totals = ranks[engine.rank], Totals()
    for m, indices in enumerate(micro_batches):
        batch = split.collate(indices).to(engine.device)
        loss_sum, stats = split.run_objective(engine, batch)
        # A loss that is not finite makes the whole gradient NaN, and `engine.step` then leaves the
        # parameters as they are: nobody has to read the loss before the update.
        loss = loss_sum / units * (1 + 0 * loss_sum.detach())
        engine.backward(loss, last=m == len(micro_batches) - 1)
        totals.add(loss_sum, stats)
        if ledger:
            ledger.add(step, epoch, batch.indices, stats)
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
    recorder: Recorder,
) -> None:
    """Record the means over all examples of a split after `step` updates, and what `sample`
    returns."""
    record: dict[str, object] = {"step": step, "split": "eval", "epoch": epoch}
    engine.train(False)
    totals = Totals()
    if split:
        for indices in split.plan.steps[0].ranks[engine.rank]:
            totals.add(*split.run_objective(engine, split.collate(indices).to(engine.device)))
    engine.train()
    if split:
        sums = reduce_totals(engine, split, 0, totals)
        record.update(mean_metrics(sums, split.unit_name))
    if sample:
        record.update(sample(step))
    recorder.write(record, alarms.evaluation_alarms(record, recorder.evaluations))


def save_checkpoint(
    engine: Engine,
    config: Config,
    done: int,
    identity: checkpoint.Identity,
    ledger: Ledger | None,
    recorder: Recorder,
) -> None:
    """Write a checkpoint after `done` updates. A collective.

    Records and the ledger's part are on the disk before the checkpoint that relies on them.
    """
    rows = []
    if ledger:
        rows = [row for rank in engine.all_gather(ledger.rows()) for row in rank]

    def write_records() -> None:
        recorder.sync()
        if ledger:
            ledger.commit(done, rows)

    engine.on_rank0(write_records)
    checkpoint.save(engine, Path(config.run.dir), done, identity, config.run.keep)


def learning_rates(optim: Optim | SFTOptim, steps: int) -> list[float]:
    """The learning rate of each step."""
    return [
        learning_rate(
            step,
            steps,
            lr_peak=optim.lr_peak,
            schedule=optim.schedule,
            warmup_fraction=optim.warmup_fraction,
        )
        for step in range(steps)
    ]


def open_ledger(engine: Engine, run_dir: Path, split: Split, first_step: int) -> Ledger | None:
    """The ledger of each pair's visits, where the split asks for one; rank 0 writes it."""
    if not split.ledger:
        return None
    return Ledger(run_dir, split.ids, split.ledger, first_step, writes=engine.rank == 0)


def open_recorder(engine: Engine, config: Config, first_step: int, steps: int) -> Recorder:
    """metrics.jsonl, progress bar and wandb run, on rank 0."""
    return Recorder(
        Path(config.run.dir),
        config.run.wandb,
        to_yaml(config),
        first_step=first_step,
        steps=steps,
        active=engine.rank == 0,
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
    metrics = {
        "epoch": split.plan.steps[step].epoch,
        **mean_metrics(interval.sums, split.unit_name),
        "learning_rate": rates[step],
        "grad_norm": sums["grad_norm"],
        "update_ratio": math.sqrt(sums["update"] / sums["weight"]),
    }
    beta = config.beta if isinstance(config, DPOConfig) else None
    precision = torch.finfo(getattr(torch, config.hardware.dtype)).eps
    raised = alarms.training_alarms(metrics, beta, rates, precision)
    metrics.update(throughput_metrics(engine, interval, config.hardware.tokens_per_micro_batch))
    recorder.write({"step": step, "split": "train", **metrics}, raised)


def mean_metrics(sums: Sums, unit_name: str) -> dict[str, float]:
    """Sums over examples as means over units, with the count of units and of packed tokens."""
    means = {
        name: value / sums["units"] for name, value in sums.items() if name not in NOT_AVERAGED
    }
    return {**means, unit_name: int(sums["units"]), "tokens": int(sums["tokens"])}


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
    """Sum of the values of some examples."""
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
        mine = ledger.non_finite(step) if ledger else []
        ids = [id for rank in engine.all_gather(mine) for id in rank]
        if not ids:
            ids = [split.ids[i] for i in split.plan.steps[step].examples()]
        record = {"step": step, "split": "train", "loss": None}
        recorder.write(record, {"non_finite": f"the {what} is {value}"})
        raise NonFiniteError(
            f"step {step}: the {what} is {value}; no parameter was changed. "
            f"Its examples: {', '.join(ids)}"
        )


class InitialReward(NamedTuple):
    """A pair's reward of one response before the first update, and what rounding may make of it."""

    reward: float
    allowed: float


def require_zero_rewards(engine: Engine, split: Split, ledger: Ledger, config: DPOConfig) -> None:
    """Check that in the first step policy and reference agree: all rewards are 0.

    Another packing may change log-probs by rounding. Each response is held to
    `response_tolerance_nats`, and all responses of the step together to their mean square
    (`SUMS_RMS_TOLERANCE`) and, because rounding has no direction, their sum. A collective, before
    the first update.
    Raises: BadInput naming the pairs whose rewards are not 0, on every rank.
    """
    ranks = engine.all_gather(initial_rewards(split, ledger, config))
    found = [pair for pairs, _ in ranks for pair in pairs]
    examples = split.plan.steps[0].examples()
    for side in ("chosen", "rejected"):
        rewards = [reward for _, of_rank in ranks for reward in of_rank[side]]
        if not found and is_biased(rewards, config.hardware.dtype):
            found = [f"rewards/{side} {split.ids[i]}" for i in examples]
    if found:
        raise BadInput(
            f"policy and reference differ before the first update: the rewards of {len(found)} of "
            f"{len(examples)} pairs are not 0: {', '.join(found[:5])}; the reference store holds "
            f"other values than the model's: delete {config.reference.dir}, then start again"
        )


def initial_rewards(
    split: Split, ledger: Ledger, config: DPOConfig
) -> tuple[list[str], dict[str, list[InitialReward]]]:
    """Of this rank's pairs in the ledger: those with a reward or loss too far off, and the rewards
    of both sides."""
    assert split.ledger is not None
    too_far: list[str] = []
    rewards: dict[str, list[InitialReward]] = {"chosen": [], "rejected": []}
    for _, _, indices, stats in ledger.visits:
        columns = (stats[name].tolist() for name in ("rewards/chosen", "rewards/rejected", "loss"))
        for i, chosen, rejected, loss in zip(indices, *columns):
            of_pair = []
            for side, reward in (("chosen", chosen), ("rejected", rejected)):
                tokens = split.ledger[f"{side}_tokens"][i]
                nats = response_tolerance_nats(config.hardware.dtype, tokens)
                of_pair.append(InitialReward(reward, config.beta * nats))
                rewards[side].append(of_pair[-1])
            # A NaN is not within anything.
            near = all(abs(of.reward) <= of.allowed for of in of_pair)
            if split.initial_loss is not None:
                loss_allowed = abs(chosen) + abs(rejected) + 1e-5
                near = near and abs(loss - split.initial_loss) <= loss_allowed
            if not near:
                too_far.append(
                    f"{split.ids[i]} (rewards {chosen:+.4f} and {rejected:+.4f}, loss {loss:.4f})"
                )
    return too_far, rewards


def is_biased(rewards: Sequence[InitialReward], dtype: str) -> bool:
    """Whether rewards are together further from 0 than rounding moves them.

    Either their sum is too large for errors without a direction, or their mean square, each reward
    as a share of what it may be by itself.
    """
    reward_sum = sum(of.reward for of in rewards)
    allowed_square = sum(of.allowed**2 for of in rewards)
    squares = [(of.reward / of.allowed) ** 2 for of in rewards]
    mean_square = (SUMS_RMS_TOLERANCE[dtype] / SUM_TOLERANCE[dtype]) ** 2
    within = reward_sum**2 <= allowed_square and sum(squares) <= 1 + len(squares) * mean_square
    return not within
