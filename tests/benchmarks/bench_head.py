"""The log-prob head, forward and backward, against its bare matrix products, a full log_softmax and
torch's cross entropy.

python tests/benchmarks/bench_head.py [--shapes 256x32000,512x4096 --tokens 2048,4096 --dtype
float32 --out DIR]

T scored tokens, D hidden size, V vocabulary. `extra_bytes` is the peak beside inputs, log-probs and
both gradients."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import measure
import torch
import torch.nn.functional as F
from live_bytes import peak_bytes
from torch import Tensor, nn

from zephyr.model import logprobs
from zephyr.model.logprobs import LogProbHead

Score = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden_TD, weight_VD, targets_T -> logp_T


def ours(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    head = LogProbHead(*weight_VD.shape[::-1], bias=False, device="meta")
    head.weight = weight_VD
    return head(hidden_TD, targets_T)


def log_softmax(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    return (
        (hidden_TD @ weight_VD.t())
        .float()
        .log_softmax(-1)
        .gather(-1, targets_T[:, None])
        .squeeze(-1)
    )


def cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    return -F.cross_entropy((hidden_TD @ weight_VD.t()).float(), targets_T, reduction="none")


def products(hidden_TD: Tensor, weight_VD: Tensor, number: int) -> None:
    """The head's matrix products alone: logits, gradients of hidden and weight; with 4, logits
    twice. In rows of a chunk's size."""
    for rows in logprobs.chunks(len(hidden_TD), weight_VD):
        for _ in range(number - 2):
            logits_CV = hidden_TD[rows] @ weight_VD.t()
        logits_CV @ weight_VD
        logits_CV.t() @ hidden_TD[rows]


def measured(
    tokens: int, hidden: int, vocabulary: int, dtype: torch.dtype, device: str, repeats: int
) -> dict[str, object]:
    """All contenders on one set of random inputs, with their largest difference in log-probs and in
    gradients."""
    generator = torch.Generator(device).manual_seed(0)
    hidden_TD = (
        torch.randn(tokens, hidden, generator=generator, device=device).to(dtype).requires_grad_()
    )
    weight_VD = nn.Parameter(
        (torch.randn(vocabulary, hidden, generator=generator, device=device) * hidden**-0.5).to(
            dtype
        )
    )
    targets_T = torch.randint(vocabulary, (tokens,), generator=generator, device=device)
    grad_T = torch.randn(tokens, generator=generator, device=device)

    def run(score: Score) -> list[Tensor]:
        logp_T = score(hidden_TD, weight_VD, targets_T)
        return [logp_T.detach(), *torch.autograd.grad(logp_T, (hidden_TD, weight_VD), grad_T)]

    with torch.no_grad():
        bare = {
            f"products_{n}": measure.seconds(partial(products, hidden_TD, weight_VD, n), repeats)
            for n in (3, 4)
        }
    result: dict[str, object] = {
        "tokens": tokens,
        "hidden": hidden,
        "vocabulary": vocabulary,
        "dtype": str(dtype),
        "device": device,
        "chunk_rows": logprobs.chunks(tokens, weight_VD)[0].stop,
        **bare,
    }
    first = run(ours)
    for name, score in {
        "ours": ours,
        "log_softmax": log_softmax,
        "cross_entropy": cross_entropy,
    }.items():
        peak, outputs = peak_bytes(partial(run, score), device)
        time = measure.seconds(partial(run, score), repeats)
        off = [
            float((a.float() - b.float()).abs().max() / b.float().abs().max())
            for a, b in zip(outputs, first)
        ]
        result[name] = {
            "seconds": time,
            "extra_bytes": peak - sum(t.nbytes for t in outputs),
            "difference_from_ours": max(off),
            "over_products": {n: time["median"] / bare[f"products_{n}"]["median"] for n in (3, 4)},
        }
    return result


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__)
    for name, on_cpu, on_gpu in (
        ("shapes", "256x32000,512x4096", "4096x32000"),
        ("tokens", "2048,4096", "4096,24000"),
        ("dtype", "float32", "bfloat16"),
        ("device", "cpu", "cuda"),
        ("repeats", 5, 5),
        ("out", measure.RESULTS, measure.RESULTS),
    ):
        parser.add_argument(f"--{name}", type=type(on_cpu), default=on_gpu if gpu else on_cpu)
    args = parser.parse_args(argv)
    result: dict[str, object] = {}
    measure.RESULTS = args.out
    for shape in args.shapes.split(","):
        for tokens in map(int, args.tokens.split(",")):
            hidden, vocabulary = map(int, shape.split("x"))
            result[f"{tokens} tokens, {shape}"] = measured(
                tokens, hidden, vocabulary, getattr(torch, args.dtype), args.device, args.repeats
            )
    measure.save("head", "python tests/benchmarks/bench_head.py", result)
    return result


if __name__ == "__main__":
    main()
