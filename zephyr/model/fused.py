"""RMSNorm, SwiGLU and rotary positions of a decoder are computed by fused kernels.

`hardware.fused` names the kernels: our own (`triton_kernels.py`) or those of the liger-kernel
package. transformers' code stays as it is, and so do the names of parameters: the instances in one
decoder get another `forward`. ZeRO-3 gathers a norm's weight as before, by hooks on its module.

What a module computes is not read off its name. Its own code runs on small random tensors, and
must give to the bit what `rms_norm`, `swiglu` or `rotate` below give: they say in PyTorch what the
kernels compute. Modules that compute something else (LayerNorm, gelu, interleaved rotary positions)
stay as they are, and `describe` names them.
"""

import importlib.util
import inspect
import os
import shutil
import sysconfig
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FunctionType, MethodType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from packaging.version import Version
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from zephyr.config import ConfigError
from zephyr.model.nf4 import Nf4Linear

PACKAGES = {"triton": "triton", "liger": "liger-kernel"}  # of each choice, as pip names it
# Before this version, its rotation reads past cos and sin where heads are rotated in part.
LIGER_AT_LEAST = "0.8.5"
ROTATE = "apply_rotary_pos_emb"  # the function that transformers' attention modules call
PROBE_DTYPES = (torch.float32, torch.bfloat16)
# What a probe raises in a module that takes other arguments, or has other attributes.
NOT_THIS_KIND = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
RENAMES = "transformers.utils.deprecation"  # its decorators rename arguments


class Kernels(NamedTuple):
    """The three functions that replace modules' code; `zephyr.model.triton_kernels` says more."""

    rms_norm: Callable[[Tensor, Tensor, float, float, bool], Tensor]
    swiglu: Callable[[Tensor, Tensor], Tensor]
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class Norm(NamedTuple):
    """What tells one RMSNorm from another: arguments of `rms_norm`."""

    eps: float
    offset: float
    rounds_first: bool


class Fusible(NamedTuple):
    """The modules of a decoder that the kernels serve, by name, and the others of these kinds."""

    norms: dict[str, Norm]
    mlps: list[str]
    attentions: list[str]
    others: Counter[str]  # classes of norms, MLPs and attentions that stay as they are


def fuse(lm: nn.Module, fused: str) -> None:
    """Give the modules of a decoder the kernels of `hardware.fused`.

    Args:
        lm: the decoder; the `forward` of its modules is replaced.
        fused: none, liger or triton.

    Raises:
        ConfigError: the kernels serve no module of the decoder.
    """
    if fused == "none":
        return
    replace(lm, liger_kernels() if fused == "liger" else own_kernels(), fused)


def replace(lm: nn.Module, kernels: Kernels, fused: str) -> None:
    """Give the modules of a decoder these kernels; as `fuse`. Args: fused: their name."""
    found = fusible(lm)
    require_some(lm, found, fused)
    modules = dict(lm.named_modules())
    for name, norm in found.norms.items():
        module = modules[name]
        module.forward = partial(norm_forward, kernels.rms_norm, norm, module)
    for name in found.mlps:
        module = modules[name]
        module.forward = partial(mlp_forward, kernels.swiglu, module)
    for name in found.attentions:
        module = modules[name]
        forward = with_rotation(attention_code(module), kernels.rotate)
        module.forward = MethodType(forward, module)


def require_served(config: PreTrainedConfig, fused: str) -> None:
    """Check that the kernels serve at least one module of a config's decoder.

    Raises:
        ConfigError: they serve none; names its modules.
    """
    if fused == "none":
        return
    with torch.device("meta"), no_init_weights():
        lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    require_some(lm, fusible(lm), fused)


def require_some(lm: nn.Module, found: Fusible, fused: str) -> None:
    """Raises: ConfigError: nothing of a decoder was found to be served."""
    if not (found.norms or found.mlps or found.attentions):
        raise ConfigError(
            f"hardware.fused: {fused} has RMSNorm, SwiGLU and rotary positions in halves, and "
            f"{type(lm).__name__} has none of them ({', '.join(found.others) or 'no norms'}); set "
            "it to none"
        )


def describe(lm: nn.Module, fused: str) -> str:
    """What `fuse` replaces in a decoder, as a line for the log."""
    found = fusible(lm)
    line = (
        f"fused by {fused}: {len(found.norms)} RMSNorm, {len(found.mlps)} SwiGLU, rotary positions "
        f"of {len(found.attentions)} layers"
    )
    rest = ", ".join(f"{count} {kind}" for kind, count in found.others.items())
    return f"{line}; as transformers has them: {rest}" if rest else line


