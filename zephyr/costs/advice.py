"""Layouts are tried: the fastest that fits in memory, and where none fits, what would."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TypedDict

from zephyr.costs.layouts import Case, Layout, MakeLayout, layout, with_hardware
from zephyr.costs.memory import is_offloaded
from zephyr.costs.work import Checkpointing, Config
from zephyr.training.deepspeed_settings import read_deepspeed, section_of
from zephyr.training.devices import DEVICES

# In the order of the repeated work
POLICIES: tuple[Checkpointing, ...] = (False, "elementwise", "mlp", True)
OFFLOAD = "configs/deepspeed/zero3-offload.json"
MOST_RANKS = 1024


class Remedy(TypedDict):
    """A change under which a config fits that does not fit otherwise."""

    change: str
    note: str  # what it costs
    layout: Layout


def remedy(change: str, note: str, one: Layout) -> Remedy:
    """A `Remedy` of these fields."""
    return {"change": change, "note": note, "layout": one}


def largest_budget(
    make: MakeLayout, config: Config, ranks: int, longest: int, policy: Checkpointing
) -> Layout | None:
    """The layout of a policy with the largest budget that fits in memory.

    The budget is a power of two or one and a half of it, and no larger than a rank's whole step
    needs. Returns: None where the smallest such budget for the longest example does not fit.
    """
    found: Layout | None = None
    budgets = (half * 2**k for k in range(20) for half in (2, 3))
    for budget in (one for one in budgets if longest <= one < 2**20):
        changed = with_hardware(
            config, tokens_per_micro_batch=budget, activation_checkpointing=policy
        )
        one = make(changed, ranks)
        if one["fits"] == "no" or (found and is_whole_step(found, config)):
            break
        found = one
    return found


def is_whole_step(one: Layout, config: Config) -> bool:
    """Whether a rank's steps are one micro-batch each, of the sample and very likely of the run."""
    sums = config.hardware.gradient_dtype == "auto" and config.hardware.dtype == "bfloat16"
    return one["micro"] == 1 and (one["gradients"] == "bfloat16" or not sums)


def each_policy(make: MakeLayout, config: Config, ranks: int, longest: int) -> list[Layout]:
    """The layout of each policy with its largest budget that fits, where one does."""
    found = (largest_budget(make, config, ranks, longest, policy) for policy in POLICIES)
    return [one for one in found if one]


def fastest(layouts: Sequence[Layout]) -> Layout | None:
    """The layout with the shortest step; of equals the first, which repeats least."""
    return min(layouts, key=lambda one: one["step s"], default=None)


def options(config: Config, case: Case) -> Iterator[Config]:
    """The config with each choice of `fused` and `gradient_dtype`, its own first."""
    hardware = config.hardware
    fused = [hardware.fused] + ["triton"] * (hardware.fused == "none" and case.kind == "cuda")
    summed = [hardware.gradient_dtype]
    decided = "grad_accum_dtype" in section_of(case.settings, "data_types")
    if hardware.dtype == "bfloat16" and hardware.gradient_dtype != "bfloat16" and not decided:
        summed.append("bfloat16")
    for dtype in summed:
        for kernels in fused:
            yield with_hardware(config, fused=kernels, gradient_dtype=dtype)


def remedies(config: Config, ranks: int, longest: int, case: Case) -> Iterator[Remedy]:
    """What would make a config fit of which no policy and budget fits, from cheap to dear."""
    of_case = partial(layout, case=case)
    yield from smaller_budget(of_case, config, ranks, longest)
    for changed in list(options(config, case))[1:]:
        if best := fastest(each_policy(of_case, changed, ranks, longest)):
            bits = changed.hardware.gradient_dtype != config.hardware.gradient_dtype
            note = "sums of gradients lose bits" if bits else "where it serves the model"
            yield remedy(describe_options(config, changed), note, best)
    yield from shared_rows(of_case, config, ranks, longest, case.model.config.num_attention_heads)
    yield from more_ranks(of_case, config, ranks, longest)
    if not is_offloaded(case.settings, "offload_optimizer"):
        offloaded = partial(layout, case=case._replace(settings=read_deepspeed(OFFLOAD)))
        if best := fastest(each_policy(offloaded, config, ranks, longest)):
            note = f"takes {best['host GB']:.0f} GB of the machine's memory"
            yield remedy(f"hardware.deepspeed={OFFLOAD}", note, best)
    yield from larger_card(config, ranks, longest, case)


