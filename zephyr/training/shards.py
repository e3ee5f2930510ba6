"""The ZeRO-3 optimiser's state becomes safetensors, each rank its own shard, and comes back for any
number of ranks.

Every parameter has three float32 vectors: master weights and both moments of Adam. A rank holds the
same range of all three; files say which, so that another number of ranks reads the ranges that it
needs. No pickle is written or read."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zephyr.config import BadInput

FILE_BYTES = 2 * 2**30
VECTORS = ("master", "exp_avg", "exp_avg_sq")


class Shard(NamedTuple):
    """A rank's range of one vector of one parameter, live."""

    name: str  # parameter.vector
    values: Tensor  # float32, without the padding of the last rank
    start: int  # of the range in the flattened parameter
    numel: int  # elements of the parameter


def live_shards(
    zero: object, names: Mapping[nn.Parameter, str], rank: int, adam_step: int
) -> Iterator[Shard]:
    """This rank's shards of DeepSpeed's ZeRO-3 optimiser; Adam's state is made, as of `adam_step`,
    where no step made it yet."""
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat):
        state = zero.optimizer.state[flat]
        if "exp_avg" not in state:
            state.update(
                step=torch.tensor(float(adam_step), device=flat.device),
                exp_avg=torch.zeros_like(flat),
                exp_avg_sq=torch.zeros_like(flat),
            )
        offset = 0
        for parameter in parameters:
            size = parameter.partition_numel()
            start = rank * size
            real = max(0, min(size, parameter.ds_numel - start))
            for vector in VECTORS:
                values = flat.detach() if vector == "master" else state[vector]
                yield Shard(
                    f"{names[parameter]}.{vector}",
                    values[offset : offset + real],
                    start,
                    parameter.ds_numel,
                )
            offset += size


def update_and_weight_sq_norms(zero: object, lr: float) -> Tensor:
    """Sums of squares over this rank's weights, float64 [2]: of the update that AdamW has just made
    at rate `lr`, read from its moments, and of the weights. A few elements at a time, which stay in
    a GPU's cache: no copy of the weights is ever made."""
    norms: list[Tensor] = []
    for index, flat in enumerate(zero.fp32_partitioned_groups_flat):
        state, group = (
            zero.optimizer.state[flat],
            zero.optimizer.param_groups[zero.sub_group_to_group_id[index]],
        )
        if "step" not in state:  # the first update was refused
            return flat.new_zeros(2, dtype=torch.float64)
        unbias, unbias_sq = (1 - beta ** state["step"].to(flat.device) for beta in group["betas"])
        for weight, mean, square in zip(
            *(t.detach().split(2**23) for t in (flat, state["exp_avg"], state["exp_avg_sq"]))
        ):
            update = square.sqrt().add_(group["eps"] * unbias_sq.sqrt())
            torch.div(mean, update, out=update).mul_(lr * unbias_sq.sqrt() / unbias)
            if group["weight_decay"]:
                update.add_(weight, alpha=lr * group["weight_decay"])
            norms += [update.norm(), weight.norm()]
    return torch.stack(norms).double().square_().view(-1, 2).sum(0)


def save_shards(shards: Iterator[Shard], folder: Path, rank: int) -> None:
    """Write a rank's shards to `rank-R-K.safetensors`, at most FILE_BYTES (or one shard) in memory
    at a time."""
    part: dict[str, Tensor] = {}
    ranges: dict[str, list[int]] = {}
    number = 0

    def flush() -> None:
        nonlocal number
        try:
            save_file(
                part,
                folder / f"rank-{rank}-{number}.safetensors",
                metadata={"ranges": json.dumps(ranges)},
            )
        except SafetensorError as error:  # how a full disk is told
            raise OSError(str(error)) from None
        part.clear()
        ranges.clear()
        number += 1

    for shard in shards:
        if part and sum(t.nbytes for t in part.values()) + shard.values.nbytes > FILE_BYTES:
            flush()
        part[shard.name], ranges[shard.name] = (
            shard.values.cpu().clone(),
            [shard.start, shard.numel],
        )
    flush()


def load_shards(shards: Iterator[Shard], folder: Path) -> None:
    """Fill live shards from the files of all ranks that wrote. Raises: BadInput where a vector is
    missing or another size."""
    with ExitStack() as stack:
        held: dict[str, list[tuple[int, int, object]]] = {}  # name -> start, whole, slice reader
        for path in sorted(folder.glob("rank-*.safetensors")):
            file = stack.enter_context(safe_open(path, framework="pt"))
            for name, (start, whole) in json.loads(file.metadata()["ranges"]).items():
                held.setdefault(name, []).append((start, whole, file.get_slice(name)))
        for shard in shards:
            end, filled = shard.start + len(shard.values), 0
            for start, whole, values in held.get(shard.name, []):
                if whole != shard.numel:
                    raise BadInput(
                        f"checkpoint {folder}: {shard.name} has {whole} elements, this model's has {shard.numel}"
                    )
                a, b = max(start, shard.start), min(start + values.get_shape()[0], end)
                if a < b:
                    shard.values[a - shard.start : b - shard.start].copy_(
                        values[a - start : b - start]
                    )
                    filled += b - a
            if filled != len(shard.values):
                raise BadInput(
                    f"checkpoint {folder}: {shard.name} has {filled} of {len(shard.values)} elements wanted here"
                )


def refresh_parameters(zero: object) -> None:
    """Copy master weights into the model's own partitions, and gather again those small ones that
    every rank keeps whole."""
    zero._partition_all_parameters()
    for group in range(len(zero.fp16_groups)):
        zero._reassign_or_swap_out_partitioned_parameters(group)
    if zero.persistent_parameters:
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)
