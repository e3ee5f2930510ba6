"""The training loop, the same for SFT and DPO: they differ in how a micro-batch of P examples is
collated, and in the objective."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zephyr.config import BadInput, DPOConfig, Run, SFTConfig, to_yaml
from zephyr.packing import PackedBatch, Plan
from zephyr.training import alarms, checkpoint
from zephyr.training.engine import Engine
from zephyr.training.flops import mfu
from zephyr.training.metrics import Ledger, Recorder, Row, Totals
from zephyr.training.schedule import learning_rate
from zephyr.training.tolerance import SUM_TOLERANCE, SUMS_RMS_TOLERANCE, response_tolerance_nats

Stats = Mapping[str, Tensor]  # metric name -> one value a pair [P], detached
Sample = Callable[
    [int], Row
]  # the policy answers prompts after so many updates -> what the record says of it
Objective = Callable[[Engine, PackedBatch], tuple[Tensor, Stats]]


class Split(NamedTuple):
    """Examples of one kind, planned, with how a micro-batch of them becomes a loss sum."""

    plan: Plan
    collate: Callable[[Sequence[int]], PackedBatch]
    objective: (
        Objective | None
    )  # -> loss summed over the micro-batch, statistics of each pair; None: not known yet
    ids: Sequence[str]  # of each example
    tokens: Sequence[int]  # packed tokens of each example
    units: Sequence[int]  # what losses are averaged over: 1 a pair, target tokens of a text
    unit_name: str  # "pairs" or "target_tokens"
    forward_flops: Sequence[float]  # of each example
    identity: Mapping[str, str]  # what the trajectory depends on beside plan and config, by name
    ledger: Mapping[str, Sequence[int]] | None = (
        None  # token counts kept with each pair's visits; None: no ledger
    )
    initial_loss: float | None = (
        None  # of each pair while the policy is its reference; None: not checked
    )


class NonFiniteError(RuntimeError):
    """A loss or gradient that is not finite; raised before any parameter changed."""


class Stopped(RuntimeError):
    """A signal asked for an end: the step was finished and a checkpoint saved."""


def fit(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    train: Split,
    evaluation: Split | None,
    sample: Sample | None = None,
    on_resume_checked: Callable[[], None] = lambda: None,
) -> None:
    """Run the steps of `train.plan` that no checkpoint has yet. `sample` runs at step 0 too.

    A step's loss is its sum over all ranks divided once by their units: never a mean of means.
    Args: on_resume_checked: called once no checkpoint is of another run, before anything is written.
    Raises: BadInput (`restore`, `require_zero_rewards`); NonFiniteError before the update; Stopped, saved."""
    run, optim, steps = config.run, config.optim, train.plan.steps
    identity = checkpoint.identity(config, train.plan, train.identity)
    first_step = checkpoint.restore(engine, Path(run.dir), run.resume, identity)
    on_resume_checked()
    rates = [
        learning_rate(
            step,
            len(steps),
            lr_peak=optim.lr_peak,
            schedule=optim.schedule,
            warmup_fraction=optim.warmup_fraction,
        )
        for step in range(len(steps))
    ]
    ulp = torch.finfo(getattr(torch, config.hardware.dtype)).eps
    ledger = (
        Ledger(Path(run.dir), train.ids, train.ledger, first_step, engine.rank == 0)
        if train.ledger
        else None
    )
    with contextlib.closing(
        Recorder(
            Path(run.dir),
            run.wandb,
            to_yaml(config),
            first_step=first_step,
            steps=len(steps),
            active=engine.rank == 0,
        )
    ) as recorder:
        if sample and first_step == 0:
            sample(0)
        sums, logged, since = {}, first_step - 1, time.perf_counter()
        for step in range(first_step, len(steps)):
            of_step = train_step(
                engine,
                train,
                step,
                rates[step],
                ledger,
                config,
                identity if step == first_step else None,
            )
            require_finite(of_step, engine, train, step, ledger, recorder)
            sums, done, last = add_sums(sums, of_step), step + 1, step == len(steps) - 1
            saves = done % run.save_every == 0 or last or of_step["stop"]
            if (
                step % run.log_every == 0 or saves
            ):  # no record spans a checkpoint, or a resumed run would lose half of it
                record = {
                    "step": step,
                    "split": "train",
                    "epoch": steps[step].epoch,
                    **mean_metrics(sums, train.unit_name),
                    "learning_rate": rates[step],
                    "grad_norm": of_step["grad_norm"],
                    "update_ratio": math.sqrt(of_step["update"] / of_step["weight"]),
                }
                use = throughput_metrics(
                    engine,
                    sums,
                    config.hardware.tokens_per_micro_batch,
                    time.perf_counter() - since,
                    step - logged,
                )
                recorder.write(
                    record | use,
                    alarms.training_alarms(record, getattr(config, "beta", None), rates, ulp),
                )
                sums, logged, since = {}, step, time.perf_counter()
            recorder.advance()
            paused = time.perf_counter()
            if (evaluation or sample) and (done % run.eval_every == 0 or last):
                evaluate(
                    engine,
                    evaluation,
                    sample,
                    done,
                    float(optim.epochs) if last else steps[done].epoch,
                    recorder,
                )
            if saves:
                save(engine, config.run, done, identity, ledger, recorder)
            since += time.perf_counter() - paused  # evaluation and saving are no part of a step
            if of_step["stop"] and not last:
                raise Stopped(
                    f"by a signal after step {step}; the run is saved, start it again to go on"
                )


def save(
    engine: Engine,
    run: Run,
    done: int,
    identity: checkpoint.Identity,
    ledger: Ledger | None,
    recorder: Recorder,
) -> None:
    """Records and the ledger's part are on the disk, then the checkpoint that stands for them,
    after `done` updates. A collective."""
    rows = [row for rank in engine.all_gather(ledger.rows()) for row in rank] if ledger else []
    engine.on_rank0(lambda: [recorder.sync(), ledger and ledger.commit(done, rows)] and None)
    checkpoint.save(engine, Path(run.dir), done, identity, run.keep)


def train_step(
    engine: Engine,
    split: Split,
    step: int,
    rate: float,
    ledger: Ledger | None,
    config: DPOConfig | SFTConfig,
    identity: checkpoint.Identity | None = None,
) -> Row:
    """Gradient and update of a step; its sums over all ranks. Args: identity: kept in the run
    folder after the first step of this start: from there on it holds something to lose. Raises:
    BadInput before the first update (`require_zero_rewards`)."""
    totals = forward_backward(engine, split, step, ledger)
    if step == 0 and ledger:
        require_zero_rewards(engine, split, ledger, config)
    grad_norm = engine.step(rate)
    totals.sums |= dict(zip(("update", "weight"), engine.update_and_weight_sq_norms(rate)))
    if identity:
        checkpoint.write_identity(engine, Path(config.run.dir), step, identity)
    return reduce_totals(engine, split, step, totals, grad_norm)


def forward_backward(engine: Engine, split: Split, step: int, ledger: Ledger | None) -> Totals:
    """Forward and backward of this rank's micro-batches of a step: the gradient is that of the mean
    over all ranks.

    A loss that is not finite makes all of it NaN, which `engine.step` refuses: nobody has to read
    the loss before the update."""
    epoch, ranks = split.plan.steps[step]
    units = total(split.units, split.plan.steps[step].examples())
    totals = Totals()
    for m, indices in enumerate(ranks[engine.rank]):
        batch = split.collate(indices).to(engine.device)
        loss_sum, stats = split.objective(engine, batch)
        engine.backward(
            loss_sum / units * (1 + 0 * loss_sum.detach()), last=m == len(ranks[engine.rank]) - 1
        )
        totals.add(loss_sum, stats)
        if ledger:
            ledger.add(step, epoch, batch.indices, stats)
    totals.sums["stop"] = torch.full_like(
        totals.sums["loss"], engine.stop_requested
    )  # so that all ranks hear of it at once
    return totals


@torch.no_grad()
def evaluate(
    engine: Engine,
    split: Split | None,
    sample: Sample | None,
    step: int,
    epoch: float,
    recorder: Recorder,
) -> None:
    """Record the means over all examples of a split after `step` updates, and what `sample` says of
    the policy."""
    record, totals = {"step": step, "split": "eval", "epoch": epoch}, Totals()
    engine.train(False)
    for indices in split.plan.steps[0].ranks[engine.rank] if split else ():
        totals.add(*split.objective(engine, split.collate(indices).to(engine.device)))
    engine.train()
    record |= (
        mean_metrics(reduce_totals(engine, split, 0, totals), split.unit_name) if split else {}
    )
    record |= sample(step) if sample else {}
    recorder.write(record, alarms.evaluation_alarms(record, recorder.evaluations))


def reduce_totals(
    engine: Engine, split: Split, step: int, totals: Totals, grad_norm: Tensor | None = None
) -> Row:
    """A step's sums over all ranks, its gradient norm, and its counts from the plan: one reduction,
    the one host read of a step."""
    sums = engine.all_reduce(torch.stack(list(totals.sums.values())))
    values = (sums if grad_norm is None else torch.cat([sums, grad_norm[None]])).tolist()
    examples, ranks = split.plan.steps[step].examples(), split.plan.steps[step].ranks
    return dict(zip([*totals.sums, "grad_norm"], values)) | {
        "units": total(split.units, examples),
        "tokens": total(split.tokens, examples),
        "flops": total(split.forward_flops, examples),
        "micro_batches": sum(1 for rank in ranks for micro in rank if micro),
    }


def total(values: Sequence[float], examples: Sequence[int]) -> float:
    return sum(values[i] for i in examples)


def add_sums(sums: Row, more: Row) -> Row:
    return {name: sums.get(name, 0) + value for name, value in more.items()}


def mean_metrics(sums: Row, unit_name: str) -> Row:
    """Sums over examples as the record's means, with the count they are over."""
    no_means = {
        "units",
        "tokens",
        "flops",
        "micro_batches",
        "stop",
        "grad_norm",
        "update",
        "weight",
    }
    return {name: value / sums["units"] for name, value in sums.items() if name not in no_means} | {
        unit_name: int(sums["units"]),
        "tokens": int(sums["tokens"]),
    }


