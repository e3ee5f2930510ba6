"""The ZeRO-3 optimizer's state becomes safetensors, and is loaded again on any number of ranks.

Every parameter has float32 vectors: master weights, and the optimizer's state (both moments of
AdamW, one of RMSprop). A rank holds and writes the same range of each. The files record these
ranges, so that another number of ranks can read the ranges that it needs. No pickle is written or
read.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zephyr.config import BadInput
from zephyr.training.deepspeed_types import ZeroOptimizer, ZeroParameter
from zephyr.training.optimizers import (
    CHUNK_ELEMENTS,
    UPDATE_SQ_NORM,
    moments_of,
    new_state,
    sum_of_squares,
)

FILE_BYTES = 2 * 2**30  # of a file, at most


class Shard(NamedTuple):
    """A rank's range of one vector of one parameter, live."""

    name: str  # parameter.vector
    values: Tensor  # float32, without the padding of the last rank
    start: int  # of the range in the flattened parameter
    numel: int  # elements of the parameter


class SafetensorSlice(Protocol):
    """What `safe_open(...).get_slice` returns: a tensor in a file, read range by range."""

    def get_shape(self) -> list[int]: ...
    def __getitem__(self, elements: slice) -> Tensor: ...


class HeldSlice(NamedTuple):
    """A range of one vector in a file."""

    start: int
    numel: int  # elements of the parameter
    values: SafetensorSlice


def live_shards(
    zero: ZeroOptimizer, names: Mapping[ZeroParameter, str], rank: int, steps: int
) -> Iterator[Shard]:
    """This rank's shards of DeepSpeed's ZeRO-3 optimizer.

    Where no step has made the optimizer's state yet, it is made here, as of `steps` updates.
    """
    moments = moments_of(zero.optimizer)
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat):
        state = zero.optimizer.state[flat]
        if moments[0] not in state:
            state.update(new_state(zero.optimizer, flat.detach(), steps))
        offset = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            start = rank * size
            real = max(0, min(size, parameter.ds_numel - start))
            for vector in ("master", *moments):
                values = flat.detach() if vector == "master" else state[vector]
                own = values[offset : offset + real]
                yield Shard(f"{names[parameter]}.{vector}", own, start, parameter.ds_numel)
            offset += size


def update_and_weight_sq_norms(zero: ZeroOptimizer, lr: float) -> Tensor:
    """Sums of squares over this rank's part, float64 [2]: of the last update and the weights.

    AdamW's update is computed again from the moments, some elements at a time, so that no copy of
    the weights is ever made; RMSprop's was kept (`optimizers.keep_update_sq_norm`).
    Args: lr: the rate of the update.
    """
    if isinstance(zero.optimizer, torch.optim.RMSprop):
        return rmsprop_sq_norms(zero)
    norms: list[Tensor] = []
    for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
        state = zero.optimizer.state[flat]
        group = zero.optimizer.param_groups[zero.sub_group_to_group_id[index]]
        if "step" not in state:  # the first update was refused
            return flat.new_zeros(2, dtype=torch.float64)
        steps = state["step"].to(flat.device)
        unbias, unbias_sq = (1 - beta**steps for beta in group["betas"])
        vectors = (flat, state["exp_avg"], state["exp_avg_sq"])
        chunks = (vector.detach().split(CHUNK_ELEMENTS) for vector in vectors)
        for weight, mean, square in zip(*chunks):
            update = square.sqrt().add_(group["eps"] * unbias_sq.sqrt())
            torch.div(mean, update, out=update).mul_(lr * unbias_sq.sqrt() / unbias)
            if group["weight_decay"]:
                update.add_(weight, alpha=lr * group["weight_decay"])
            norms += [update.norm(), weight.norm()]
    squares: Tensor = torch.stack(norms).double().square_().view(-1, 2).sum(0)
    return squares


def rmsprop_sq_norms(zero: ZeroOptimizer) -> Tensor:
    """`update_and_weight_sq_norms` of RMSprop."""
    squares = []
    for flat in zero.fp32_partitioned_groups_flat:
        nothing = flat.new_zeros((), dtype=torch.float64)  # the first update was refused
        norms = [chunk.norm() for chunk in flat.detach().split(CHUNK_ELEMENTS)]
        update = zero.optimizer.state[flat].get(UPDATE_SQ_NORM, nothing)
        squares.append(torch.stack([update, sum_of_squares(norms)]))
    return torch.stack(squares).sum(0)


def save_shards(shards: Iterator[Shard], folder: Path, rank: int) -> None:
    """Write a rank's shards to files `rank-R-K.safetensors`.

    At most FILE_BYTES, or one shard, are copied to memory at a time. Raises: OSError.
    """
    part: dict[str, Tensor] = {}
    ranges: dict[str, list[int]] = {}
    number = 0

    def flush() -> None:
        nonlocal number
        path = folder / f"rank-{rank}-{number}.safetensors"
        try:
            save_file(part, path, metadata={"ranges": json.dumps(ranges)})
        except SafetensorError as error:  # also for a full disk
            raise OSError(str(error)) from None
        part.clear()
        ranges.clear()
        number += 1

    for shard in shards:
        if part and sum(t.nbytes for t in part.values()) + shard.values.nbytes > FILE_BYTES:
            flush()
        part[shard.name] = shard.values.cpu().clone()
        ranges[shard.name] = [shard.start, shard.numel]
    flush()


def load_shards(shards: Iterator[Shard], folder: Path) -> None:
    """Fill live shards from the files of all ranks that wrote the checkpoint.

    Raises: BadInput where a vector is missing or has another size.
    """
    with ExitStack() as stack:
        held: dict[str, list[HeldSlice]] = {}
        for path in sorted(folder.glob("rank-*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            for name, (start, numel) in json.loads(file.metadata()["ranges"]).items():
                found = HeldSlice(start, numel, file.get_slice(name))
                held.setdefault(name, []).append(found)
        for shard in shards:
            fill_shard(shard, held.get(shard.name, []), folder)


def fill_shard(shard: Shard, held: Sequence[HeldSlice], folder: Path) -> None:
    """Copy the parts of `held` that overlap with the shard.

    Raises: BadInput where they are of another parameter size, or do not cover the shard.
    """
    end, filled = shard.start + len(shard.values), 0
    for start, numel, values in held:
        if numel != shard.numel:
            raise BadInput(
                f"checkpoint {folder}: {shard.name} has {numel} elements, "
                f"this model's has {shard.numel}"
            )
        a, b = max(start, shard.start), min(start + values.get_shape()[0], end)
        if a < b:
            source = values[a - start : b - start]
            shard.values[a - shard.start : b - shard.start].copy_(source)
            filled += b - a
    if filled != len(shard.values):
        raise BadInput(
            f"checkpoint {folder}: {shard.name} has {filled} of the {len(shard.values)} elements "
            "that this rank needs"
        )


def refresh_parameters(zero: ZeroOptimizer) -> None:
    """Copy master weights into the model's partitions.

    Small parameters, which every rank keeps whole, are gathered again.
    """
    zero._partition_all_parameters()
    forget_second_copies(parameter for group in zero.fp16_groups for parameter in group)
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def forget_second_copies(parameters: Iterable[ZeroParameter]) -> None:
    """Drop the copies that hierarchical partitioning keeps of older values.

    DeepSpeed drops them after an update only, and would gather them after any other change.
    """
    for parameter in parameters:
        parameter.ds_secondary_tensor = None
