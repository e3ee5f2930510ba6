"""Before step 0, a sample of the user's own rows, model and machine shows that what is about to be
trained is what was meant.

`check_inputs` checks what needs no forward pass, before the reference's is paid for; `check_model`
what needs one.

P examples, T scored tokens, R responses."""

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import BadInput, DPOConfig, Run, SFTConfig
from zephyr.model.memory import step_memory
from zephyr.packing import PackedBatch
from zephyr.training.engine import Engine
from zephyr.training.folder import json_bytes
from zephyr.training.loop import Split, total
from zephyr.training.tolerance import (
    GRADIENT_TOLERANCE,
    RESPONSE_TOLERANCE,
    TOKEN_TOLERANCE,
    clamp_tolerance,
    response_tolerance_nats,
)

ROWS_READ, ROWS_PACKED = 1000, 6
Finding = dict[str, float | int]
Checks = dict[str, Callable[[], Finding]]
Examples = Sequence[EncodedPair] | Sequence[EncodedText]


def check_inputs(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    examples: Examples,
    split: Split,
    reports: Mapping[str, Mapping[str, object]],
    special: tuple[int | None, int],
) -> dict[str, Finding]:
    """What is found of rows, plan and machine; nothing where run.preflight is off.

    Args: split: its objective need not be known. reports: of the load, by split. special:
    ids of BOS (None: the tokenizer has none) and EOS. Raises: BadInput naming what is wrong and
    where, what was found and wanted. A collective."""
    return run_checks(
        config,
        {
            "weights": lambda: require_weights(engine, config.model),
            "labels": lambda: engine.on_all_ranks(lambda: require_polarity(reports)),
            "ids": lambda: engine.on_rank0(
                lambda: require_ids(
                    sample_indices(examples), examples, special, config.data.max_tokens
                )
            ),
            "plan": lambda: engine.on_all_ranks(lambda: require_counts(split, engine.rank)),
            "disk": lambda: engine.on_rank0(lambda: require_disk(engine, config.run)),
            "memory": lambda: engine.on_all_ranks(lambda: require_memory(engine, config, split)),
        },
    )


def check_model(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    examples: Examples,
    split: Split,
    found: Mapping[str, Finding],
    unpacked: Callable[[int], PackedBatch],
    write_file: Callable[[str, bytes], None],
) -> None:
    """Check the model's forward and backward at the starting weights, unless run.preflight is off;
    all that was found goes to the log and, by `write_file`, to `preflight.json`.

    Args: found: by `check_inputs`. unpacked: one example without neighbours or a shared prompt.
    Raises: as `check_inputs`. A collective; nothing is updated."""
    if not config.run.preflight:
        return
    short, long = rows_to_pack(
        sample_indices(examples), split.tokens, config.hardware.tokens_per_micro_batch
    )
    rows = [split.collate(indices).to(engine.device) for indices in (short, long)]
    dtype = config.hardware.dtype
    found = {
        **found,
        **run_checks(
            config,
            {
                "packed": lambda: require_packed(
                    dtype,
                    [
                        packed_difference(engine, row, list(map(unpacked, row.indices)))
                        for row in rows
                    ],
                ),
                "start": lambda: initial_difference(engine, config, split, rows),
                "gradient": lambda: require_below(
                    GRADIENT_TOLERANCE[dtype],
                    "gradients are not added up over ranks: their norm changes",
                    gradient_difference(engine, rows[0]),
                ),
            },
        ),
    }
    engine.log(
        "preflight: "
        + "; ".join(
            f"{name} "
            + ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in of.items()
            )
            for name, of in found.items()
            if of
        )
    )
    write_file("preflight.json", json_bytes(found))


def run_checks(config: DPOConfig | SFTConfig, checks: Checks) -> dict[str, Finding]:
    if not config.run.preflight:
        return {}
    try:
        return {name: check() for name, check in checks.items()}
    except BadInput as error:
        raise BadInput(f"preflight: {error}; run.preflight=false trains all the same") from None


def sample_indices(examples: Examples) -> list[int]:
    return random.Random(0).sample(range(len(examples)), min(ROWS_READ, len(examples)))


def rows_to_pack(
    sample: Sequence[int], tokens: Sequence[int], budget_tokens: int
) -> tuple[list[int], list[int]]:
    """Two micro-batches: the shortest of the sample, and the longest of all examples, the second,
    between shortest ones."""
    ascending = sorted(sample, key=lambda i: tokens[i])
    longest = max(range(len(tokens)), key=lambda i: tokens[i])

    def fitting(first: list[int]) -> list[int]:
        room = budget_tokens - sum(tokens[i] for i in first)
        few = [i for i in ascending if i not in first][: ROWS_PACKED - len(first)]
        while sum(tokens[i] for i in few) > room:
            few.pop()
        return few

    beside = fitting([longest])
    return fitting([]), [*beside[:1], longest, *beside[1:]]