def throughput_metrics(
    engine: Engine, sums: Row, budget_tokens: int, seconds: float, steps: int
) -> Row:
    """What the steps behind a record took, of the slowest or fullest rank."""
    use = {
        "tokens_per_second": sums["tokens"] / seconds,
        "step_seconds": seconds / steps,
        "packing_efficiency": sums["tokens"] / (sums["micro_batches"] * budget_tokens),
        "peak_memory_bytes": max(engine.all_gather(engine.peak_memory_bytes())),
    }
    utilisation = mfu(sums["flops"], seconds, engine.world_size)
    return use if utilisation is None else use | {"mfu": utilisation}


def require_finite(
    of_step: Row, engine: Engine, split: Split, step: int, ledger: Ledger | None, recorder: Recorder
) -> None:
    """Raises: NonFiniteError naming the pairs whose own loss is not finite, or, where that can't be
    told, all of the step."""
    for name, what in (("loss", "loss"), ("grad_norm", "gradient norm")):
        if not math.isfinite(value := of_step[name]):
            guilty = [
                id
                for rank in engine.all_gather(ledger.non_finite(step) if ledger else [])
                for id in rank
            ]
            ids = guilty or [split.ids[i] for i in split.plan.steps[step].examples()]
            recorder.write(
                {"step": step, "split": "train", "loss": None},
                {"non_finite": f"the {what} is {value}"},
            )
            raise NonFiniteError(
                f"step {step}: the {what} is {value}; no parameter was changed. Its examples: {', '.join(ids)}"
            )


