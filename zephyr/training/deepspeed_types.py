"""The part of DeepSpeed's objects that this package relies on, as types: DeepSpeed has none."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from zephyr.packing import PackedBatch, SequenceGroup


class ZeroParameter(Protocol):
    """A parameter that ZeRO-3 partitioned."""

    ds_shape: torch.Size  # of the whole parameter
    ds_numel: int  # elements of the whole parameter
    ds_tensor: Tensor  # this rank's part, padded on the last rank
    ds_secondary_tensor: Tensor | None  # of hierarchical partitioning
    requires_grad: bool

    def element_size(self) -> int: ...
    def partition_numel(self) -> int: ...
    def detach(self) -> Tensor: ...


class LanguageModel(Protocol):
    """The decoder inside a policy, its parameters partitioned."""

    config: PreTrainedConfig

    def parameters(self) -> Iterator[ZeroParameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, ZeroParameter]]: ...
    def modules(self) -> Iterator[nn.Module]: ...


class Policy(Protocol):
    """`zephyr.model.policy.Policy`, its parameters partitioned."""

    lm: LanguageModel
    max_sequence_tokens: int | None
    quantize: str  # how its frozen matrices are kept: none or nf4
    sequence: SequenceGroup | None  # the ranks that compute a row together; None: each its own
    training: bool

    def parameters(self) -> Iterator[ZeroParameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, ZeroParameter]]: ...


class ZeroOptimizer(Protocol):
    """DeepSpeed's ZeRO-3 optimizer around one of torch."""

    optimizer: torch.optim.Optimizer
    param_groups: list[dict[str, object]]
    fp16_groups: Sequence[Sequence[ZeroParameter]]  # whatever their dtype
    fp32_partitioned_groups_flat: Sequence[Tensor]
    sub_group_to_group_id: Mapping[int, int]
    persistent_parameters: Sequence["PersistentParameter"]
    dp_process_group: torch.distributed.ProcessGroup

    def _partition_all_parameters(self) -> None: ...
    def _reassign_or_swap_out_partitioned_parameters(self, group: int) -> None: ...


class PersistentParameter(Protocol):
    """A small parameter that every rank keeps whole."""

    def all_gather(self, parameters: Sequence["PersistentParameter"]) -> object: ...


class DeepSpeedEngine(Protocol):
    """What `deepspeed.initialize` returns first."""

    module: Policy
    optimizer: ZeroOptimizer

    def __call__(self, batch: PackedBatch, *, collision: bool = ...) -> Tensor: ...
    def train(self, mode: bool) -> object: ...
    def backward(self, loss: Tensor) -> object: ...
    def step(self) -> object: ...
    def set_gradient_accumulation_boundary(self, last: bool) -> None: ...
    def get_global_grad_norm(self) -> float | Tensor: ...