def require_weights(engine: Engine, model: str) -> Finding:
    """Every weight is a finite number. Raises: BadInput naming the parameters that hold others. A
    collective."""
    if names := engine.non_finite_parameters():
        raise BadInput(
            f"model {model}: {len(names)} of its parameters hold values that are not finite: {', '.join(names[:5])}; wanted "
            "the weights as they were published, or saved before they diverged"
        )
    return {}


def require_polarity(reports: Mapping[str, Mapping[str, object]]) -> Finding:
    """Where rows carry scores, the chosen answer has not the lower one, in `train` and in `eval`.
    Args: reports: of the load, by split."""
    for split, report in reports.items():
        if report["inverted"]:
            raise BadInput(
                f"data.{split}: the chosen answer is rated below the rejected one in {len(report['inverted'])} of "
                f"{report['scored']} pairs with scores, the first at {report['inverted'][0]}; chosen >= rejected is wanted"
            )
    return {"scored": sum(report["scored"] for report in reports.values())}


def require_ids(
    sample: Sequence[int],
    examples: Sequence[EncodedPair] | Sequence[EncodedText],
    special: tuple[int | None, int],
    max_tokens: int,
) -> Finding:
    """BOS in front where the tokenizer adds it, never twice; a trained EOS behind each answer that
    was not cut, two different answers."""
    bos, eos = special
    for index in sample:
        example = examples[index]
        pair = isinstance(example, EncodedPair)
        first = example.prompt_ids if pair else example.ids
        answers = [example.chosen_ids, example.rejected_ids] if pair else []
        complaints = {
            "is empty": not first or not all(answers),
            f"starts with id {first[:1]}, not BOS {bos}": bos is not None and first[:1] != [bos],
            "starts with BOS more than once": bos is not None and first[:2] == [bos, bos],
            "has an answer without EOS that was not cut": any(
                a[-1:] != [eos] and len(first) + len(a) < max_tokens for a in answers
            ),
            "trains no EOS": not pair
            and len(first) < max_tokens
            and (eos, True) not in zip(example.ids, example.is_target),
            "has two equal answers": pair and example.chosen_ids == example.rejected_ids,
        }
        for complaint, holds in complaints.items():
            if holds:
                raise BadInput(f"example {index} ({example.id}) {complaint}")
    return {"examples": len(sample)}


def require_counts(split: Split, rank: int) -> Finding:
    """The micro-batches of this rank's first step hold the tokens, targets and units that the plan
    counts."""
    targets = (
        [sum(of) for of in zip(split.ledger["chosen_tokens"], split.ledger["rejected_tokens"])]
        if split.ledger
        else split.units
    )
    micro_batches = [indices for indices in split.plan.steps[0].ranks[rank] if indices]
    for indices in micro_batches:
        batch = split.collate(indices)
        found = (
            len(batch.tokens_N),
            len(batch.targets_T),
            int(batch.response_tokens_R.sum()),
            batch.units,
        )
        wanted = (
            total(split.tokens, indices),
            *[total(targets, indices)] * 2,
            total(split.units, indices),
        )
        if found != wanted:
            raise BadInput(
                f"a micro-batch of examples {indices} holds {found} tokens, targets, targets of responses and units; {wanted} "
                "is what the plan counts"
            )
    return {"micro_batches": len(micro_batches), "longest_tokens": max(split.tokens)}


def require_disk(engine: Engine, run: Run) -> Finding:
    """Room for `run.keep` checkpoints, the one being written, and the export, beside what lies
    there already."""
    folder, sizes = Path(run.dir) / "checkpoints", engine.parameter_bytes()
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    wanted = (run.keep + 1) * 12 * engine.num_parameters + sum(size for _, size in sizes) - held
    free = shutil.disk_usage(run.dir).free
    if free < wanted:
        raise BadInput(
            f"run.dir: {run.dir} has {free:,} bytes free; {wanted:,} are wanted for run.keep + 1 = {run.keep + 1} "
            "checkpoints of 12 bytes a parameter, and the exported model"
        )
    return {"wanted_bytes": wanted, "free_bytes": free}


def require_memory(engine: Engine, config: DPOConfig | SFTConfig, split: Split) -> Finding:
    """Room for gradients and Adam's moments, which the first step makes; where the whole prediction
    has none, a line says so."""
    fullest = max(
        total(split.tokens, indices)
        for step in split.plan.steps
        for rank in step.ranks
        for indices in rank
    )
    parts = step_memory(
        engine.policy.lm.config,
        engine.num_parameters,
        ranks=engine.world_size,
        tokens=fullest,
        hardware=config.hardware,
        zero=engine.settings["zero_optimization"],
        device=engine.device.type,
    )
    free, wanted = engine.free_memory_bytes(), sum(parts.values())
    if parts["states"] > free:
        raise BadInput(
            f"rank {engine.rank} has {free:,} bytes of memory free; {parts['states']:,} are wanted for gradients and moments: more "
            f"ranks than {engine.world_size}, or offload_optimizer in {config.hardware.deepspeed}"
        )
    if wanted > free:
        engine.log(
            f"preflight: {free:,} bytes of memory are free, {wanted:,} predicted ({parts}): it may not suffice"
        )
    return {"predicted_bytes": wanted, "free_bytes": free}


