"""Fused RMSNorm, SwiGLU and rotary positions: our Triton kernels and liger's, against PyTorch.

Triton's interpreter runs the kernels here, on the CPU; `tests/gpu/test_fused.py` runs them on a
GPU."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from interpreter import rounding_interpreter
from processes import ROOT
from test_families import CASES, MAX_TOKENS, gradients, saved, tiny_config
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.mistral import modeling_mistral
from transformers.utils.deprecation import deprecate_kwarg

from zephyr.chat import EncodedPair
from zephyr.config import BadInput, ConfigError, Data, DPOConfig, Hardware
from zephyr.model import fused
from zephyr.model.load import load_policy, require_runnable
from zephyr.model.policy import Policy
from zephyr.packing import collate_pairs

PAIRS = [EncodedPair("a", [5, 6, 7], [8, 9], [10, 11, 12]), EncodedPair("b", [20], [21, 5], [3])]
Function = Callable[..., Tensor | tuple[Tensor, ...]]


@pytest.fixture(scope="module")
def kernels() -> Iterator[fused.Kernels]:
    """Our kernels through the interpreter."""
    with rounding_interpreter():
        yield fused.own_kernels()


@pytest.fixture
def interpreted_liger(kernels: fused.Kernels, monkeypatch: pytest.MonkeyPatch) -> fused.Kernels:
    """liger's kernels through the interpreter, in float32: it hands numbers over as Python's, which
    have no `to`, and has no CUDA library with rsqrt."""
    pytest.importorskip("liger_kernel", reason="liger-kernel is not installed")
    import triton.language as tl
    from liger_kernel.ops import rms_norm, swiglu

    class Number(float):
        def to(self, dtype: object) -> Number:
            return self

    monkeypatch.setattr(rms_norm, "rsqrt", lambda x: tl.rsqrt(x))
    monkeypatch.setattr(swiglu, "float", Number, raising=False)
    apply = rms_norm.LigerRMSNormFunction.apply

    def norm(x: Tensor, weight: Tensor, eps: float, offset: float, *options: object) -> Tensor:
        return apply(x, weight, Number(eps), Number(offset), *options)

    monkeypatch.setattr(rms_norm.LigerRMSNormFunction, "apply", norm)
    return fused.liger_kernels()


def draw(*shapes: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def results(function: Function, inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of the inputs, the gradients of the outputs being random."""
    leaves = [tensor.to(dtype).requires_grad_() for tensor in inputs]
    found = function(*leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    given = [grad.to(dtype) for grad in draw(*(o.shape for o in outputs), seed=1)]
    return [*(o.detach() for o in outputs), *torch.autograd.grad(outputs, leaves, given)]


def require_small_error(
    ours: Function, plain: Function, inputs: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Each output and gradient errs at most twice as much as PyTorch's in the same dtype, and in
    bfloat16 outputs are PyTorch's to the bit but for the last bit of a few."""
    rounded = [tensor.to(dtype) for tensor in inputs]
    truth = results(plain, rounded, torch.float64)
    mine, theirs = results(ours, rounded, dtype), results(plain, rounded, dtype)
    floor = 1e-7 if dtype == torch.float32 else 0.0  # a float32 output may be exact in PyTorch
    for a, b, exact in zip(mine, theirs, truth, strict=True):
        assert a.dtype == b.dtype == dtype and a.shape == b.shape
        size = exact.norm()
        assert (a - exact).norm() <= 2 * (b - exact).norm() + floor * size
    if dtype == torch.bfloat16:
        for a, b in zip(mine[: len(mine) - len(inputs)], theirs):
            assert (a != b).sum() <= a.numel() / 1000


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


@DTYPES
@pytest.mark.parametrize("rows,size", [(3, 4096), (70, 80), (300, 16), (1, 576), (0, 64)])
@pytest.mark.parametrize("offset,rounds_first", [(0.0, True), (0.0, False), (1.0, False)])
def test_rms_norm(
    kernels: fused.Kernels,
    offset: float,
    rounds_first: bool,
    rows: int,
    size: int,
    dtype: torch.dtype,
) -> None:
    """Sizes that are no power of 2, more rows than tiles and programs, none at all. Fails where a
    mask lets neighbours in, a program's part of the weight's gradient is lost, or something is
    rounded at another place."""

    def norm(function: Function) -> Function:
        return lambda x, weight: function(x, weight, 1e-5, offset, rounds_first)

    inputs = draw((1, rows, size), (size,))
    inputs[0] *= 0.01  # so that eps matters
    require_small_error(norm(kernels.rms_norm), norm(fp64_norm), inputs, dtype)


def fp64_norm(x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool) -> Tensor:
    """`fused.rms_norm`, which computes in float32, or the same in float64."""
    if x.dtype != torch.float64:
        return fused.rms_norm(x, weight, eps, offset, rounds_first)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (offset + weight)


@DTYPES
@pytest.mark.parametrize("tokens,size", [(4, 5000), (9, 96), (0, 96)])
def test_swiglu(kernels: fused.Kernels, tokens: int, size: int, dtype: torch.dtype) -> None:
    """Gate and up as tensors of their own, and as halves of one. Fails where a row's last tile is
    cut, or a half is read with the stride of the other layout."""
    require_small_error(
        kernels.swiglu, fused.swiglu, draw((1, tokens, size), (1, tokens, size)), dtype
    )

    def joint(function: Function) -> Function:
        return lambda both: function(*both.chunk(2, dim=-1))

    inputs = draw((1, tokens, 2 * size))
    require_small_error(joint(kernels.swiglu), joint(fused.swiglu), inputs, dtype)


def test_swiglu_of_columns(kernels: fused.Kernels) -> None:
    """Gate and up whose columns do not lie beside each other: transposed, and every second column
    of one tensor. Fails where neighbours in memory are taken for neighbours of a row."""

    def transposed(function: Function) -> Function:
        return lambda gate, up: function(gate.t(), up.t())

    def mixed(function: Function) -> Function:
        return lambda both: function(both[..., ::2], both[..., 1::2])

    for layout, inputs in ((transposed, draw((6, 4), (6, 4))), (mixed, draw((2, 3, 12)))):
        require_small_error(layout(kernels.swiglu), layout(fused.swiglu), inputs, torch.float32)


def test_launches_are_on_the_gpu_of_the_tensors(
    kernels: fused.Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward and backward of each kernel ask for the device of a tensor. Fails where a launch is
    left to the current GPU, which may be another one."""
    asked: list[Tensor] = []

    def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[None]:
        asked.append(tensor)
        return contextlib.nullcontext()

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x, weight, query, angle = draw((1, 3, 8), (8,), (1, 2, 3, 8), (1, 3, 8))
    calls: list[tuple[Function, list[Tensor]]] = [
        (lambda x, w: kernels.rms_norm(x, w, 1e-5, 0.0, True), [x, weight]),
        (kernels.swiglu, [x, x]),
        (lambda q: kernels.rotate(q, q, angle.cos(), angle.sin())[0], [query]),
    ]
    for function, inputs in calls:
        results(function, inputs, torch.float32)
    assert len(asked) == 2 + 2 + 3  # two rotations forward, one backward


@DTYPES
@pytest.mark.parametrize(
    "batch,angles,tokens,rotated", [(1, 1, 5, 16), (2, 1, 3, 8), (2, 2, 3, 16)]
)
def test_rotation(
    kernels: fused.Kernels, batch: int, angles: int, tokens: int, rotated: int, dtype: torch.dtype
) -> None:
    """Heads in the middle dimension of memory as projections write them, five and one of them;
    rotated whole and in part, with angles of all sequences or of each. Fails where a token gets
    another's angle, the parts of a head change places, or the backward turns the same way."""
    (angle,) = draw((angles, tokens, rotated), seed=2)
    cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)

    def turned(function: Function) -> Function:
        def call(query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
            exact = (cos.to(query.dtype), sin.to(query.dtype))
            return function(query.transpose(1, 2), key.transpose(1, 2), *exact)

        return call

    inputs = draw((batch, tokens, 5, 16), (batch, tokens, 1, 16))
    require_small_error(turned(kernels.rotate), turned(fused.rotate), inputs, dtype)


def test_no_kernel_writes_over_what_it_was_given(kernels: fused.Kernels) -> None:
    """One graph runs backward twice with equal gradients, and inputs stay. Fails where a backward
    keeps its result in the memory of an input or of the incoming gradient."""
    x, weight, gate, up, query, key, angle = draw(
        (1, 5, 64), (64,), (1, 5, 96), (1, 5, 96), (1, 2, 5, 16), (1, 1, 5, 16), (1, 5, 16)
    )
    cos, sin = angle.cos(), angle.sin()
    calls: list[tuple[Function, list[Tensor]]] = [
        (lambda x, w: kernels.rms_norm(x, w, 1e-5, 0.0, True), [x, weight]),
        (kernels.swiglu, [gate, up]),
        (lambda q, k: kernels.rotate(q, k, cos, sin), [query, key]),
    ]
    for function, inputs in calls:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        found = function(*leaves)
        outputs = found if isinstance(found, tuple) else (found,)
        given = draw(*(o.shape for o in outputs), seed=1)
        kept = [grad.clone() for grad in given]
        first = torch.autograd.grad(outputs, leaves, given, retain_graph=True)
        second = torch.autograd.grad(outputs, leaves, given)
        for a, b in zip([*first, *inputs, *kept], [*second, *leaves, *given], strict=True):
            assert torch.equal(a, b)


# -- decoders


SERVED = {  # norms, MLPs and attentions of two layers
    "Qwen3": (9, 2, 2),  # with norms of query and key
    "Gemma": (5, 0, 2),  # gelu
    "Gemma 3": (13, 0, 2),
    "OLMo 2": (9, 2, 2),
    "OLMo 3": (9, 2, 2),
    "GLM-4": (9, 2, 0),  # rotates neighbours, not halves
    "Starcoder2": (0, 0, 2),  # LayerNorm, gelu
}


def empty(kind: str, options: dict[str, object]) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(tiny_config(kind, options, False))


@pytest.mark.parametrize("name,label,kind,options", CASES, ids=[case[1] for case in CASES])
def test_each_family_is_served_to_the_bit(
    name: str,
    label: str,
    kind: str,
    options: dict[str, object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With what the kernels compute, in PyTorch, in place of the kernels: log-probs in bfloat16 are
    those of transformers' modules to the bit, gradients in float32 to rounding. Fails where a
    module is taken for one that computes something else, or gets another's weight or eps."""
    in_pytorch = fused.Kernels(fused.rms_norm, fused.swiglu, fused.rotate)
    monkeypatch.setattr(fused, "own_kernels", lambda: in_pytorch)
    found = fused.fusible(empty(kind, options))
    counts = len(found.norms), len(found.mlps), len(found.attentions)
    assert counts == SERVED.get(name, (5, 2, 2))
    folder = saved(tiny_config(kind, options, False), tmp_path)
    for dtype in (torch.bfloat16, torch.float32):
        plain, ours = (
            load_policy(folder, dtype=dtype, max_tokens=MAX_TOKENS, fused=choice).train()
            for choice in ("none", "triton")
        )
        require_equal(plain, ours, atol=0.0)


def test_a_renamed_argument_hides_no_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers 5.24 renames one. Fails where attentions are no longer served then, or where
    they are taken out of a decorator that may compute something."""
    lm = empty("Llama", {})
    attention = type(lm.model.layers[0].self_attn)
    forward = attention.forward

    @functools.wraps(forward)
    def other(*given: object, **named: object) -> object:
        return forward(*given, **named)

    for wrapped, served in ((deprecate_kwarg("old", "99", new_name="new")(forward), 2), (other, 0)):
        monkeypatch.setattr(attention, "forward", wrapped)
        assert len(fused.fusible(lm).attentions) == served
    assert fused.attention_code(lm.model.layers[0].self_attn) is other


def require_equal(plain: Policy, ours: Policy, atol: float) -> None:
    """Log-probs of both, to `atol`, and in float32 their gradients to 1e-5 of each norm."""
    batch = collate_pairs(PAIRS, [0, 1])
    logp_T, expected_T = ours(batch), plain(batch)
    torch.testing.assert_close(logp_T, expected_T, rtol=0, atol=atol)
    if plain.lm.dtype == torch.float32:
        found, wanted = gradients(logp_T, ours.lm), gradients(expected_T, plain.lm)
        assert list(found) == list(wanted)
        for parameter, gradient in found.items():
            assert (gradient - wanted[parameter]).norm() < 1e-5 * wanted[parameter].norm() + 1e-7


@pytest.mark.parametrize(
    "choice,label,policy",
    [
        ("triton", "Qwen3", False),
        ("triton", "Mistral", "elementwise"),
        ("triton", "Phi-3 1", "mlp"),
        ("triton", "Gemma 3", True),
        ("liger", "Mistral", "elementwise"),
        ("liger", "Phi-3 1", True),
        ("liger", "Gemma 3", False),
    ],
)
def test_a_decoder_with_kernels(
    choice: str,
    label: str,
    policy: bool | str,
    kernels: fused.Kernels,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    """Log-probs and gradients in float32, with what is computed again. Fails where a kernel writes
    over what is read later: liger's rotation over a query that is kept, liger's RMSNorm over the
    gradient that Gemma 3's residual connection shares."""
    if choice == "liger":
        request.getfixturevalue("interpreted_liger")
    _, _, kind, options = next(case for case in CASES if case[1] == label)
    folder = saved(tiny_config(kind, options, False), tmp_path)
    plain = load_policy(folder, max_tokens=MAX_TOKENS).train()
    ours = load_policy(
        folder, max_tokens=MAX_TOKENS, fused=choice, activation_checkpointing=policy
    ).train()
    with torch.no_grad():
        batch = collate_pairs(PAIRS, [0])
        assert not torch.equal(ours(batch), plain(batch))  # or no kernel ran
    require_equal(plain, ours, atol=2e-5)


def test_another_decoder_of_the_process_stays_as_it_was(kernels: fused.Kernels, tiny: Path) -> None:
    """Two of one class, one fused: the other's values don't change, and generation with a cache is
    the same. Fails where transformers' own modules or functions are patched."""
    plain, function = load_policy(tiny).eval(), modeling_mistral.apply_rotary_pos_emb
    batch = collate_pairs(PAIRS, [0, 1])
    before = plain(batch)
    ours = load_policy(tiny, fused="triton").eval()
    assert torch.equal(plain(batch), before) and torch.equal(load_policy(tiny)(batch), before)
    assert modeling_mistral.apply_rotary_pos_emb is function  # its values in float32 are ours
    prompt = torch.tensor([[1, 5, 6], [1, 7, 9]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    said = [
        policy.lm.generate(prompt, attention_mask=mask, max_new_tokens=3, do_sample=False)
        for policy in (plain, ours)
    ]
    assert torch.equal(*said)
    assert ours.lm.state_dict().keys() == plain.lm.state_dict().keys()


# -- what can't run


def test_a_decoder_without_such_modules_is_refused() -> None:
    """By name, before weights are read. Fails where a choice does nothing in silence."""
    config = transformers.GPT2Config(n_layer=2, n_embd=8, n_head=2)
    message = "hardware.fused: triton has RMSNorm, .* GPT2LMHeadModel .*LayerNorm.*none"
    with pytest.raises(ConfigError, match=message):
        fused.require_served(config, "triton")
    fused.require_served(config, "none")
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ConfigError, match=message):
        fused.fuse(lm, "triton")


def test_the_log_names_what_is_left() -> None:
    """Fails where a decoder is served in part and the line does not say so."""
    _, _, kind, options = next(case for case in CASES if case[1] == "Gemma")
    assert fused.describe(empty(kind, options), "liger") == (
        "fused by liger: 5 RMSNorm, 0 SwiGLU, rotary positions of 2 layers; as transformers has "
        "them: 2 GemmaMLP"
    )


def test_why_kernels_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reason names what is missing. Fails where a run would only fail at its first forward,
    as Triton does without a C compiler."""
    reason = fused.unavailable_reason
    assert reason("none", "cpu") is None and reason("none", "cuda") is None
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: None)
    assert "package liger-kernel, which is not installed" in str(reason("liger", "cuda"))
    assert "package triton, which is not installed" in str(reason("triton", "cuda"))
    monkeypatch.setattr(fused.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(fused, "version", lambda name: "0.8.4")
    assert "liger-kernel >= 0.8.5, found 0.8.4" in str(reason("liger", "cuda"))
    monkeypatch.setattr(fused, "version", lambda name: "0.8.10")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert reason("triton", "cpu") is None and "GPUs only" in str(reason("liger", "cpu"))
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "GPUs only" in str(reason("triton", "cpu"))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(fused.shutil, "which", lambda name: None)
    assert "C compiler and lacks gcc" in str(reason("triton", "cuda"))
    monkeypatch.setenv("CC", "cc")
    monkeypatch.setattr(fused.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert "lacks /nowhere/Python.h" in str(reason("liger", "cuda"))


def test_a_run_is_told_before_anything_loads(tmp_path: Path) -> None:
    """Kernels that can't run here, then a decoder that has nothing to fuse. Fails where a run finds
    out behind its data and its weights."""

    def config(choice: str) -> DPOConfig:
        hardware = Hardware(attention="sdpa", fused=choice)
        return DPOConfig(str(tmp_path), Data(("rows",)), hardware=hardware)

    transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=96, attn_pdrop=0, resid_pdrop=0, embd_pdrop=0
    ).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="hardware.fused: liger"):
        require_runnable(config("liger"))
    if fused.unavailable_reason("triton", "cpu") is None:
        with pytest.raises(ConfigError, match="hardware.fused: triton has RMSNorm"):
            require_runnable(config("triton"))
    with pytest.raises(BadInput, match="neither model.safetensors nor"):
        require_runnable(config("none"))


# -- for a GPU, without one


COMPILE = """
import json, os, re, subprocess, sys, tempfile
from pathlib import Path
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from zephyr.model import triton_kernels as ours

ASSEMBLER = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"

def compiled(function, constants, pointers="", warps=4):
    names = function.arg_names
    types = {name: "i32" for name in names} | dict.fromkeys(constants, "constexpr")
    types |= {name: "*bf16" for name in names if name.endswith("_ptr")}
    types |= {name: "*fp32" for name in names if name in ("scale_ptr", "dweight_ptr")}
    types |= {name: "fp32" for name in names if name == "eps"}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if name not in constants and name not in ("rows", "eps")
    }
    source = ASTSource(fn=function, signature=types, constexprs=values, attrs=aligned)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(made.asm["ptx"])
        command = [ASSEMBLER, "-v", "--gpu-name=sm_90a", ptx, "-o", f"{folder}/kernel.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spilled = [int(n) for n in re.findall(r"(\\d+) bytes spill", said)]
    assert spilled, said
    return {"spilled": sum(spilled), "wide": "ld.global.v4.b32" in made.asm["ptx"]}

norm = ours.norm_tile(4096)
warps = norm.pop("num_warps")
norm |= {"OFFSET": 0.0, "ROUNDS_FIRST": True}
swiglu = {"TILE_D": ours.swiglu_tile(14336)["TILE_D"]}
rotation = {"BACKWARD": False, "TILE_H": 32, "TILE_A": 64}
print(json.dumps({
    "norm, backward": compiled(ours.rms_norm_backward, norm, warps=warps),
    "swiglu": compiled(ours.swiglu_forward, swiglu),
    "swiglu, backward": compiled(ours.swiglu_backward, swiglu),
    "rotation": compiled(ours.rotate_heads, rotation, warps=ours.warps(4096)),
}))
"""


@pytest.mark.long
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    """At 7B width, for an H100, by Triton's own compiler: no register is spilled to memory, and
    memory is read 16 bytes a thread. Fails for what the interpreter takes and the compiler does
    not, and where a stride or mask makes every load a narrow one."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": python_path()}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name, found in json.loads(done.stdout).items():
        assert found == {"spilled": 0, "wide": True}, name


def python_path() -> str:
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
