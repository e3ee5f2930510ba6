"""Before step 0, the run's own rows, model and machine are checked.

`check_inputs` checks what needs no forward pass, before the reference log-probs are computed;
`check_model` checks the model's forward and backward. What they find goes to `preflight.json` and
to the log.

P: examples of a micro-batch. T: scored tokens. R: responses.
"""

import math
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from zephyr.chat import EncodedPair, EncodedText
from zephyr.config import QUIRK, BadInput, Data, DPOConfig, SFTConfig, config_quirks
from zephyr.model import adapter as adapters
from zephyr.model.memory import step_memory, step_peak
from zephyr.packing import PackedBatch
from zephyr.training.engine import Engine
from zephyr.training.folder import json_bytes
from zephyr.training.loop import Split, Stats, total
from zephyr.training.optimizers import MOMENTS
from zephyr.training.tolerance import (
    GRADIENT_TOLERANCE,
    RESPONSE_TOLERANCE,
    TOKEN_TOLERANCE,
    clamp_tolerance,
    response_tolerance_nats,
)

ROWS_READ, ROWS_PACKED = 1000, 6  # examples whose ids are checked; examples in a packed row
Finding = dict[str, float | int]
Checks = dict[str, Callable[[], Finding]]
Examples = Sequence[EncodedPair] | Sequence[EncodedText]