def require_below(tolerance: float, complaint: str, difference: float, **more: float) -> Finding:
    """Raises: BadInput with the complaint where the difference is larger than the tolerance, or not
    finite."""
    if not difference <= tolerance:
        raise BadInput(
            f"{complaint} by {difference:.1e} of their size; at most {tolerance:.3g} is wanted"
        )
    return {"difference": difference, **more}


class LogprobDifference(NamedTuple):
    """How far a packed row's log-probs are from those of its examples alone, relative to 1 + their
    size."""

    token: float  # the largest difference of a token
    response: float  # the largest root mean square over a response's tokens
    example: int  # with that token
    noise: float  # the root mean square, over all, of what rounding alone makes


@torch.no_grad()
def packed_difference(
    engine: Engine, row: PackedBatch, unpacked: Sequence[PackedBatch]
) -> LogprobDifference:
    """Of every scored token, in the row and with its example by itself. A collective.

    The noise is that of the examples alone with all positions one higher, which changes nothing but
    how they are rounded."""
    engine.train(False)

    def logp_RT(batch: PackedBatch) -> list[Tensor]:
        return list(
            engine(batch.to(engine.device)).double().split(batch.response_tokens_R.tolist())
        )

    def apart_T(other_T: Tensor, alone_T: Tensor) -> Tensor:
        return (other_T - alone_T).abs() / (1 + alone_T.abs())

    of_row, found, noise = logp_RT(row), [], []
    for place, (example, batch) in enumerate(zip(row.indices, unpacked)):
        logp, shifted = logp_RT(batch), logp_RT(replace(batch, positions_N=batch.positions_N + 1))
        noise += map(apart_T, shifted, logp)
        found += [(example, of) for of in map(apart_T, of_row[place :: len(unpacked)], logp)]
    engine.train()
    token, example = max(
        (float(of.max()) if of.isfinite().all() else math.inf, example) for example, of in found
    )
    return LogprobDifference(token, max(rms(of) for _, of in found), example, rms(torch.cat(noise)))


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def require_packed(dtype: str, rows: Sequence[LogprobDifference]) -> Finding:
    """Raises: BadInput where a token, or a response's tokens together, are further apart than
    rounding takes them: 8 or 3 times its root mean square, within the limits of the dtype."""
    for row in rows:
        require_below(
            clamp_tolerance(TOKEN_TOLERANCE[dtype], 8 * row.noise),
            f"packing changes the log-prob of a token of example {row.example}",
            row.token,
        )
        require_below(
            clamp_tolerance(RESPONSE_TOLERANCE[dtype], 3 * row.noise),
            "packing changes the log-probs of a response's tokens",
            row.response,
        )
    return {
        "difference": max(row.token for row in rows),
        "response": max(row.response for row in rows),
        "noise": max(row.noise for row in rows),
    }


@torch.no_grad()
def initial_difference(
    engine: Engine, config: DPOConfig | SFTConfig, split: Split, rows: Sequence[PackedBatch]
) -> Finding:
    """How far the policy's log-probs are from the reference's, of what `response_tolerance_nats` allows (SFT:
    0), and the mean loss of the first row. Raises: BadInput where that is over 1."""
    apart, losses = [0.0], []
    for row in rows:
        loss, stats = split.objective(engine, row)
        losses.append(float(loss) / row.units)
        for side in ("chosen", "rejected") if stats else ():
            nats_P = (stats[f"rewards/{side}"].abs() / config.beta).tolist()
            tokens = [split.ledger[f"{side}_tokens"][i] for i in row.indices]
            apart += [
                nats / response_tolerance_nats(config.hardware.dtype, count)
                for nats, count in zip(nats_P, tokens)
            ]
    worst = max(apart, key=lambda of: of if math.isfinite(of) else math.inf)
    if not worst <= 1:
        raise BadInput(
            f"policy and reference differ at step 0 by {worst:.3g} times what rounding may make of it: the reference "
            f"store holds other values than the model's; delete it from {config.reference.dir}"
        )
    return {"difference": worst, "loss": losses[0]}


def gradient_difference(engine: Engine, row: PackedBatch) -> float:
    """Relative change of the gradient's norm when rank 0 alone brings the whole loss that all ranks
    brought in equal parts.

    It is 0 where gradients are really added up over ranks, wherever they are kept. A collective."""

    def norm(share: float) -> float:
        engine.backward(engine(row).sum() * share / len(row.targets_T), last=True)
        return engine.discard_gradient()

    equal = norm(1 / engine.world_size)
    return abs(norm(float(engine.rank == 0)) - equal) / equal if math.isfinite(equal) else equal