def require_zero_rewards(engine: Engine, split: Split, ledger: Ledger, config: DPOConfig) -> None:
    """Every pair of the first step has rewards 0, and the loss that follows from them: the policy
    is its reference.

    Within what another packing may change: each response (`tolerance.response_tolerance_nats`), and all of
    the step together, in the mean square (`tolerance.SUMS_RMS_TOLERANCE`) and, since rounding has no direction,
    in the sum. A collective, before the first update. Raises: BadInput naming the pairs that have
    not, on every rank."""
    apart, shares = [], {"chosen": [], "rejected": []}
    for _, _, indices, stats in ledger.visits:
        columns = (stats[name].tolist() for name in ("rewards/chosen", "rewards/rejected", "loss"))
        for i, chosen, rejected, loss in zip(indices, *columns):
            rewards = {"chosen": chosen, "rejected": rejected}
            most = {
                side: config.beta
                * response_tolerance_nats(config.hardware.dtype, split.ledger[f"{side}_tokens"][i])
                for side in rewards
            }
            far = any(not abs(rewards[side]) <= most[side] for side in rewards)
            if far or (
                split.initial_loss is not None
                and not abs(loss - split.initial_loss) <= abs(chosen) + abs(rejected) + 1e-5
            ):
                apart.append(
                    f"{split.ids[i]} (rewards {chosen:+.4f} and {rejected:+.4f}, loss {loss:.4f})"
                )
            for side in rewards:
                shares[side].append((rewards[side], most[side]))
    ranks, examples = engine.all_gather((apart, shares)), split.plan.steps[0].examples()
    found = [pair for pairs, _ in ranks for pair in pairs]
    for side in shares:
        if not found and is_biased(
            [share for _, of_rank in ranks for share in of_rank[side]], config.hardware.dtype
        ):
            found = [f"rewards/{side} {split.ids[i]}" for i in examples]
    if found:
        raise BadInput(
            f"policy and reference differ before the first update: the rewards of {len(found)} of "
            f"{len(examples)} pairs are not 0: {', '.join(found[:5])}; the reference store holds "
            f"other values than the model's: delete {config.reference.dir}, it will be computed again"
        )


def is_biased(shares: Sequence[tuple[float, float]], dtype: str) -> bool:
    """Whether rewards are further from 0 together than rounding takes them: their sum, or their
    squares, one response as far as it may be by itself. Args: of each its reward, and that."""
    together = sum(reward for reward, _ in shares)
    squares = [(reward / most) ** 2 for reward, most in shares]
    return (
        not together**2 <= sum(most**2 for _, most in shares)
        or not sum(squares)
        <= 1 + len(squares) * (SUMS_RMS_TOLERANCE[dtype] / SUM_TOLERANCE[dtype]) ** 2
    )
