"""Our attention over a packed row, forward and backward, against padded batches, a dense mask, and
the operations it needs.

python tests/benchmarks/bench_attention.py [--profiles ultrafeedback,hh,tldr --row 4096 --heads
8x4x64 --out DIR]

N row tokens, M keys, B sequences of at most L tokens, H query heads, K key heads, E head size."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import device as devices
import measure
import torch
import torch.nn.functional as F
from bench_step import gemm_rate, pair_table
from lengths import pair_lengths
from torch import Tensor

from zephyr.model.attention import KERNELS, append_shared_keys, unavailable_reason
from zephyr.packing import PackedBatch, collate_pairs

BACKWARD_TOO = 3.5  # of a forward's operations: flash kernels compute the scores again


def attended(batch: PackedBatch) -> float:
    """(query, key) pairs of a row: each query sees half of its own segment, and all of a shared
    prompt."""
    layout = batch.layout
    return sum(q * (k - q) + q * q / 2 for q, k in zip(layout.query_lengths, layout.key_lengths))


def packed(kernel: str, batch: PackedBatch) -> Callable[..., Tensor]:
    def run(query_NHE: Tensor, key_NKE: Tensor, value_NKE: Tensor) -> Tensor:
        key_MKE, value_MKE = (append_shared_keys(t, batch.layout) for t in (key_NKE, value_NKE))
        return KERNELS[kernel](
            query_NHE, key_MKE, value_MKE, batch.layout, query_NHE.shape[-1] ** -0.5, None
        )

    return run


def padded(batch: PackedBatch) -> Callable[..., Tensor]:
    """Sequences right-padded to the longest as a batch, causal. For rows without sharing."""
    lengths = batch.layout.query_lengths

    def run(*qkv: Tensor) -> Tensor:
        heads_first = (
            torch.nn.utils.rnn.pad_sequence(t.split(lengths), batch_first=True).transpose(1, 2)
            for t in qkv
        )
        out_BHLE = F.scaled_dot_product_attention(*heads_first, is_causal=True, enable_gqa=True)
        return torch.cat([out_HLE[:, :n].transpose(0, 1) for out_HLE, n in zip(out_BHLE, lengths)])

    return run


def dense(batch: PackedBatch) -> Callable[..., Tensor]:
    """The whole row under one block mask [N, N]. For rows without sharing."""
    lengths = torch.tensor(batch.layout.query_lengths)
    segment_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(
        batch.tokens_N.device
    )
    mask_NN = (segment_N[:, None] == segment_N[None]).tril()

    def run(*qkv: Tensor) -> Tensor:
        heads_first = (t.transpose(0, 1)[None] for t in qkv)
        return F.scaled_dot_product_attention(*heads_first, attn_mask=mask_NN, enable_gqa=True)[
            0
        ].transpose(0, 1)

    return run


def forward_and_backward(
    run: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> Tensor:
    """One forward and backward of a contender. Returns: its output, detached."""
    out = run(*inputs)
    torch.autograd.grad(out, inputs, grad)
    return out.detach()


def too_large(tokens: int, heads: int, device: str) -> str:
    """Why scores under a dense mask do not fit the device, whose kernel may hold all of them in
    float32, twice; "" where they fit."""
    needed, there = 2 * 4 * heads * tokens**2, devices.memory(device)
    if needed <= there / 2:
        return ""
    return f"{needed / 1e9:.0f} GB of scores, of {there / 1e9:.0f} GB"


def measured(
    profile: str, args: argparse.Namespace, dtype: torch.dtype, rate: float
) -> dict[str, object]:
    """All contenders on the same pairs, in turn; the packed kernels also with shared prompts."""
    drawn = pair_lengths(profile, 4 * args.row // 100)
    ends = list(accumulate(2 * p + c + r for p, c, r in drawn))
    lengths = drawn[
        : max(1, sum(end <= args.row for end in ends))
    ]  # a row of args.row tokens without sharing
    pairs, heads = pair_table(lengths, 96), tuple(map(int, args.heads.split("x")))
    rows = {
        sharing: collate_pairs(pairs, range(len(pairs)), prefix_sharing=sharing).to(args.device)
        for sharing in (True, False)
    }
    kernels = [name for name in KERNELS if unavailable_reason(name, dtype, args.device) is None]
    contenders = {
        f"{name} {'shared' if sharing else 'unshared'}": (packed(name, rows[sharing]), sharing)
        for name in kernels
        for sharing in (True, False)
    }
    contenders["padded batch"] = (padded(rows[False]), False)
    result: dict[str, object] = {
        "pairs": len(pairs),
        "tokens": {"shared": len(rows[True].tokens_N), "unshared": len(rows[False].tokens_N)},
    }
    reason = too_large(len(rows[False].tokens_N), heads[0], args.device)
    if reason:
        result["dense mask"] = {"skipped": reason}
    else:
        contenders["dense mask"] = (dense(rows[False]), False)
    outputs: dict[bool, Tensor] = {}
    for name, (run, sharing) in contenders.items():
        generator, tokens = torch.Generator(args.device).manual_seed(0), len(rows[sharing].tokens_N)
        query, key, value, grad = (
            torch.randn(tokens, n, heads[2], generator=generator, device=args.device).to(dtype)
            for n in (heads[0], heads[1], heads[1], heads[0])
        )
        inputs = [t.requires_grad_() for t in (query, key, value)]

        both = partial(forward_and_backward, run, inputs, grad)
        seconds = measure.seconds(both, args.repeats, device=args.device)
        operations = BACKWARD_TOO * 4 * heads[0] * heads[2] * attended(rows[sharing])
        first = outputs.setdefault(sharing, both())
        result[name] = {
            "seconds": seconds,
            "flops_per_second": operations / seconds["median"],
            "times_bound": seconds["median"] * rate / operations,
            "difference": float((both() - first).float().abs().max()),
        }
    seconds = {name: of["seconds"]["median"] for name, of in result.items() if name in contenders}
    best = min(s for name, s in seconds.items() if name.endswith(" shared"))
    return result | {"over_best_shared": {name: s / best for name, s in seconds.items()}}


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    gpu = devices.default() == "cuda"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    profiles = "ultrafeedback,hh,tldr"
    for name, on_cpu, on_gpu in (
        ("profiles", profiles, profiles),
        ("row", 4096, 16384),
        ("heads", "8x4x64", "32x8x128"),
        ("dtype", "float32", "bfloat16"),
        ("device", "cpu", "cuda"),
        ("repeats", 5, 5),
        ("out", measure.RESULTS, measure.RESULTS),
    ):
        parser.add_argument(f"--{name}", type=type(on_cpu), default=on_gpu if gpu else on_cpu)
    args = parser.parse_args(argv)
    measure.RESULTS, dtype = args.out, getattr(torch, args.dtype)
    rate = gemm_rate(args.device, dtype)
    result: dict[str, object] = {
        "heads": args.heads,
        "dtype": args.dtype,
        "gemm_flops_per_second": rate,
    }
    keep = partial(measure.write, "attention", "python tests/benchmarks/bench_attention.py", result)
    for profile in args.profiles.split(","):
        result[profile] = measured(profile, args, dtype, rate)
        keep()
    print(keep().read_text(encoding="utf-8"), end="")
    return result


if __name__ == "__main__":
    main()
