"""A decoder gets low-rank adapters beside its frozen linear layers, and gives them back merged.

The adapter of a layer is peft's own module (LoRA, Hu et al. 2021, arXiv:2106.09685): with a frozen
W it computes W x + alpha / r * B A x. B starts at 0, so a policy with new adapters equals its
reference to the bit. A starts uniform in +-1 / sqrt(inputs), as in peft; it depends on the seed and
on the layer's name, and not on the number of ranks.

Shape letters:
    I  inputs of a linear layer
    O  outputs
    R  rank
"""

import difflib
import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from zephyr.config import Adapter, ConfigError
from zephyr.model import nf4
from zephyr.model.adapter_files import add_update
from zephyr.model.nf4 import Nf4Linear

NAME = "default"  # of the adapter, among those that peft can hold side by side
ALL_LINEAR = "all-linear"
WriteTensor = Callable[[nn.Parameter, Callable[[], Tensor]], None]  # fills it with what is read


class AdaptedLinear(Protocol):
    """What peft's layer around a linear layer has; the type of nn.Module does not show it."""

    base_layer: nn.Module
    out_features: int
    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    scaling: dict[str, float]


class Exported(NamedTuple):
    """A tensor of the decoder as others know it: without adapters, or with them merged."""

    name: str
    bytes: int
    parameters: Sequence[nn.Parameter]  # of which it is made; each may be partitioned
    combine: Callable[[Sequence[Tensor]], Tensor]  # makes it of their whole values


def unavailable_reason(adapter: Adapter | None) -> str | None:
    """The reason why such adapters can't be trained here, with its key, or None."""
    if adapter is None:
        return None
    if importlib.util.find_spec("peft") is None:
        return (
            "adapter: it needs the package peft, which is not installed: pip install 'zephyr[lora]'"
        )
    reason = nf4.unavailable_reason() if adapter.quantize == "nf4" else None
    return f"adapter.quantize: {reason}" if reason else None


def attach(lm: PreTrainedModel, adapter: Adapter, dtype: torch.dtype) -> None:
    """Put adapters beside linear layers, and freeze all else. Their values follow (`fill`).

    Under `zero.Init`, the adapters are partitioned as the rest of the model is.

    Args:
        lm: a decoder without values; its modules are modified.
        adapter: which layers, their rank and scale, and how the frozen layers are kept.
        dtype: of the adapters.

    Raises:
        ConfigError: a target is no linear layer of the decoder.
    """
    nf4.quiet()  # peft imports bitsandbytes where it is installed
    from peft import LoraConfig, inject_adapter_in_model

    targets = target_names(lm, adapter.targets)
    settings = LoraConfig(
        r=adapter.r, lora_alpha=adapter.alpha, target_modules=targets, init_lora_weights=False
    )
    inject_adapter_in_model(settings, lm, adapter_name=NAME)
    if adapter.quantize == "nf4":
        for name in linear_names(lm):
            parent, _, child = name.rpartition(".")
            linear = cast(nn.Linear, lm.get_submodule(name))
            setattr(lm.get_submodule(parent), child, Nf4Linear(linear, dtype))
    for name, parameter in lm.named_parameters():
        if is_of_adapter(name) and not hasattr(parameter, "ds_shape"):
            parameter.data = parameter.data.to(dtype)
    # ZeRO-3 releases the weights of a module once the gradient of its input is there. Without such
    # a gradient it would release those of the first layer at once.
    lm.get_input_embeddings().register_forward_hook(require_gradient)


def require_gradient(module: nn.Module, inputs: object, output: Tensor) -> None:
    """A forward hook: the backward goes back to the output of a module whose weights are frozen."""
    if torch.is_grad_enabled():
        output.requires_grad_()


def linear_names(lm: PreTrainedModel) -> list[str]:
    """Names of a decoder's linear layers, without the output layer and those of adapters."""
    head = lm.get_output_embeddings()
    return [
        name
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not is_of_adapter(f"{name}.")
    ]