def unavailable_reason(fused: str, device: str) -> str | None:
    """The reason why these kernels can't run here, or None.

    Args:
        fused: none, liger or triton.
        device: "cuda" or "cpu".
    """
    if fused == "none":
        return None
    package = PACKAGES[fused]
    if importlib.util.find_spec(package.replace("-", "_")) is None:
        return (
            f"{fused} needs the package {package}, which is not installed: install it, or set it "
            "to none"
        )
    if fused == "liger" and Version(version(package)) < Version(LIGER_AT_LEAST):
        return f"liger needs {package} >= {LIGER_AT_LEAST}, found {version(package)}: upgrade it"
    interpreted = fused == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device == "cpu":
        return None if interpreted else f"{fused} runs on GPUs only; set it to none on a CPU"
    # Triton builds its launcher with the system's C compiler, once a machine.
    compilers = [os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")]
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not any(compilers) or not headers.is_file():
        missing = f"{headers}" if any(compilers) else "gcc, clang or CC"
        return (
            f"{fused} builds its launcher with a C compiler and lacks {missing}: install it, or "
            "set it to none"
        )
    return None


# -- what the kernels compute, in PyTorch


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> Tensor:
    """See `zephyr.model.triton_kernels.rms_norm`."""
    normal = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + eps)
    if rounds_first:
        normal = normal.to(x.dtype).float()
    return (normal * (offset + weight.float())).to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """See `zephyr.model.triton_kernels.swiglu`."""
    return F.silu(gate) * up


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """See `zephyr.model.triton_kernels.rotate`."""
    size = cos.shape[-1]

    def rotated(x: Tensor) -> Tensor:
        first, second = x[..., : size // 2], x[..., size // 2 : size]
        turned = torch.cat((-second, first), dim=-1)
        both = x[..., :size] * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
        return torch.cat((both, x[..., size:]), dim=-1).to(x.dtype)

    return rotated(query), rotated(key)


# -- which modules compute that


def fusible(lm: nn.Module) -> Fusible:
    """The modules of a decoder that the kernels serve. Parameters may be partitioned or on meta."""
    found = Fusible({}, [], [], Counter())
    for name, module in lm.named_modules():
        kind = type(module).__name__
        norm = norm_kind(module)
        if norm is not None:
            found.norms[name] = norm
        elif is_swiglu(module):
            found.mlps.append(name)
        elif is_rotation(module):
            found.attentions.append(name)
        elif kind.endswith(("Norm", "MLP", "Attention")):
            found.others[kind] += 1
    return found


def norm_kind(module: nn.Module) -> Norm | None:
    """The arguments with which `rms_norm` computes what a module does, or None."""
    weights = [name for name, _ in module.named_parameters()]
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if weights != ["weight"] or not isinstance(eps, float):
        return None
    for offset, rounds_first in ((0.0, True), (0.0, False), (1.0, False)):
        norm = Norm(eps, offset, rounds_first)
        if all(computes_norm(module, norm, dtype) for dtype in PROBE_DTYPES):
            return norm
    return None


def computes_norm(module: nn.Module, norm: Norm, dtype: torch.dtype) -> bool:
    """Whether a module with one weight computes `rms_norm`, on random numbers."""
    x_RD, weight_D = random_tensors([(3, 64), (64,)], dtype)
    probe = stand_in(module, parameters={"weight": nn.Parameter(weight_D)})
    return same(lambda: type(module).forward(probe, x_RD), rms_norm(x_RD, weight_D, *norm))


def is_swiglu(module: nn.Module) -> bool:
    """Whether a module is an MLP of `swiglu` between linear layers, gate and up apart or joint."""
    linear = {name for name, child in module.named_children() if is_linear(child)}
    joint = linear == {"gate_up_proj", "down_proj"}
    if not joint and linear != {"gate_proj", "up_proj", "down_proj"}:
        return False
    return all(computes_swiglu(module, joint, dtype) for dtype in PROBE_DTYPES)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, also one with an adapter or a quantised matrix."""
    return isinstance(getattr(module, "base_layer", module), (nn.Linear, Nf4Linear))


def computes_swiglu(module: nn.Module, joint: bool, dtype: torch.dtype) -> bool:
    """Whether an MLP's own code computes `mlp_forward`, on random numbers and small layers."""
    hidden, inner = 8, 16
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden)}
    if joint:
        shapes = {"gate_up_proj": (2 * inner, hidden)}
    shapes["down_proj"] = (hidden, inner)
    x_RD, *weights = random_tensors([(3, hidden), *shapes.values()], dtype)
    layers = {name: partial(F.linear, weight=weight) for name, weight in zip(shapes, weights)}
    others = {name: child for name, child in module.named_children() if name not in layers}
    probe = stand_in(module, modules={**others, **layers})
    return same(lambda: type(module).forward(probe, x_RD), mlp_forward(swiglu, probe, x_RD))


