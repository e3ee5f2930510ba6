"""A config on so many ranks becomes a layout: its packing, memory and times."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from math import log, sqrt
from statistics import mean, pstdev
from typing import NamedTuple, TypedDict

from zephyr.config import SFTConfig
from zephyr.costs.memory import predict_memory
from zephyr.costs.times import step_seconds
from zephyr.costs.work import Config, Model, Settings, Work
from zephyr.model.memory import layer_bytes
from zephyr.packing import Plan, plan_epochs
from zephyr.progress import Bar
from zephyr.training.deepspeed_settings import deepspeed_settings, gradient_dtype
from zephyr.training.devices import Device
from zephyr.training.planner import most_micro_batches

USABLE_MEMORY_FRACTION = 0.94  # of a device's memory: the rest is for fragments, driver and NCCL
USABLE_HOST_FRACTION = 0.9  # of the machine's memory: the rest is for the processes
SAMPLED_STEPS, SAMPLED_EXAMPLES = 64, 2**15  # at most, for other layouts than the config's own

# What a run takes under one layout. gradients: what gradient_dtype means here; tokens: of a
# micro-batch; micro: micro-batches a step; critical: the most loaded rank's work against the mean;
# host GB: of the machine's memory for all ranks of a node; compute: products, attention,
# elementwise and head; optimiser: copies and update; mfu: as `zephyr.training.flops` defines it;
# parts: seconds of a step by component, which add up to `step s`.
Layout = TypedDict(
    "Layout",
    {
        "ranks": int,
        "checkpointing": str,
        "fused": str,
        "gradient_dtype": str,
        "gradients": str,
        "gather": str,
        "MB/token": float,
        "tokens": int,
        "micro": float,
        "critical": float,
        "peak GB": float,
        "host GB": float,
        "fits": str,
        "compute": float,
        "comm": float,
        "optimiser": float,
        "step s": float,
        "of ideal": float,
        "mfu": float,
        "hours": float,
        "memory": dict[str, int],
        "parts": dict[str, float],
    },
)
OPTIMISER_PARTS = ("copies", "update", "update ratio")
MakeLayout = Callable[[Config, int], Layout]  # of a config on so many ranks
Sample = Callable[[int, int, int], tuple[Work, Plan]]  # of ranks, budget, step size


class Case(NamedTuple):
    """What the layouts of one prediction have in common."""

    work: Work  # of all examples
    sample: Sample  # of few of them, see `sampler`
    model: Model
    device: Device
    kind: str  # cuda or cpu
    settings: Settings  # the DeepSpeed JSON
    host_memory: float | None = None  # bytes of a machine; None: not known


def make_plan(work: Work, config: Config, ranks: int, epochs: int) -> Plan:
    """The plan that the scripts make of these examples."""
    return plan_epochs(
        work.tokens,
        per_step=step_size(config),
        epochs=epochs,
        ranks=ranks // config.hardware.sequence_parallel,
        seed=config.run.seed,
        budget_tokens=config.hardware.tokens_per_micro_batch,
        shuffle=config.data.shuffle,
        window_tokens=config.data.max_tokens if isinstance(config, SFTConfig) else None,
    )


def step_size_key(config: Config) -> str:
    """The key below `optim` that decides how large a step is."""
    return "windows_per_step" if isinstance(config, SFTConfig) else "pairs_per_step"


def step_size(config: Config) -> int:
    """Pairs or windows of a step."""
    if isinstance(config, SFTConfig):
        return config.optim.windows_per_step
    return config.optim.pairs_per_step


def with_step_size(config: Config, size: int) -> Config:
    """The config with another number of pairs or windows a step."""
    if isinstance(config, SFTConfig):
        return replace(config, optim=replace(config.optim, windows_per_step=size))
    return replace(config, optim=replace(config.optim, pairs_per_step=size))


def with_hardware(config: Config, **changes: object) -> Config:
    """The config with other `hardware` keys."""
    return replace(config, hardware=replace(config.hardware, **changes))  # type: ignore[arg-type]


def sampler(work: Work, config: Config) -> Sample:
    """A function that samples and plans a few steps, and remembers what it returned."""

    @cache
    def sample(ranks: int, budget: int, size: int) -> tuple[Work, Plan]:
        changed = with_hardware(with_step_size(config, size), tokens_per_micro_batch=budget)
        return sample_steps(work, changed, ranks)

    return sample


def sample_steps(work: Work, config: Config, ranks: int) -> tuple[Work, Plan]:
    """A sample of the examples at equal distances, and its plan of a few whole steps.

    Examples are repeated where they do not fill one step.
    """
    per_step = step_size(config)
    most = min(SAMPLED_STEPS * per_step, max(SAMPLED_EXAMPLES, per_step))
    stride = max(1, len(work.tokens) // most)
    sampled = len(work.tokens[::stride])
    repeats = -(-per_step // sampled)
    some = Work(
        work.tokens[::stride] * repeats,
        work.scored[::stride] * repeats,
        work.keys[::stride] * repeats,
        work.forward[::stride] * repeats,
    )
    plan = make_plan(some, config, ranks, epochs=1)
    return some, plan._replace(steps=plan.steps[: max(1, len(plan.steps) - 1)])


def likely_most_micro_batches(plan: Plan, work: Work, budget: int, steps: float) -> int:
    """The most micro-batches a rank has in a step of a whole run, of which a sample was planned.

    Where all sampled steps have one, the largest of all steps may still need two: its tokens are
    taken to be the mean plus sqrt(2 ln steps) standard deviations (the largest of so many normal
    numbers), and a rank's micro-batch to be filled up to 95 %.
    """
    most = most_micro_batches(plan)
    totals = [sum(work.tokens[i] for i in step.examples()) for step in plan.steps]
    largest = mean(totals) + pstdev(totals) * sqrt(2 * log(max(steps, 1)))
    return max(most, 1 + (largest > 0.95 * budget * len(plan.steps[0].ranks)))


def layout(config: Config, ranks: int, plan: Plan | None = None, *, case: Case) -> Layout:
    """Memory and times under a config on so many ranks.

    Args: plan: of all examples; None: a few whole steps of a sample are planned here.
    """
    work, hardware = case.work, config.hardware
    if plan is not None:
        most = most_micro_batches(plan)
    else:
        work, plan = case.sample(ranks, hardware.tokens_per_micro_batch, step_size(config))
        steps = len(case.work.tokens) * config.optim.epochs / step_size(config)
        most = likely_most_micro_batches(plan, work, hardware.tokens_per_micro_batch, steps)
    summed_in = gradient_dtype(hardware, case.settings, ranks=ranks, micro_batches=most).dtype
    settings = deepspeed_settings(
        case.settings, hardware=hardware, optim=config.optim, gradients_in=summed_in, ranks=ranks
    )
    memory = predict_memory(
        case.model, ranks, case.kind, plan, work, config, settings, gradient_dtype=summed_in
    )
    seconds = step_seconds(
        plan, work, case.model, case.device, case.kind, config, settings, summed_in
    )
    peak, host = memory["peak"], memory["host"]
    fits = peak <= USABLE_MEMORY_FRACTION * case.device.memory
    if case.host_memory is not None:
        fits = fits and host <= USABLE_HOST_FRACTION * case.host_memory
    token_bytes = layer_bytes(case.model.config, hardware) * case.model.config.num_hidden_layers
    planned = [i for step in plan.steps for i in step.examples()]
    steps = len(plan.steps) * config.optim.epochs * len(case.work.tokens) / len(planned)
    useful = 3 * sum(work.forward[i] for i in planned) / len(plan.steps)
    return {
        "ranks": ranks,
        "checkpointing": json.dumps(hardware.activation_checkpointing).strip('"'),
        "fused": hardware.fused,
        "gradient_dtype": hardware.gradient_dtype,
        "gradients": summed_in,
        "gather": hardware.gather,
        "MB/token": token_bytes / 1e6,
        "tokens": hardware.tokens_per_micro_batch,
        "micro": seconds.micro_batches,
        "critical": seconds.busy / seconds.ideal,
        "peak GB": peak / 1e9,
        "host GB": host / 1e9,
        "fits": "yes" if fits else "no",
        "compute": seconds.busy,
        "comm": seconds.communication,
        "optimiser": sum(seconds.parts[name] for name in OPTIMISER_PARTS),
        "step s": seconds.step,
        "of ideal": seconds.ideal / seconds.step,
        "mfu": useful / (seconds.step * ranks * case.device.peak),
        "hours": seconds.step * steps / 3600,
        "memory": memory,
        "parts": seconds.parts,
    }


def scaling_tables(make: MakeLayout, config: Config) -> dict[str, list[Layout]]:
    """Layouts of up to 1,024 ranks: with the config's step (strong), and with a step that grows
    with the ranks (weak)."""
    together = config.hardware.sequence_parallel
    strong = [together * 2**k for k in range(11) if together * 2**k <= 1024]
    weak = [
        (each, ranks)
        for each in (2, 4, 16)
        for ranks in (16, 64, 256, 1024)
        if ranks % together == 0
    ]
    with Bar("layouts", len(strong) + len(weak), "layouts") as bar:

        def made(of_config: Config, ranks: int) -> Layout:
            result = make(of_config, ranks)
            bar.update()
            return result

        tables = {"strong": [made(config, ranks) for ranks in strong]}
        for each, ranks in weak:
            rows = tables.setdefault(f"weak, {step_size_key(config)} {each} x ranks", [])
            rows.append(made(with_step_size(config, each * ranks), ranks))
    return tables