def target_names(lm: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    """Full names of the layers that `adapter.targets` means.

    Raises:
        ConfigError: one of them is no linear layer of the decoder; names those that are.
    """
    names = linear_names(lm)
    ends = sorted({name.rpartition(".")[2] for name in names})
    found = []
    for target in targets:
        of_target = [name for name in names if f".{name}".endswith(f".{target}")]
        if target == ALL_LINEAR:
            of_target = names
        if not of_target:
            close = difflib.get_close_matches(target, ends, n=1, cutoff=0.0)
            nearest = f"; the nearest is {close[0]}" if close else ""
            raise ConfigError(
                f"adapter.targets: expected {ALL_LINEAR} or linear layers of {type(lm).__name__} "
                f"({', '.join(ends) or 'it has none'}), got {target!r}{nearest}; the output layer "
                "and embeddings have no adapters"
            )
        found += of_target
    return sorted(set(found))


def is_of_adapter(name: str) -> bool:
    """Whether a parameter is A or B of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name that a parameter has in a decoder without adapters; A and B as peft writes them."""
    return name.replace(".base_layer.", ".").replace(f".{NAME}.weight", ".weight")


def quantized_layers(lm: nn.Module) -> dict[str, Nf4Linear]:
    """The layers whose matrices are kept in 4 bits, by the name of their weight."""
    return {
        plain_name(f"{name}.weight"): module
        for name, module in lm.named_modules()
        if isinstance(module, Nf4Linear)
    }


def fill(lm: PreTrainedModel, seed: int, write: WriteTensor) -> None:
    """Give adapters their starting values: A random, B zero. A collective under ZeRO-3.

    Args:
        seed: of the run.
        write: fills one parameter.
    """
    for name, parameter in lm.named_parameters():
        if is_of_adapter(name):
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            write(parameter, partial(starting_values, plain_name(name), shape, seed))


def starting_values(name: str, shape: tuple[int, int], seed: int) -> Tensor:
    """A [R, I] uniform in +-1 / sqrt(I), or B [O, R] of zeros, float32 on the CPU.

    Args:
        name: of the parameter, as peft writes it.
    """
    if ".lora_B." in name:
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def layer_shapes(lm: PreTrainedModel, targets: Sequence[str]) -> list[tuple[int, int]]:
    """Inputs and outputs of the layers that `adapter.targets` means, in a decoder without adapters.

    Raises:
        ConfigError: as `target_names`.
    """
    modules = (cast(nn.Linear, lm.get_submodule(name)) for name in target_names(lm, targets))
    return [(module.in_features, module.out_features) for module in modules]


def kept_numbers(outputs: Sequence[int], rank: int, checkpointing: bool | str) -> int:
    """Numbers that adapters keep for the backward of a token, in all layers.

    The output of A. Under "elementwise" also that of B, a matrix product. Where whole layers are
    computed again: none.

    Args:
        outputs: of each layer with an adapter.
        checkpointing: as `hardware.activation_checkpointing`.
    """
    if checkpointing is True:
        return 0
    return sum(rank + (size if checkpointing == "elementwise" else 0) for size in outputs)


def exported(lm: nn.Module) -> Iterator[Exported]:
    """The tensors of a decoder as others know it: adapters merged, quantised matrices dequantised.

    In the order of its parameters. A decoder without adapters gives its parameters as they are.
    """
    adapted = {id(layer.base_layer): layer for layer in adapted_layers(lm).values()}
    seen: set[int] = set()
    for module_name, module in lm.named_modules():
        layer = adapted.get(id(module))
        if isinstance(module, Nf4Linear):
            size = module.quantized_weights * module.dtype.itemsize
            name = plain_name(f"{module_name}.weight")
            yield Exported(name, size, factors(layer), partial(merge_quantized, module, layer))
        for leaf, parameter in module.named_parameters(recurse=False):
            name = f"{module_name}.{leaf}"
            if id(parameter) in seen or is_of_adapter(name):
                continue
            seen.add(id(parameter))
            size = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
            if leaf == "weight" and layer is not None:
                parts = [parameter, *factors(layer)]
                yield Exported(plain_name(name), size, parts, partial(merge, layer))
            else:
                yield Exported(plain_name(name), size, [parameter], only)


def adapted_layers(lm: nn.Module) -> dict[str, AdaptedLinear]:
    """peft's layers of a decoder, by the names that the layers in them had."""
    return {
        name: cast(AdaptedLinear, module)
        for name, module in lm.named_modules()
        if hasattr(module, "base_layer") and hasattr(module, "lora_A")
    }


def factors(layer: AdaptedLinear | None) -> list[nn.Parameter]:
    """A and B of a layer with an adapter."""
    if layer is None:
        return []
    return [half[NAME].get_parameter("weight") for half in (layer.lora_A, layer.lora_B)]


def only(values: Sequence[Tensor]) -> Tensor:
    """The single tensor among them."""
    (value,) = values
    return value


def merge(layer: AdaptedLinear, values: Sequence[Tensor]) -> Tensor:
    """W + alpha / r * B A of a layer, added in float32 and rounded once to the dtype of W."""
    weight_OI, a_RI, b_OR = values
    return add_update(weight_OI, a_RI, b_OR, layer.scaling[NAME]).to(weight_OI.dtype)


def merge_quantized(
    module: Nf4Linear, layer: AdaptedLinear | None, values: Sequence[Tensor]
) -> Tensor:
    """The dequantised matrix of a layer, with its adapter where it has one."""
    weight_OI = module.dequantized().cpu()
    return weight_OI if layer is None else merge(layer, [weight_OI, *values])


def adapter_parameters(lm: nn.Module) -> Iterator[Exported]:
    """A and B of all layers, by the names that peft writes."""
    for name, parameter in lm.named_parameters():
        if is_of_adapter(name):
            size = getattr(parameter, "ds_numel", parameter.numel()) * parameter.element_size()
            yield Exported(plain_name(name), size, [parameter], only)


def target_ends(lm: nn.Module) -> list[str]:
    """Ends of the names of the layers that have an adapter, as `target_modules` of peft."""
    return sorted({name.rpartition(".")[2] for name in adapted_layers(lm)})
