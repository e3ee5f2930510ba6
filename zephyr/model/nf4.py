"""The frozen matrix of a linear layer is kept in 4 bits and dequantised where it is multiplied.

NF4 with double quantisation (Dettmers et al. 2023, QLoRA, arXiv:2305.14314, Section 3), by the
bitsandbytes package: blocks of 64 weights share a scale, and blocks of 256 scales share another.
A weight takes 4.127 bits. The quantised matrix lies in buffers: ZeRO-3 shards parameters only, so
every rank holds all of it.

Shape letters:
    N  positions of a micro-batch
    I  inputs of the layer
    O  outputs
"""

import importlib.util
import logging
from collections.abc import Callable
from types import ModuleType
from typing import Protocol

import torch
from torch import Tensor, nn

BLOCK, SCALES_BLOCK = 64, 256  # weights that share a scale; scales that share one
# Bytes of a weight: 4 bits, a scale of a byte, and a float32 for each block of scales.
WEIGHT_BYTES = 0.5 + 1 / BLOCK + 4 / (BLOCK * SCALES_BLOCK)


def unavailable_reason() -> str | None:
    """The reason why a matrix can't be quantised here, or None."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return (
            "nf4 needs the package bitsandbytes, which is not installed: pip install "
            "'zephyr[lora]', or set it to none"
        )
    return None


def quiet() -> None:
    """Keep the import of bitsandbytes from logging that a kernel which is not used is missing."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def bitsandbytes() -> ModuleType:
    """bitsandbytes.functional."""
    quiet()
    import bitsandbytes.functional

    module: ModuleType = bitsandbytes.functional
    return module


class Nf4Linear(nn.Module):
    """A linear layer with a frozen NF4 matrix, and the bias of the layer that it replaces.

    It is empty until `quantize` fills it.
    """

    packed: Tensor  # uint8 [O * I / 2, 1]
    scales: Tensor  # uint8, one a block
    scale_of_scales: Tensor  # float32, one a block of scales
    scale_codes: Tensor  # float32 [256]: what the bytes of `scales` stand for
    mean_scale: Tensor  # float32, scalar
    codes: Tensor  # float32 [16]: the values of NF4

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self.device = dtype, linear.weight.device
        self.bias = linear.bias

    @property
    def quantized_weights(self) -> int:
        """Weights of the matrix."""
        return self.in_features * self.out_features

    def quantize(self, weight_OI: Tensor) -> None:
        """Fill the layer with a matrix. It is quantised on the device that the layer was made for,
        or has been moved to.

        Raises:
            ValueError: a weight is not finite.
        """
        if not weight_OI.isfinite().all():
            raise ValueError("a weight is not finite")
        device = self.packed.device if "packed" in self._buffers else self.device
        packed, state = bitsandbytes().quantize_4bit(
            weight_OI.to(device, self.dtype),
            blocksize=BLOCK,
            compress_statistics=True,
            quant_type="nf4",
            quant_storage=torch.uint8,
        )
        self.register_buffer("packed", packed)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("scale_of_scales", state.state2.absmax)
        self.register_buffer("scale_codes", state.state2.code)
        self.register_buffer("mean_scale", state.offset)
        self.register_buffer("codes", state.code)

    def dequantized(self) -> Tensor:
        """The matrix [O, I] that the layer multiplies with, in its dtype."""
        functional = bitsandbytes()
        inner = functional.QuantState(
            absmax=self.scale_of_scales,
            code=self.scale_codes,
            blocksize=SCALES_BLOCK,
            dtype=torch.float32,
        )
        state = functional.QuantState(
            absmax=self.scales,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.codes,
            blocksize=BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
            offset=self.mean_scale,
            state2=inner,
        )
        weight_OI: Tensor = functional.dequantize_4bit(self.packed, state)
        return weight_OI

    def forward(self, x_NI: Tensor) -> Tensor:
        product: Callable[[Tensor, Nf4Linear], Tensor] = Nf4Product.apply
        y_NO = product(x_NI, self)
        return y_NO if self.bias is None else y_NO + self.bias


class Nf4Context(Protocol):
    """The type of autograd's `ctx`: the layer whose matrix the backward dequantises again."""

    layer: Nf4Linear


class Nf4Product(torch.autograd.Function):
    """x W^T for the matrix of an Nf4Linear. The backward keeps no dequantised matrix."""

    @staticmethod
    def forward(ctx: Nf4Context, x_NI: Tensor, layer: Nf4Linear) -> Tensor:
        ctx.layer = layer
        return x_NI @ layer.dequantized().t()

    @staticmethod
    def backward(ctx: Nf4Context, grad_NO: Tensor) -> tuple[Tensor, None]:
        return grad_NO @ ctx.layer.dequantized(), None