def is_rotation(module: nn.Module) -> bool:
    """Whether a module is an attention that calls a function which computes `rotate`."""
    code = attention_code(module)
    if ROTATE not in code.__code__.co_names or ROTATE not in code.__globals__:
        return False
    keywords = [names for names in code.__code__.co_consts if isinstance(names, tuple)]
    if any("unsqueeze_dim" in names for names in keywords):
        return False  # heads lie in another dimension
    function = code.__globals__[ROTATE]
    return all(computes_rotation(function, dtype, 8) for dtype in PROBE_DTYPES)


def computes_rotation(function: Callable[..., object], dtype: torch.dtype, size: int) -> bool:
    """Whether a function computes `rotate` for heads of a size that are rotated whole.

    It must also compute it for heads that are rotated in part, or raise an error for them.
    """
    for rotated in (size, size // 2):
        shapes = [(1, 2, 3, size), (1, 1, 3, size), (1, 3, rotated), (1, 3, rotated)]
        tensors = random_tensors(shapes, dtype)
        try:
            found = function(*tensors)
        except NOT_THIS_KIND:
            if rotated == size:
                return False
            continue
        if not (isinstance(found, tuple) and all(map(equal, found, rotate(*tensors)))):
            return False
    return True


def attention_code(module: nn.Module) -> FunctionType:
    """The code of a module's forward, as its class defines it.

    transformers 5.24 wraps it in `deprecate_kwarg`, which renames an argument of older callers and
    computes nothing. What another decorator computes is unknown: its wrapper is the code.
    """
    code = type(module).forward
    assert isinstance(code, FunctionType)
    code = inspect.unwrap(code, stop=lambda at: at.__globals__["__name__"] != RENAMES)
    assert isinstance(code, FunctionType)
    return code


def stand_in(
    module: nn.Module,
    *,
    parameters: Mapping[str, nn.Parameter] | None = None,
    modules: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> nn.Module:
    """A module of the same class and attributes, with these parameters and children instead."""
    probe = type(module).__new__(type(module))
    probe.__dict__.update(module.__dict__)
    probe.__dict__.update(_parameters=dict(parameters or {}), _modules=dict(modules or {}))
    return probe


def random_tensors(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    """Tensors of normal numbers on the CPU, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def same(compute: Callable[[], object], wanted: Tensor) -> bool:
    """Whether a computation gives this tensor, to the bit. One that fails does not."""
    try:
        with torch.no_grad():
            return equal(compute(), wanted)
    except NOT_THIS_KIND:
        return False


def equal(found: object, wanted: Tensor) -> bool:
    """Whether an object is this tensor, with its dtype."""
    if not isinstance(found, Tensor) or found.dtype != wanted.dtype:
        return False
    return torch.equal(found, wanted)


# -- what replaces their forward


def norm_forward(
    rms_norm: Callable[[Tensor, Tensor, float, float, bool], Tensor],
    norm: Norm,
    module: nn.Module,
    x: Tensor,
) -> Tensor:
    """The forward of a norm."""
    return rms_norm(x, module.get_parameter("weight"), *norm)


def mlp_forward(swiglu: Callable[[Tensor, Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """The forward of an MLP with gate and up projection, apart or joint."""
    layers = dict(module.named_children())
    if "gate_up_proj" in layers:
        gate, up = layers["gate_up_proj"](x).chunk(2, dim=-1)
    else:
        gate, up = layers["gate_proj"](x), layers["up_proj"](x)
    y: Tensor = layers["down_proj"](swiglu(gate, up))
    return y


def with_rotation(
    forward: FunctionType,
    rotate: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> FunctionType:
    """A copy of an attention's forward which calls `rotate` under the name of ROTATE.

    The copy has its own dictionary of globals, so that other decoders of the process, whose
    attention is of the same class, keep transformers' function.
    """
    names = {**forward.__globals__, ROTATE: rotate}
    made = FunctionType(
        forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
    )
    made.__kwdefaults__ = forward.__kwdefaults__
    return made


# -- kernels


def own_kernels() -> Kernels:
    """The kernels of this package."""
    from zephyr.model import triton_kernels

    return Kernels(triton_kernels.rms_norm, triton_kernels.swiglu, triton_kernels.rotate)


def liger_kernels() -> Kernels:
    """The kernels of liger-kernel's layers, kept from writing over what others read.

    Its rotation writes over query and key, whose memory a checkpointed layer may keep: it gets
    copies. Its RMSNorm would write over the gradient of its output, which a residual connection may
    share: that is off. Its SwiGLU writes the gradients of gate and up over gate and up: only one
    backward of a graph is right.
    """
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import LigerRopeFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    def norm(x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> Tensor:
        casting, in_place = "llama" if rounds_first else "gemma", False
        y: Tensor = LigerRMSNormFunction.apply(x, weight, eps, offset, casting, in_place)
        return y

    def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        turned: tuple[Tensor, Tensor]
        turned = LigerRopeFunction.apply(query.clone(), key.clone(), cos, sin)
        return turned

    return Kernels(norm, LigerSiLUMulFunction.apply, turn)
