"""RMSNorm, SwiGLU, rotary positions and a whole Mistral layer, forward and backward, by each kind
of kernels: transformers' modules (none), liger's, ours (triton), and torch.compile on functions
without parameters (compile).

python tests/benchmarks/bench_fused.py [--device cuda --tokens 8192 --out DIR]

`seconds` is the time of a call, `kernel_seconds` that of its kernels alone: where the first is much
longer, the host is what takes time. `bytes` is what a call must read and write at least, and
`of_copy_rate` the share of the card's own copy rate at which it does. `error` is the distance from
float32 over that of transformers' modules, the largest of all outputs and gradients.

On a CPU, at the sizes of a toy, our kernels are measured where TRITON_INTERPRET=1 is set."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import device as devices
import measure
import torch
from gpu import NO_GPU
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity
from transformers import MistralConfig
from transformers.models.mistral import modeling_mistral

from zephyr.chat import EncodedPair
from zephyr.model import attention, fused
from zephyr.model.policy import build
from zephyr.packing import PackedBatch, collate_pairs

COMMAND = "python tests/benchmarks/bench_fused.py"
KINDS = ("none", "liger", "triton", "compile")
WIDE = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32}
TOY = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
Function = Callable[..., Tensor | tuple[Tensor, ...]]


class Operation(NamedTuple):
    """A part of a layer: what computes it of each kind, on which tensors."""

    function: Callable[[fused.Kernels], Function]
    shapes: list[tuple[int, ...]]  # of the tensors that get gradients
    passes: int  # reads and writes of `shapes[0]`, or of all where they differ, at the least


def shape_of(device: str) -> MistralConfig:
    """A layer of 7B width on a GPU, a toy on a CPU."""
    size = WIDE if devices.is_gpu(device) else TOY
    key_heads = size["num_attention_heads"] // 4
    return MistralConfig(
        **size,
        num_key_value_heads=key_heads,
        num_hidden_layers=1,
        vocab_size=64,
        sliding_window=None,
    )


def operations(config: MistralConfig, tokens: int, device: str) -> dict[str, Operation]:
    """The parts of a layer. RMSNorm as Mistral's, which rounds before it multiplies."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads, key_heads = config.num_attention_heads, config.num_key_value_heads
    size = hidden // heads
    angle = torch.rand(1, tokens, size, device=device) * 6
    cos, sin = angle.cos().bfloat16(), angle.sin().bfloat16()

    def norm(kernels: fused.Kernels) -> Function:
        return lambda x, weight: kernels.rms_norm(x, weight, 1e-5, 0.0, True)

    def rotation(kernels: fused.Kernels) -> Function:
        def turn(query_BTHE: Tensor, key_BTKE: Tensor) -> tuple[Tensor, ...]:
            exact = (cos.to(query_BTHE.dtype), sin.to(query_BTHE.dtype))
            return kernels.rotate(query_BTHE.transpose(1, 2), key_BTKE.transpose(1, 2), *exact)

        return turn

    return {
        "RMSNorm": Operation(norm, [(1, tokens, hidden), (hidden,)], 5),
        "SwiGLU": Operation(lambda kernels: kernels.swiglu, [(1, tokens, inner)] * 2, 4),
        "RoPE": Operation(rotation, [(1, tokens, h, size) for h in (heads, key_heads)], 4),
    }


def mistral_norm(
    x: Tensor, weight: Tensor, eps: float, offset: float, rounds_first: bool
) -> Tensor:
    """The operations of transformers' MistralRMSNorm, one by one."""
    wide = x.to(torch.float32)
    mean_square = wide.pow(2).mean(-1, keepdim=True)
    return weight * (wide * torch.rsqrt(mean_square + eps)).to(x.dtype)


PLAIN = fused.Kernels(mistral_norm, fused.swiglu, modeling_mistral.apply_rotary_pos_emb)


def kernels_of(kind: str, device: str) -> fused.Kernels | str:
    """The kernels of a kind, or why they can't run here."""
    if kind == "none":
        return PLAIN
    if kind == "compile":
        backend = "inductor" if devices.is_gpu(device) else "aot_eager"
        make = partial(torch.compile, backend=backend, fullgraph=True)
        return fused.Kernels(*map(make, PLAIN))
    reason = fused.unavailable_reason(kind, device)
    if reason:
        return reason
    return fused.liger_kernels() if kind == "liger" else fused.own_kernels()


