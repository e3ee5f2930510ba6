"""The sizes of the published sets become numbers of steps, and the steps of published runs become
epochs, to compare with a config's plan.

A card says at which step its run was evaluated and, to two decimals, which epoch that was. Both
follow from the number of rows and the batch, so a card tells which release of a set it was trained
on, and whether its schedule was as long as its run.
"""

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from zephyr.config import BadInput, DPOConfig, SFTConfig, load
from zephyr.costs.layouts import step_size
from zephyr.costs.work import Config
from zephyr.verify.certificate import read_config

# Rows of each release of the sets that Zephyr was trained on, from their dataset cards.
ULTRAFEEDBACK = {
    "ultrafeedback_binarized, first release": 61_966,
    "ultrafeedback_binarized, since its labels were corrected": 61_135,
}
ULTRACHAT = {"ultrachat_200k:train_sft": 207_865}
GRID = ((32, 3), (32, 1), (64, 3), (64, 1), (128, 3), (128, 1))  # batch and epochs of DPO
SFT_GRID = ((512, 1), (128, 1))
# A run that ends before this share of a whole epoch did not take all of its rows.
WHOLE_EPOCH = 0.995


class Schedule(NamedTuple):
    """The steps of a run of `rows` examples."""

    rows: int
    batch: int
    epochs: int
    per_epoch: int
    steps: int
    warmup_steps: int

    def epoch_at(self, step: int) -> float:
        """Passes over the rows after so many steps. The last step of an epoch may be smaller than
        the others, and counts as one."""
        return step / self.per_epoch


class PublishedRun(NamedTuple):
    """A run whose card gives steps. `points`: (step, epoch as it is printed there)."""

    name: str
    stage: str
    rows: int
    micro_batch: int  # rows of a forward pass of all GPUs
    accumulation: int  # micro-batches of a step
    epochs: int
    points: tuple[tuple[int, float], ...]
    source: str

    @property
    def batch(self) -> int:
        return self.micro_batch * self.accumulation


RUNS = (
    PublishedRun(
        "zephyr-7b-beta",
        "dpo",
        61_966,
        32,  # 16 GPUs x 2
        1,
        3,
        ((1900, 0.98), (2000, 1.03), (3900, 2.01)),
        "card of HuggingFaceH4/zephyr-7b-beta",
    ),
    PublishedRun(
        "SFT at batch 512",
        "sft",
        207_865,
        256,  # 8 GPUs x 32
        2,
        1,
        ((272, 0.67),),
        "cards of handbook SFT runs of January 2024",
    ),
)


def schedule(rows: int, batch: int, epochs: int, warmup_fraction: float = 0.1) -> Schedule:
    """The steps of a run by our plan: the last step of each epoch holds what is left.

    Steps of warm-up as `zephyr.training.schedule` counts them, and transformers too.
    """
    per_epoch = math.ceil(rows / batch)
    steps = per_epoch * epochs
    return Schedule(rows, batch, epochs, per_epoch, steps, math.ceil(warmup_fraction * steps))


def trainer_steps(rows: int, micro_batch: int, accumulation: int) -> int:
    """Steps of an epoch under transformers' Trainer of 2023 and 2024.

    Its loader counts whole micro-batches of all GPUs, the last one filled up; what is left of them
    after a division by the accumulation makes no step (transformers 4.35, `_inner_training_loop`:
    `len_dataloader // gradient_accumulation_steps`).
    """
    return max(1, math.ceil(rows / micro_batch) // accumulation)


def matches(run: PublishedRun, rows: int) -> bool:
    """Whether a set of so many rows has the epochs that the card prints at its steps."""
    per_epoch = trainer_steps(rows, run.micro_batch, run.accumulation)
    return all(round(step / per_epoch, 2) == epoch for step, epoch in run.points)


def lr_left(schedule_steps: int, run_steps: int, warmup_fraction: float) -> float:
    """The cosine learning rate, as a share of its peak, at the end of a run that is shorter than
    the schedule."""
    warmup = math.ceil(warmup_fraction * schedule_steps)
    done = (run_steps - warmup) / max(1, schedule_steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, done))))


def packing_fault(
    step: int, epoch: float, rows: int, batch: int, epochs: int, warmup_fraction: float
) -> str | None:
    """What is wrong with a run whose last step is this one, or None.

    TRL of late 2023 told the Trainer that a packed set is as long as its unpacked rows (trl#943,
    trl#1004, alignment-handbook#27). The schedule was made for that number; the packed windows, of
    which there are fewer, ended the run before it.
    """
    whole = epochs * WHOLE_EPOCH
    planned = epochs * math.ceil(rows / batch)
    if epoch >= whole or abs(step / epoch - planned / epochs) > 0.01 * planned / epochs + 1:
        return None
    left = lr_left(planned, step, warmup_fraction)
    return (
        f"step {step:,} at epoch {epoch:.2f} as the last one is the packed-length fault of TRL "
        f"(trl#943, trl#1004, alignment-handbook#27): the schedule has {planned:,} steps, made of "
        f"{rows:,} unpacked rows, but the rows packed into {step * batch:,} windows at most, which "
        f"took {step:,} steps. A cosine schedule then ends at {left:.0%} of the peak learning rate"
    )


