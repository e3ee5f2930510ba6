"""Fused layers on a GPU at 7B width: our Triton kernels and liger's, by the rule of `test_gpu.py`.

Against float32 of the same bfloat16 inputs, computed on the GPU with TF32 off, outputs and
gradients err at most twice as much as transformers' modules in bfloat16. With ZEPHYR_REHEARSE=1
every test runs on a CPU at toy sizes, in Triton's interpreter."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interpreter import rounding_interpreter
from torch import Tensor

from zephyr.chat import EncodedPair
from zephyr.model import attention, fused
from zephyr.model.load import load_policy
from zephyr.packing import collate_pairs

TOY = os.environ.get("ZEPHYR_REHEARSE") == "1"
DEVICE, DTYPE = "cpu" if TOY else "cuda", torch.bfloat16
HIDDEN, INNER, HEADS, KEY_HEADS = (64, 96, 4, 2) if TOY else (4096, 14336, 32, 8)
HEAD_SIZE = HIDDEN // HEADS
TOKENS = 8 if TOY else 2056  # a multiple of no tile
MANY_TOKENS = 8 if TOY else 2**31 // INNER + 16  # more elements than an int32 counts
LENGTHS = (3, 4, 2) if TOY else (120, 80, 60)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not TOY, reason="no GPU on this machine"),
]


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    with rounding_interpreter() if TOY else contextlib.nullcontext():
        yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.fixture(params=["triton", "liger"])
def kernels(request: pytest.FixtureRequest) -> fused.Kernels:
    reason = fused.unavailable_reason(request.param, DEVICE)
    if reason:
        pytest.skip(reason)
    return fused.liger_kernels() if request.param == "liger" else fused.own_kernels()


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return [torch.randn(shape, device=DEVICE, generator=generator).bfloat16() for shape in shapes]


def results(function: object, inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    found = function(*(leaf * 1 for leaf in leaves))  # liger fills what it is given
    outputs = found if isinstance(found, tuple) else (found,)
    given = [grad.to(dtype) for grad in draw(*(o.shape for o in outputs), seed=1)]
    kept = [output.detach().clone() for output in outputs]
    return [*kept, *torch.autograd.grad(outputs, leaves, given)]


def ratios(ours: object, plain: object, inputs: list[Tensor]) -> list[float]:
    """Error of each output and gradient over that of PyTorch in bfloat16."""
    truth = results(plain, inputs, torch.float32)
    mine, theirs = (results(f, inputs, torch.bfloat16) for f in (ours, plain))
    return [
        float((a.float() - exact).norm() / (b.float() - exact).norm())
        for a, b, exact in zip(mine, theirs, truth, strict=True)
    ]


def parts(kernels: fused.Kernels) -> dict[str, tuple[object, list[Tensor]]]:
    """Each kernel as a function of the tensors that get gradients, at 7B width."""
    (angle,) = draw((1, TOKENS, HEAD_SIZE), seed=2)
    cos, sin = angle.cos(), angle.sin()

    def turn(query_BTHE: Tensor, key_BTKE: Tensor) -> tuple[Tensor, ...]:
        angles = (cos.to(query_BTHE.dtype), sin.to(query_BTHE.dtype))
        return kernels.rotate(query_BTHE.transpose(1, 2), key_BTKE.transpose(1, 2), *angles)

    found: dict[str, tuple[object, list[Tensor]]] = {
        "SwiGLU": (kernels.swiglu, draw((1, TOKENS, INNER), (1, TOKENS, INNER))),
        "SwiGLU, joint": (
            lambda both: kernels.swiglu(*both.chunk(2, dim=-1)),
            draw((1, TOKENS, 2 * INNER)),
        ),
        "RoPE": (turn, draw((1, TOKENS, HEADS, HEAD_SIZE), (1, TOKENS, KEY_HEADS, HEAD_SIZE))),
    }
    for name, size, offset, first in (
        ("RMSNorm", HIDDEN, 0.0, True),
        ("RMSNorm of 576", 80 if TOY else 576, 0.0, True),
        ("RMSNorm of heads", HEAD_SIZE, 0.0, True),
        ("RMSNorm, Gemma", HIDDEN, 1.0, False),
    ):
        shape = (1, TOKENS, *((HEADS,) if name.endswith("heads") else ()), size)

        def norm(x: Tensor, w: Tensor, offset: float = offset, first: bool = first) -> Tensor:
            return kernels.rms_norm(x, w, 1e-5, offset, first)

        found[name] = (norm, draw(shape, (size,)))
    return found


def test_kernels_against_float32(kernels: fused.Kernels, measured: dict[str, object]) -> None:
    """Every part, outputs and gradients. Fails where the compiler rounds or orders something that
    the interpreter does not, and where a tile or a stride is wrong at these sizes."""
    plain = parts(fused.Kernels(fused.rms_norm, fused.swiglu, fused.rotate))
    name = "liger" if kernels.swiglu.__module__.startswith("liger") else "triton"
    errors = measured.setdefault("fused: error / PyTorch's in bfloat16", {})
    for part, (function, inputs) in parts(kernels).items():
        found = ratios(function, plain[part][0], inputs)
        errors[f"{name} {part}"] = found
        assert max(found) <= 2, (part, found)


def test_equal_inputs_give_equal_bits() -> None:
    """Gradients of our kernels, twice, and none over zero tokens. Fails where sums take the order
    in which programs end."""
    reason = fused.unavailable_reason("triton", DEVICE)
    if reason:
        pytest.skip(reason)
    kernels = fused.own_kernels()
    for function, inputs in parts(kernels).values():
        first, second = (results(function, inputs, torch.bfloat16) for _ in range(2))
        assert all(map(torch.equal, first, second))
    nothing, weight = draw((1, 0, HIDDEN), (HIDDEN,))
    found = results(lambda x, w: kernels.rms_norm(x, w, 1e-5, 0.0, True), [nothing, weight], DTYPE)
    assert not found[-1].any() and not results(kernels.swiglu, [nothing, nothing], DTYPE)[0].numel()


def test_more_elements_than_an_int32_counts(kernels: fused.Kernels) -> None:
    """The last rows of a SwiGLU of 2^31 elements and of an RMSNorm, forward. Fails where a place
    in memory is computed in 32 bits."""
    if not TOY and torch.cuda.mem_get_info()[0] < 3.5 * 2 * MANY_TOKENS * INNER:
        pytest.skip("less memory is free than three tensors of 2^31 elements take")
    with torch.no_grad():
        gate = torch.empty(1, MANY_TOKENS, INNER, device=DEVICE, dtype=DTYPE)
        gate[:, -8:] = draw((1, 8, INNER))[0]
        found = kernels.swiglu(gate, gate)[:, -8:]
        torch.testing.assert_close(found, fused.swiglu(gate[:, -8:], gate[:, -8:]))
        del found
        (weight,) = draw((INNER,))
        found = kernels.rms_norm(gate, weight, 1e-5, 0.0, True)[:, -8:]
        torch.testing.assert_close(found, fused.rms_norm(gate[:, -8:], weight, 1e-5, 0.0, True))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral of 7B width with two layers."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        num_hidden_layers=2,
        vocab_size=384,
        sliding_window=None,
    )
    folder = tmp_path_factory.mktemp("wide")
    with torch.device(DEVICE):
        MistralForCausalLM(config).to(DTYPE).save_pretrained(folder)
    return folder


def log_probs_and_gradient(policy: torch.nn.Module) -> tuple[Tensor, Tensor]:
    """Log-probs, and gradients of all parameters as one vector, in float32."""
    rng = random.Random(0)
    pairs = [
        EncodedPair("", *([rng.randrange(3, 384) for _ in range(n)] for n in LENGTHS))
        for _ in range(1 if TOY else 4)
    ]
    logp_T = policy(collate_pairs(pairs, range(len(pairs))).to(DEVICE))
    gradients = torch.autograd.grad(logp_T.sum(), list(policy.parameters()))
    return logp_T.detach(), torch.cat([g.float().flatten() for g in gradients])


@pytest.mark.parametrize("policy", [False, "elementwise", "mlp", True])
def test_decoder_under_each_policy(
    policy: bool | str, wide: Path, measured: dict[str, object]
) -> None:
    """Log-probs and gradients of two layers by both kinds of kernels and by transformers' modules,
    against float32. Fails where what is computed again meets memory that a kernel wrote over."""
    reason = attention.unavailable_reason("torch_varlen", DTYPE, DEVICE)
    kernel = "sdpa" if reason else "torch_varlen"
    exact_policy = load_policy(wide).to(DEVICE).train()
    truth = log_probs_and_gradient(exact_policy)
    del exact_policy
    errors: dict[str, list[float]] = {}
    for choice in ("none", "triton", "liger"):
        if fused.unavailable_reason(choice, DEVICE):
            continue
        loaded = load_policy(
            wide, attention=kernel, dtype=DTYPE, fused=choice, activation_checkpointing=policy
        )
        found = log_probs_and_gradient(loaded.to(DEVICE).train())
        errors[choice] = [float((a - b).norm() / b.norm()) for a, b in zip(found, truth)]
        del loaded, found
        torch.cuda.empty_cache()
    measured.setdefault("fused: relative error of two layers", {})[str(policy)] = errors
    for choice, found in errors.items():
        for mine, theirs in zip(found, errors["none"]):
            assert mine <= 2 * theirs, (choice, errors)
    if len(errors) == 1:
        pytest.skip("neither triton nor liger can run here")
