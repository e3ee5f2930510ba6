"""The backward of a layer computes activations again instead of keeping them (checkpointing).

| policy | kept for the backward, besides a layer's input | computed again |
|---|---|---|
| `true` | nothing | the layer |
| `mlp` | inputs and outputs of norms, what attention saves | norms and the MLP |
| `elementwise` | outputs of matrix products and of attention | everything else |
| `false` | all that autograd saves | nothing |

`elementwise` calls the layer's own forward again, under a mode that answers each matrix product and
each attention with the output of the first forward. So it needs no knowledge of the layer: norms,
rotary positions, activation functions, copies for shared prompts and fused kernels are all that is
left to compute.
"""

import functools
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from zephyr.config import ConfigError

MATRIX_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
# Nodes of autograd: a product, and what may follow a layer's last product without its value.
PRODUCT_NODES = ("MmBackward0", "AddmmBackward0", "LinearFunctionForZeroStage3Backward")
VALUE_FREE_NODES = (
    "AddBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "PreBackwardFunctionForModuleBackward",  # DeepSpeed's hooks, which return their input
    "PostBackwardFunctionModuleBackward",
)

# No dropout is allowed (`load.INACTIVE_VALUES`): there is no random state to restore.
recompute = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def checkpoint_activations(lm: PreTrainedModel, what: bool | str) -> None:
    """Make the backward compute activations again, as `hardware.activation_checkpointing` says.

    Args:
        lm: the decoder; its modules are modified.
        what: True, "mlp", "elementwise" or False.

    Raises:
        ConfigError: the decoder's layers can't be checkpointed, or "mlp" is wanted and they have no
            module of that name.
    """
    if what is True:
        checkpoint_layers(lm, recompute, "true")
    elif what == "elementwise":
        checkpoint_layers(lm, recompute_elementwise, '"elementwise"')
    elif what == "mlp":
        checkpoint_parts(lm)


def checkpoint_layers(lm: PreTrainedModel, run: Callable[..., object], what: str) -> None:
    """Let `run(layer, *inputs)` call each layer in training."""
    if not lm.supports_gradient_checkpointing:
        raise ConfigError(
            f"hardware.activation_checkpointing: {what} needs layers that transformers can "
            f"checkpoint, which {type(lm).__name__} does not have; set it to false"
        )
    lm._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=run)


def checkpoint_parts(lm: PreTrainedModel) -> None:
    """Checkpoint norms and MLPs, which keep most of a layer's memory.

    Fused norms are left as they are: they keep only their input.
    """
    parts = {
        name: module
        for name, module in lm.base_model.named_modules()
        if name.endswith(".mlp") or (name.endswith("norm") and "forward" not in vars(module))
    }
    if not any(name.endswith(".mlp") for name in parts):
        raise ConfigError(
            f'hardware.activation_checkpointing: "mlp" needs layers with a module named mlp, '
            f"which {type(lm).__name__} does not have; set it to true, elementwise or false"
        )
    for module in parts.values():
        module.forward = partial(recompute, module.forward)


def recompute_elementwise(layer: Callable[..., object], *inputs: object) -> object:
    """Call a layer. Its backward repeats all but its matrix products and its attention."""
    kept: deque[object] = deque()
    modes = (KeepProducts(kept), ReuseProducts(kept))
    output = recompute(layer, *inputs, context_fn=lambda: modes)
    if kept and ends_with_product(output):
        # Only the residual sum takes it, and a sum saves nothing: its shape is enough.
        kept[-1] = cast(Tensor, kept[-1]).shape
    return output


class KeepProducts(TorchDispatchMode):
    """The first forward of a layer: appends each output of a product to `kept`."""

    def __init__(self, kept: deque[object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept

    def __torch_dispatch__(
        self,
        op: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        output = op(*args, **(kwargs or {}))
        if is_product(op):
            # Detached: the tensor itself will own the graph that leads to it.
            self.kept.append(tree_map_only(Tensor, Tensor.detach, output))
        return output


class ReuseProducts(TorchDispatchMode):
    """The forward of a layer in its backward: products return what was kept, in the same order."""

    def __init__(self, kept: deque[object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = kept
        self.last: StorageWeakRef | None = None  # memory of the last output returned

    def __torch_dispatch__(
        self,
        op: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if is_product(op):
            if not self.kept:
                raise RuntimeError(
                    "a layer under hardware.activation_checkpointing: elementwise has gone through "
                    "its backward once, and what it kept is gone: backward can't run a second time"
                )
            output = self.kept.popleft()
            if isinstance(output, torch.Size):  # nothing depends on its values
                output = cast(Tensor, args[0]).new_full(output, torch.nan)
            if isinstance(output, Tensor):
                self.last = memory(output)
            return output
        if self.last is not None and writes_first(op) and self.last == memory(args[0]):
            # DeepSpeed's linear adds a bias in place: what was kept has it already.
            return args[0]
        return op(*args, **(kwargs or {}))


@functools.cache
def is_product(op: OpOverload) -> bool:
    """Whether an operation is a matrix product or an attention kernel (of any library)."""
    name = op.name().partition("::")[2].partition(".")[0]
    return name in MATRIX_PRODUCTS or "attention" in name or "attn" in name


@functools.cache
def writes_first(op: OpOverload) -> bool:
    """Whether an operation changes its first argument, a tensor, in place."""
    first = next(iter(op._schema.arguments), None)
    if first is None or first.alias_info is None or str(first.type) != "Tensor":
        return False
    return bool(first.alias_info.is_write)


def memory(tensor: object) -> StorageWeakRef:
    """The identity of a tensor's memory. While it is held, no other tensor gets the same one, and
    the memory itself can be freed."""
    return StorageWeakRef(cast(Tensor, tensor).untyped_storage())


def ends_with_product(output: object) -> bool:
    """Whether a layer's last product goes into sums and views only, up to the layer's output.

    Of the terms of a sum, the one that was computed last leads to the last product.
    """
    if not isinstance(output, Tensor) or output.grad_fn is None:
        return False
    node = output.grad_fn
    while node.name() in VALUE_FREE_NODES:
        below = [function for function, _ in node.next_functions if function is not None]
        if not below:
            return False
        node = max(below, key=lambda function: function._sequence_nr())
    return node.name() in PRODUCT_NODES