def check_inputs(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    examples: Examples,
    split: Split,
    reports: Mapping[str, Mapping[str, object]],
    special_ids: tuple[int | None, int],
) -> dict[str, Finding]:
    """Check rows, plan and machine. A collective.

    Args: split: its objective need not be known yet. reports: of loading the data, by split.
    special_ids: of BOS (None: the tokenizer has none) and EOS.
    Returns: what was found, by check; empty where run.preflight is off.
    Raises: BadInput naming what is wrong and where, what was found and what is expected.
    """

    def check_ids() -> Finding:
        sample = sample_indices(examples)
        return require_ids(sample, examples, special_ids, config.data)

    return run_checks(
        config,
        {
            "weights": lambda: require_weights(engine, config.model),
            "labels": lambda: engine.on_all_ranks(lambda: require_polarity(reports)),
            "ids": lambda: engine.on_rank0(check_ids),
            "plan": lambda: engine.on_all_ranks(lambda: require_counts(split, engine.data_rank)),
            "disk": lambda: engine.on_rank0(lambda: require_disk(engine, config)),
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
    """Check forward and backward with the starting weights. A collective; no weight changes.

    All that was found is logged and written to `preflight.json` by `write_file`. Nothing is done
    where run.preflight is off.
    Args: found: by `check_inputs`. unpacked: one example by itself, without a shared prompt.
    Raises: as `check_inputs`.
    """
    if not config.run.preflight:
        return
    budget_tokens = config.hardware.tokens_per_micro_batch
    short, long = rows_to_pack(sample_indices(examples), split.tokens, budget_tokens)
    rows = [split.collate(indices) for indices in (short, long)]
    dtype = config.hardware.dtype

    def check_packing() -> Finding:
        differences = [
            packed_difference(engine, row, [unpacked(i) for i in row.indices]) for row in rows
        ]
        return require_packed(dtype, differences)

    def check_gradient() -> Finding:
        complaint = "gradients are not added up over ranks: their norm changes"
        difference = gradient_difference(engine, rows[0])
        return require_below(GRADIENT_TOLERANCE[dtype], complaint, difference)

    of_model = run_checks(
        config,
        {
            "packed": check_packing,
            "start": lambda: initial_difference(engine, config, split, rows),
            "gradient": check_gradient,
        },
    )
    found = {**found, **of_model}
    if on := config_quirks(config):
        found["quirks"] = dict.fromkeys(on, 1)
    pairs = isinstance(config, DPOConfig)
    engine.log(describe_findings(found, pairs, split.starts_at_reference))
    write_file("preflight.json", json_bytes(found))


def run_checks(config: DPOConfig | SFTConfig, checks: Checks) -> dict[str, Finding]:
    """What each check found, by name; empty where run.preflight is off.

    Raises: the BadInput of a check, with how to train without preflight.
    """
    if not config.run.preflight:
        return {}
    try:
        return {name: check() for name, check in checks.items()}
    except BadInput as error:
        raise BadInput(f"preflight: {error}; run.preflight=false trains without checks") from None


def describe_findings(found: Mapping[str, Finding], pairs: bool, at_reference: bool) -> str:
    """All findings as lines for the log, in human units.

    Args: pairs: DPO; False: SFT. at_reference: whether the policy starts as its own reference.
    """
    plan, disk, memory, packed = (found[name] for name in ("plan", "disk", "memory", "packed"))
    scored, loss = found["labels"]["scored"], found["start"]["loss"]
    lines = [
        "preflight passed:",
        "weights: all are finite",
        f"ids: BOS, EOS and responses of {found['ids']['examples']:,} examples are right",
        f"plan: the first step's micro-batches hold what is planned; the longest example has "
        f"{plan['longest_tokens']:,} tokens",
        f"disk: {format_bytes(disk['wanted_bytes'])} needed, "
        f"{format_bytes(disk['free_bytes'])} free",
        f"memory: {format_bytes(memory['predicted_bytes'])} predicted for the first step, beside "
        f"the weights held already; {format_bytes(memory['free_bytes'])} free",
        f"packed: a token's log-prob differs from the unpacked one by {packed['difference']:.1e} "
        f"of its size at most; rounding makes {packed['noise']:.1e} on average",
        f"gradient: summed over ranks; its norm is off by {found['gradient']['difference']:.2g}",
    ]
    if pairs:
        scores = f"{scored:,} pairs have scores" if scored else "no pair has scores"
        lines.append(f"labels: no chosen response has a lower score ({scores})")
    if at_reference:
        share = found["start"]["difference"]
        lines.append(
            f"start: policy and reference agree, within {share:.0%} of what rounding may make; "
            f"the loss is {loss:.4f}"
        )
    else:
        lines.append(f"start: the loss is {loss:.4f} nats a {'pair' if pairs else 'target token'}")
    if on := found.get("quirks"):
        lines.append(f"quirks: {', '.join(on)}: {QUIRK}")
    return "\n  ".join(lines)


def format_bytes(count: float) -> str:
    """A count of bytes in the largest unit of which there is at least one."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,} bytes"


def sample_indices(examples: Examples) -> list[int]:
    """At most ROWS_READ examples, the same on every rank."""
    return random.Random(0).sample(range(len(examples)), min(ROWS_READ, len(examples)))


def rows_to_pack(
    sample: Sequence[int], tokens: Sequence[int], budget_tokens: int
) -> tuple[list[int], list[int]]:
    """Two micro-batches of examples.

    The first holds the shortest examples of the sample; the second the longest of all examples,
    between shortest ones.
    """
    ascending = sorted(sample, key=lambda i: tokens[i])
    longest = max(range(len(tokens)), key=lambda i: tokens[i])

    def shortest_beside(first: list[int]) -> list[int]:
        free_tokens = budget_tokens - sum(tokens[i] for i in first)
        few = [i for i in ascending if i not in first][: ROWS_PACKED - len(first)]
        while sum(tokens[i] for i in few) > free_tokens:
            few.pop()
        return few

    beside = shortest_beside([longest])
    return shortest_beside([]), [*beside[:1], longest, *beside[1:]]


def require_weights(engine: Engine, model: str) -> Finding:
    """Check that every weight is finite. A collective.

    Raises: BadInput naming the parameters that are not.
    """
    names = engine.non_finite_parameters()
    if names:
        raise BadInput(
            f"model {model}: {len(names)} of its parameters hold values that are not finite: "
            f"{', '.join(names[:5])}; wanted the weights as they were published, or saved before "
            "they diverged"
        )
    return {}


def require_polarity(reports: Mapping[str, Mapping[str, object]]) -> Finding:
    """Check that no chosen answer is rated below its rejected one, in `train` and in `eval`.

    Args: reports: of loading the data, by split.
    Raises: BadInput naming the split, the number of such pairs and the first.
    """
    scored_pairs = 0
    for split, report in reports.items():
        inverted, scored = report["inverted"], report["scored"]
        assert isinstance(inverted, (list, tuple)) and isinstance(scored, int)
        if inverted:
            raise BadInput(
                f"data.{split}: the chosen answer is rated below the rejected one in "
                f"{len(inverted)} of {scored} pairs with scores, the first at {inverted[0]}; "
                "chosen >= rejected is wanted"
            )
        scored_pairs += scored
    return {"scored": scored_pairs}


def require_ids(
    sample: Sequence[int],
    examples: Examples,
    special_ids: tuple[int | None, int],
    data: Data,
) -> Finding:
    """Check the token ids of some examples.

    An example starts with BOS once, if the tokenizer has one. Each answer that was not truncated
    ends with EOS, and EOS is a target. The answers of a pair differ.
    Raises: BadInput naming the example.
    """
    for index in sample:
        example = examples[index]
        if isinstance(example, EncodedPair):
            complaints = pair_complaints(example, special_ids, data)
        else:
            complaints = text_complaints(example, special_ids, data.max_tokens)
        for complaint, holds in complaints.items():
            if holds:
                raise BadInput(f"example {index} ({example.id}) {complaint}")
    return {"examples": len(sample)}


def pair_complaints(
    pair: EncodedPair, special_ids: tuple[int | None, int], data: Data
) -> dict[str, bool]:
    """What may be wrong with a pair, and whether it is."""
    bos, eos = special_ids
    answers = [pair.chosen_ids, pair.rejected_ids]
    as_trl = data.truncation == "trl_0.7"
    # The shortest that a cut answer may be.
    least = data.max_tokens - (data.max_prompt_tokens if as_trl else len(pair.prompt_ids))
    cut_off = [answer[-1:] != [eos] and len(answer) < least for answer in answers]
    loses_bos = as_trl and len(pair.prompt_ids) == data.max_prompt_tokens
    return {
        "is empty": not pair.prompt_ids or not all(answers),
        **bos_complaints(pair.prompt_ids, None if loses_bos else bos),
        "has an answer without EOS that was not cut": any(cut_off),
        "has two equal answers": pair.chosen_ids == pair.rejected_ids,
    }


def text_complaints(
    text: EncodedText, special_ids: tuple[int | None, int], max_tokens: int
) -> dict[str, bool]:
    """What may be wrong with a text, and whether it is."""
    _, eos = special_ids
    trains_eos = (eos, True) in zip(text.ids, text.is_target)
    return {
        "is empty": not text.ids,
        **bos_complaints(text.ids, special_ids[0]),
        "trains no EOS": len(text.ids) < max_tokens and not trains_eos,
    }


def bos_complaints(ids: Sequence[int], bos: int | None) -> dict[str, bool]:
    """What may be wrong with BOS at the start of an example, and whether it is."""
    return {
        f"starts with id {ids[:1]}, not BOS {bos}": bos is not None and ids[:1] != [bos],
        "starts with BOS more than once": bos is not None and ids[:2] == [bos, bos],
    }


def require_counts(split: Split, rank: int) -> Finding:
    """Check that the micro-batches of this rank's first step hold what the plan counts.

    Raises: BadInput with the tokens, targets and units found, and those of the plan.
    """
    targets = split.units
    if split.ledger:
        both = zip(split.ledger["chosen_tokens"], split.ledger["rejected_tokens"])
        targets = [chosen + rejected for chosen, rejected in both]
    micro_batches = [indices for indices in split.plan.steps[0].ranks[rank] if indices]
    for indices in micro_batches:
        batch = split.collate(indices)
        found = {
            "tokens": len(batch.tokens_N),
            "targets": len(batch.targets_T),
            "targets of responses": int(batch.response_tokens_R.sum()),
            "units": batch.units,
        }
        planned = {
            "tokens": total(split.tokens, indices),
            "targets": total(targets, indices),
            "targets of responses": total(targets, indices),
            "units": total(split.units, indices),
        }
        for name, count in found.items():
            if count != planned[name]:
                raise BadInput(
                    f"a micro-batch of examples {indices} holds {count} {name}; {planned[name]} is "
                    "what the plan counts"
                )
    return {"micro_batches": len(micro_batches), "longest_tokens": max(split.tokens)}


def require_disk(engine: Engine, config: DPOConfig | SFTConfig) -> Finding:
    """Check that the disk has space for the checkpoints and the export.

    These are `run.keep` checkpoints and the one being written, less those that are there already.
    Raises: BadInput with the space that is free and needed.
    """
    run = config.run
    state = 4 * (1 + len(MOMENTS[config.optim.optimizer]))  # bytes a parameter: weights, moments
    folder = Path(run.dir) / "checkpoints"
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    exported = sum(tensor.bytes for tensor in adapters.exported(cast(nn.Module, engine.policy.lm)))
    wanted = (run.keep + 1) * state * engine.num_trained_parameters + exported - held
    free = shutil.disk_usage(run.dir).free
    if free < wanted:
        raise BadInput(
            f"run.dir: {run.dir} has {format_bytes(free)} free; {format_bytes(wanted)} are wanted "
            f"for run.keep + 1 = {run.keep + 1} checkpoints of {state} bytes a trained parameter, "
            "and the exported model"
        )
    return {"wanted_bytes": wanted, "free_bytes": free}


def require_memory(engine: Engine, config: DPOConfig | SFTConfig, split: Split) -> Finding:
    """Check that memory has space for gradients and Adam's moments, which the first step makes.

    Where the whole step is predicted to need more than is free, a warning is logged. The prediction
    is what the step adds to the weights that the rank holds already (`step_memory`); the peak that
    `--dry-run` predicts is of all that the rank holds.
    Raises: BadInput with the memory that is free and needed.
    """
    fullest_tokens = max(
        total(split.tokens, indices)
        for step in split.plan.steps
        for rank in step.ranks
        for indices in rank
    )
    zero = engine.settings["zero_optimization"]
    assert isinstance(zero, dict)  # `read_deepspeed` refuses others
    parts = step_memory(
        engine.policy.lm.config,
        engine.num_parameters,
        ranks=engine.world_size,
        tokens=fullest_tokens,
        hardware=config.hardware,
        zero=zero,
        device=engine.device.type,
        gradient_dtype=engine.gradient_dtype,
        adapters=engine.num_adapter_parameters,
        adapters_keep=kept_by_adapters(engine, config),
        moments=len(MOMENTS[config.optim.optimizer]),
    )
    free, wanted = engine.free_memory_bytes(), step_peak(parts)
    states = parts["moments"] + parts["update"]
    if states > free:
        raise BadInput(
            f"rank {engine.rank} has {format_bytes(free)} of memory free; "
            f"{format_bytes(states)} are wanted for gradients and moments: use more "
            f"ranks than {engine.world_size}, or offload_optimizer in {config.hardware.deepspeed}"
        )
    if wanted > free:
        of_parts = ", ".join(f"{name} {format_bytes(count)}" for name, count in parts.items())
        engine.warn(
            f"preflight: {format_bytes(free)} of memory are free, {format_bytes(wanted)} are "
            f"predicted for the first step, beside the weights held already ({of_parts}): it may "
            "not suffice"
        )
    return {"predicted_bytes": wanted, "free_bytes": free}


def kept_by_adapters(engine: Engine, config: DPOConfig | SFTConfig) -> int:
    """Numbers that adapters keep for the backward of a token."""
    if config.adapter is None:
        return 0
    layers = adapters.adapted_layers(cast(nn.Module, engine.policy.lm)).values()
    outputs = [layer.out_features for layer in layers]
    return adapters.kept_numbers(
        outputs, config.adapter.r, config.hardware.activation_checkpointing
    )


def require_below(tolerance: float, complaint: str, difference: float) -> Finding:
    """Check a relative difference.

    Raises: BadInput with the complaint where it is above the tolerance, or not finite.
    """
    if not difference <= tolerance:
        raise BadInput(
            f"{complaint} by {difference:.1e} of their size; at most {tolerance:.3g} is wanted"
        )
    return {"difference": difference}


class LogprobDifference(NamedTuple):
    """How much a packed row's log-probs differ from unpacked ones, relative to 1 + their size."""

    token: float  # the largest difference of a token
    response: float  # the largest root mean square over a response's tokens
    example: int  # with that token
    noise: float  # the root mean square, over all tokens, of what rounding alone makes


@torch.no_grad()
def packed_difference(
    engine: Engine, row: PackedBatch, unpacked: Sequence[PackedBatch]
) -> LogprobDifference:
    """Compare each scored token's log-prob in a packed row and unpacked. A collective.

    The noise is the change of the unpacked log-probs when all positions are one higher, which
    changes only how they are rounded.
    Args: unpacked: the row's examples by themselves, in the row's order.
    """
    engine.train(False)
    of_row = logprobs_RT(engine, row)
    found: list[tuple[int, Tensor]] = []  # example, difference of each token of one response
    noise: list[Tensor] = []
    for place, (example, batch) in enumerate(zip(row.indices, unpacked)):
        alone = logprobs_RT(engine, batch)
        shifted = logprobs_RT(engine, replace(batch, positions_N=batch.positions_N + 1))
        # Responses lie side by side in a row: all chosen ones, then all rejected ones.
        packed = of_row[place :: len(unpacked)]
        for packed_T, shifted_T, alone_T in zip(packed, shifted, alone):
            found.append((example, relative_difference_T(packed_T, alone_T)))
            noise.append(relative_difference_T(shifted_T, alone_T))
    engine.train()
    largest = [
        (float(of_T.max()) if of_T.isfinite().all() else math.inf, example)
        for example, of_T in found
    ]
    token, example = max(largest)
    response = max(rms(of_T) for _, of_T in found)
    return LogprobDifference(token, response, example, rms(torch.cat(noise)))


def logprobs_RT(engine: Engine, batch: PackedBatch) -> list[Tensor]:
    """Log-probs of each response's tokens, float64 [T] each."""
    logp_T = engine(engine.place(batch)).double()
    return list(torch.split(logp_T, batch.response_tokens_R.tolist()))


def relative_difference_T(other_T: Tensor, alone_T: Tensor) -> Tensor:
    """Differences relative to 1 + the size of the log-probs."""
    return (other_T - alone_T).abs() / (1 + alone_T.abs())


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.square().mean().sqrt())


def require_packed(dtype: str, rows: Sequence[LogprobDifference]) -> Finding:
    """Check that packing changes log-probs by no more than rounding does.

    The tolerance is 8 times the noise for a token and 3 times the noise for a response's root mean
    square, within the limits of the dtype.
    Raises: BadInput.
    """
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
    """Compare the log-probs of policy and reference with the starting weights.

    Returns: the largest difference as a share of `response_tolerance_nats` (0 where the policy does
    not start as a reference), and the first row's mean loss.
    Raises: BadInput where that share is over 1.
    """
    shares, losses = [0.0], []
    for row in rows:
        loss_sum, stats = split.run_objective(engine, engine.place(row))
        losses.append(float(loss_sum) / total(split.weights, row.indices))
        if isinstance(config, DPOConfig) and split.starts_at_reference:
            shares += reference_differences(config, split, row, stats)
    worst = max(shares, key=lambda share: share if math.isfinite(share) else math.inf)
    if not worst <= 1:
        where = config.reference.dir if isinstance(config, DPOConfig) else ""
        raise BadInput(
            f"policy and reference differ at step 0 by {worst:.3g} times what rounding may make of "
            "it: the reference store holds other values than the model's; "
            f"delete it from {where}"
        )
    return {"difference": worst, "loss": losses[0]}


def reference_differences(
    config: DPOConfig, split: Split, row: PackedBatch, stats: Stats
) -> list[float]:
    """Of each response of a row, |log p - reference| as a share of `response_tolerance_nats`."""
    assert split.ledger is not None
    shares = []
    for side in ("chosen", "rejected"):
        nats_P = (stats[f"rewards/{side}"].abs() / config.beta).tolist()
        tokens = [split.ledger[f"{side}_tokens"][i] for i in row.indices]
        for nats, count in zip(nats_P, tokens):
            shares.append(nats / response_tolerance_nats(config.hardware.dtype, count))
    return shares


def gradient_difference(engine: Engine, row: PackedBatch) -> float:
    """Check that gradients are summed over ranks. A collective.

    The same loss is brought twice: in equal parts by all ranks, each of which computes the whole
    row, then all of it by rank 0, or by the ranks that compute a row together with it. A row that a
    rank may not hold alone is computed together both times.
    Returns: the relative change of the gradient's norm, which is 0 where gradients are summed,
    wherever they are kept.
    """

    def norm(batch: PackedBatch, part: float) -> float:
        engine.backward(engine(batch).sum() * part / len(row.targets_T), last=True)
        return engine.discard_gradient()

    together = engine.world_size // engine.data_world_size
    if len(row.tokens_N) * together <= engine.hardware.tokens_per_micro_batch:
        equal = norm(row.to(engine.device), 1 / engine.world_size)
    else:
        equal = norm(engine.place(row), 1 / engine.data_world_size)
    if not math.isfinite(equal):
        return equal
    return abs(norm(engine.place(row), float(engine.data_rank == 0)) - equal) / equal