def smaller_budget(make: MakeLayout, config: Config, ranks: int, longest: int) -> Iterator[Remedy]:
    """The smallest budget there is, that of the longest example, with a policy that fits."""
    smallest = with_hardware(config, tokens_per_micro_batch=longest)
    made = [make(with_hardware(smallest, activation_checkpointing=p), ranks) for p in POLICIES]
    if best := fastest([one for one in made if one["fits"] == "yes"]):
        yield remedy(f"hardware.tokens_per_micro_batch={longest}", "the longest example", best)


def more_ranks(make: MakeLayout, config: Config, ranks: int, longest: int) -> Iterator[Remedy]:
    """The fewest ranks that fit."""
    together = config.hardware.sequence_parallel

    def best_of(groups: int) -> Layout | None:
        return fastest(each_policy(make, config, groups * together, longest))

    too_few, enough = ranks // together, 2 * ranks // together
    while best_of(enough) is None:
        too_few, enough = enough, 2 * enough
        if enough * together > MOST_RANKS:
            return
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if best_of(middle):
            enough = middle
        else:
            too_few = middle
    if best := best_of(enough):
        count = enough * together
        yield remedy(f"--gpus {count}", f"{count / ranks:.3g} times as many", best)


def shared_rows(
    make: MakeLayout, config: Config, ranks: int, longest: int, heads: int
) -> Iterator[Remedy]:
    """The fewest ranks to a row that fit. Args: heads: attention heads, which they divide."""
    for size in range(config.hardware.sequence_parallel + 1, ranks + 1):
        if ranks % size or heads % size:
            continue
        changed = with_hardware(config, sequence_parallel=size)
        if best := fastest(each_policy(make, changed, ranks, longest)):
            yield remedy(
                f"hardware.sequence_parallel={size}", f"a rank has 1/{size} of a row's tokens", best
            )
            return


def larger_card(config: Config, ranks: int, longest: int, case: Case) -> Iterator[Remedy]:
    """The known card with the least memory that fits."""
    for name in sorted(DEVICES, key=lambda name: (DEVICES[name].memory, DEVICES[name].peak)):
        if DEVICES[name].memory > case.device.memory:
            on_card = partial(layout, case=case._replace(device=DEVICES[name]))
            if best := fastest(each_policy(on_card, config, ranks, longest)):
                yield remedy(f"--device {name}", f"{DEVICES[name].memory / 1e9:.0f} GB", best)
                return


def describe_options(config: Config, changed: Config) -> str:
    """The keys of `fused` and `gradient_dtype` that differ, as on the command line."""
    return " ".join(
        f"hardware.{key}={getattr(changed.hardware, key)}"
        for key in ("fused", "gradient_dtype")
        if getattr(changed.hardware, key) != getattr(config.hardware, key)
    )


def overrides(one: Layout, config: Config) -> str:
    """The keys that make a config this layout, as on the command line."""
    wanted = {
        "tokens_per_micro_batch": one["tokens"],
        "activation_checkpointing": one["checkpointing"],
    }
    if one["fused"] != config.hardware.fused:
        wanted["fused"] = one["fused"]
    if one["gradient_dtype"] != config.hardware.gradient_dtype:
        wanted["gradient_dtype"] = one["gradient_dtype"]
    return " ".join(f"hardware.{key}={value}" for key, value in wanted.items())