def forward_backward(
    function: Function, inputs: Sequence[Tensor], grads: Sequence[Tensor] = ()
) -> list[Tensor]:
    """Outputs and gradients of the inputs. liger overwrites gradients, so each call gets its own
    where they are compared."""
    found = function(*inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    given = [g.clone() for g in grads] or [torch.ones_like(output) for output in outputs]
    results = torch.autograd.grad(outputs, inputs, given)
    return [*(output.detach() for output in outputs), *results]


def profiled(call: Callable[[], object], device: str) -> dict[str, float | int]:
    """Kernels of a call and their time together; on a CPU, operations that no other one calls."""
    activities = [ProfilerActivity.CPU]
    if devices.is_gpu(device):
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        devices.synchronize(device)
    kind = DeviceType.CUDA if devices.is_gpu(device) else DeviceType.CPU
    events = [e for e in profile.events() if e.device_type == kind and e.cpu_parent is None]
    return {
        "launches": len(events),
        "kernel_seconds": sum(e.time_range.elapsed_us() for e in events) / 1e6,
    }


def measured(call: Callable[[], object], device: str, repeats: int) -> dict[str, object]:
    """Time, launches and kernels' time of a call. The first call compiles; it is not counted."""
    call()
    taken = measure.seconds(call, repeats=repeats, warm_ups=2, device=device)
    return {"seconds": taken, **profiled(call, device)}


def part(
    operation: Operation, kernels: fused.Kernels, device: str, copy_rate: float, repeats: int
) -> dict[str, object]:
    """One part of a layer by one kind of kernels, in bfloat16."""
    generator = torch.Generator(device).manual_seed(0)
    draw = partial(torch.randn, generator=generator, device=device)
    leaves = [draw(shape).bfloat16().requires_grad_() for shape in operation.shapes]
    # A leaf's memory stays as it is: liger turns and fills what it is given.
    ours = operation.function(kernels)
    function: Function = lambda *inputs: ours(*(x * 1 for x in inputs))  # noqa: E731
    plain = operation.function(PLAIN)
    exact = [leaf.detach().float().requires_grad_() for leaf in leaves]
    grads = [draw(o.shape).bfloat16() for o in forward_backward(plain, leaves)[: -len(leaves)]]
    truth = forward_backward(plain, exact, [grad.float() for grad in grads])
    theirs = forward_backward(plain, leaves, grads)
    mine = forward_backward(function, leaves, grads)
    errors = [
        float((a.float() - c).norm() / (b.float() - c).norm().clamp_min(1e-30))
        for a, b, c in zip(mine, theirs, truth)
    ]
    found = measured(partial(forward_backward, ours, leaves), device, repeats)
    needed = operation.passes * sum(leaf.nbytes for leaf in leaves if leaf.ndim > 1)
    rate = needed / max(float(found["kernel_seconds"]), 1e-12)
    return {"error": max(errors), "bytes": needed, "of_copy_rate": rate / copy_rate, **found}


def layer_call(
    config: MistralConfig, kernels: fused.Kernels | None, batch: PackedBatch, device: str
) -> Callable[[], object]:
    """Forward and backward of a decoder layer on a packed row. kernels: None: transformers' own."""
    names = ("flash_attn", "torch_varlen", "sdpa")
    usable = [n for n in names if not attention.unavailable_reason(n, torch.bfloat16, device)]
    with torch.device(device):
        lm = build(config, attention.register_kernel(usable[0]), torch.bfloat16)
    if kernels is not None:
        fused.replace(lm, kernels, "these kernels")
    layer: nn.Module = lm.base_model.layers[0]
    tokens = len(batch.tokens_N)
    hidden_1ND = torch.randn(1, tokens, config.hidden_size, device=device).bfloat16()
    positions = lm.base_model.rotary_emb(hidden_1ND, position_ids=batch.positions_N[None])
    no_mask = torch.empty(1, 1, 0, 0, device=device)
    hidden_1ND.requires_grad_()
    inputs = [hidden_1ND, *layer.parameters()]

    def run() -> object:
        output = layer(
            hidden_1ND,
            attention_mask=no_mask,
            position_embeddings=positions,
            layout=batch.layout,
        )
        return torch.autograd.grad(output, inputs, torch.ones_like(output))

    return run


def packed_row(tokens: int, device: str) -> PackedBatch:
    """Pairs of 512 tokens, or of an eighth of a shorter row, up to so many tokens."""
    third = max(1, min(512, tokens // 8) // 3)
    pair = EncodedPair("", [1] * third, [1] * third, [1] * third)
    count = max(1, tokens // (3 * third))
    return collate_pairs([pair] * count, range(count)).to(device)


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default=devices.default())
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=0, help="0: 20 on a GPU, 1 on a CPU")
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--out", type=Path, default=measure.RESULTS)
    args = parser.parse_args(argv)
    gpu = devices.is_gpu(args.device)
    if gpu and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    measure.RESULTS = args.out
    repeats = args.repeats or (20 if gpu else 1)
    config = shape_of(args.device)
    source = torch.empty(args.tokens * config.intermediate_size, device=args.device).bfloat16()
    copy = partial(torch.empty_like(source).copy_, source)
    copied = measure.seconds(copy, repeats=repeats, warm_ups=2, device=args.device)
    rate = 2 * source.nbytes / max(copied["median"], 1e-12)
    result: dict[str, object] = {"tokens": args.tokens, "copy_bytes_per_second": rate}
    parts = operations(config, args.tokens, args.device)
    batch = packed_row(args.tokens, args.device)
    keep = partial(measure.write, "fused", COMMAND, result)
    for kind in args.kinds.split(","):
        kernels = kernels_of(kind, args.device)
        if isinstance(kernels, str):
            result[kind] = f"not measured: {kernels}"
            keep()
            continue
        found: dict[str, object] = {}
        result[kind] = found
        for name, operation in parts.items():
            with measure.failure_recorded(found, name):
                found[name] = part(operation, kernels, args.device, rate, repeats)
            keep()
        replaced = None if kind == "none" else kernels
        with measure.failure_recorded(found, "layer"):
            run = layer_call(config, replaced, batch, args.device)
            found["layer"] = measured(run, args.device, repeats)
        keep()
    print(keep().read_text(encoding="utf-8"), end="")
    return result


if __name__ == "__main__":
    main()
