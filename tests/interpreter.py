"""Triton's interpreter, which runs our kernels on the CPU in tests."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch


@contextlib.contextmanager
def rounding_interpreter() -> Iterator[None]:
    """The interpreter, rounding to bfloat16 as a GPU does.

    By itself it truncates: values would be half a unit too small on average. Skips the test where
    kernels can't run."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("TRITON_INTERPRET is not 1: the kernels would need a GPU")
    import triton
    import triton.language as tl
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    if isinstance(tl.sum, JITFunction):
        pytest.skip("triton was imported before TRITON_INTERPRET was set")
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip("the interpreter of triton before 3.7 fails in a loop over numpy's numbers")
    convert = interpreter._convert_float

    def rounded(values: np.ndarray, source: object, target: object, mode: object) -> np.ndarray:
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        nearest = torch.from_numpy(np.array(values, np.float32)).bfloat16()
        return nearest.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)

    interpreter._convert_float = rounded
    try:
        yield
    finally:
        interpreter._convert_float = convert