def read_end(text: str) -> tuple[int, float]:
    """The last step of a run and its epoch.

    Args: text: `STEP@EPOCH`, as `272@0.67`, or a trainer_state.json of transformers.
    Raises: BadInput.
    """
    found = re.fullmatch(r"([1-9][0-9]{0,8})@([0-9]{1,4}(?:\.[0-9]{1,6})?)", text)
    if found and float(found[2]) > 0:
        return int(found[1]), float(found[2])
    wanted = "expected STEP@EPOCH, as 272@0.67, or a trainer_state.json of transformers"
    if not Path(text).is_file():
        raise BadInput(f"--compare {text}: {wanted}")
    try:
        state = json.loads(Path(text).read_text(encoding="utf-8"))
        step, epoch = int(state["global_step"]), float(state["epoch"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise BadInput(
            f"--compare {text}: {wanted}, with `global_step` and `epoch`; {type(error).__name__}: "
            f"{error}"
        ) from None
    if step < 1 or not 0 < epoch < math.inf:
        raise BadInput(
            f"--compare {text}: expected a step >= 1 and an epoch > 0, got {step} and {epoch}"
        )
    return step, epoch


def published_page(
    path: Path, overrides: Sequence[str], *, stage: str | None = None, compare: str | None = None
) -> str:
    """Make the text that `zephyr plan --published` prints. Raises: BadInput."""
    config: Config
    if isinstance(read_config(path, stage)[1], SFTConfig):
        config = load(SFTConfig, str(path), overrides)
    else:
        config = load(DPOConfig, str(path), overrides)
    return "\n".join(published_lines(config, compare))


def published_lines(config: Config, compare: str | None = None) -> Iterator[str]:
    """The steps of a config on each release of its set, the steps of published runs, and what a run
    to compare with was.

    Raises: BadInput for a run that `compare` does not describe.
    """
    sft = isinstance(config, SFTConfig)
    sizes = ULTRACHAT if sft else ULTRAFEEDBACK
    optim, batch = config.optim, step_size(config)
    own = (batch, optim.epochs)
    yield (
        f"Steps of the published sets, warm-up {optim.warmup_fraction:g} of them; * this config"
        + (". Not packed: packed windows make fewer (below)" if sft else "")
    )
    yield "       rows  batch  epochs  an epoch    steps  warm-up"
    for name, rows in sizes.items():
        for size, epochs in dict.fromkeys((own, *(SFT_GRID if sft else GRID))):
            of = schedule(rows, size, epochs, optim.warmup_fraction)
            mark = "*" if (size, epochs) == own else " "
            yield (
                f"{mark:2}{rows:>9,} {size:>6} {epochs:>7} {of.per_epoch:>9,} {of.steps:>8,} "
                f"{of.warmup_steps:>8,}  {name}"
            )
    yield ""
    yield from run_lines("sft" if sft else "dpo", optim.warmup_fraction)
    if compare is not None:
        yield ""
        yield from compared_lines(compare, config, batch, sizes)


def run_lines(stage: str, warmup_fraction: float) -> Iterator[str]:
    """The points of published cards, and the epochs that our plan has there."""
    yield "Published runs: step, the card's epoch, and the epoch of that step by the rows"
    for run in (run for run in RUNS if run.stage == stage):
        ours = schedule(run.rows, run.batch, run.epochs, warmup_fraction)
        for step, epoch in run.points:
            yield (
                f"  {run.name:18} {step:>6,} {epoch:>6.2f} {ours.epoch_at(step):>7.3f}  "
                f"({run.rows:,} rows, batch {run.batch}; {run.source})"
            )
    if stage == "sft":
        yield from fault_lines(warmup_fraction)


def fault_lines(warmup_fraction: float) -> Iterator[str]:
    """Why published SFT runs have 272 steps, and how many there are here."""
    run = next(run for run in RUNS if run.stage == "sft")
    ((step, epoch),) = run.points
    yield f"  {packing_fault(step, epoch, run.rows, run.batch, run.epochs, warmup_fraction)}."
    yield (
        f"  Runs of 1,090 steps at batch 128 saw as many windows ({1090 * 128:,} at most), and "
        "their schedule ended with them."
    )
    yield (
        "  Here the schedule is made from the packed windows, so that it ends with the run: "
        "zephyr plan CONFIG --lengths ultrachat tells its steps. A conversation is cut at the "
        "window, where TRL goes on in the next one: there are fewer windows."
    )


def compared_lines(
    compare: str, config: Config, batch: int, sizes: dict[str, int]
) -> Iterator[str]:
    """What the end of a run says of its rows and schedule."""
    step, epoch = read_end(compare)
    optim = config.optim
    yield f"{compare}: {step:,} steps to epoch {epoch:.2f}, {step / epoch:,.1f} an epoch"
    found = False
    for name, rows in sizes.items():
        of = schedule(rows, batch, optim.epochs, optim.warmup_fraction)
        fault = packing_fault(step, epoch, rows, batch, optim.epochs, optim.warmup_fraction)
        if isinstance(config, SFTConfig) and fault is not None:
            found = True
            yield f"  {fault}."
        elif round(of.epoch_at(step), 2) == round(epoch, 2):
            found = True
            at = of.epoch_at(step)
            yield f"  {rows:,} rows at batch {batch} ({name}) have epoch {at:.3f} there"
    if not found:
        yield (
            f"  no release of the set has this epoch there at batch {batch}: it had other rows, "
            "or another batch"
        )
