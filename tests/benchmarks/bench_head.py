"""The log-prob head, forward and backward, against its bare matrix products, a full log_softmax and
torch's cross entropy.

python tests/benchmarks/bench_head.py [--shapes 256x32000,512x4096 --tokens 2048,4096 --dtype
float32 --chunks 23,25 --out DIR]

T scored tokens, D hidden size, V vocabulary. `extra_bytes` is the peak beside inputs, log-probs and
both gradients. `error_over_pytorch` compares values, gradients of hidden states and of the weight
with float32: root mean square errors, over those of log_softmax in the dtype. --chunks tries sizes
of a chunk, as powers of two."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial

import device as devices
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

    def run(score: Score, exact: bool = False) -> list[Tensor]:
        inputs = [hidden_TD, weight_VD]
        if exact:
            inputs = [t.detach().float().requires_grad_() for t in inputs]
        logp_T = score(*inputs, targets_T)
        return [logp_T.detach(), *torch.autograd.grad(logp_T, inputs, grad_T)]

    with torch.no_grad():
        bare = {
            f"products_{n}": measure.seconds(
                partial(products, hidden_TD, weight_VD, n), repeats, device=device
            )
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
    torch.backends.cuda.matmul.allow_tf32 = False  # or float32 would be no truth
    first = run(ours)
    truth = run(log_softmax, exact=True)
    theirs, mine = (rms_errors(outputs, truth) for outputs in (run(log_softmax), first))
    result["error_over_pytorch"] = {
        name: float(a / b) if b else None
        for name, a, b in zip(("value", "hidden", "weight"), mine, theirs)
    }
    del truth
    devices.release(device)
    for name, score in {
        "ours": ours,
        "log_softmax": log_softmax,
        "cross_entropy": cross_entropy,
    }.items():
        peak, outputs = peak_bytes(partial(run, score), device)
        time = measure.seconds(partial(run, score), repeats, device=device)
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


def rms_errors(outputs: Sequence[Tensor], truth: Sequence[Tensor]) -> list[float]:
    return [float((a.double() - b.double()).square().mean().sqrt()) for a, b in zip(outputs, truth)]


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    gpu = devices.default() == "cuda"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, on_cpu, on_gpu in (
        ("shapes", "256x32000,512x4096", "4096x32000"),
        ("tokens", "2048,4096", "4096,24000"),
        ("dtype", "float32", "bfloat16"),
        ("device", "cpu", "cuda"),
        ("repeats", 5, 5),
        ("chunks", "", ""),
        ("out", measure.RESULTS, measure.RESULTS),
    ):
        parser.add_argument(f"--{name}", type=type(on_cpu), default=on_gpu if gpu else on_cpu)
    args = parser.parse_args(argv)
    result: dict[str, object] = {}
    measure.RESULTS = args.out
    keep = partial(measure.write, "head", "python tests/benchmarks/bench_head.py", result)
    own = logprobs.CHUNK_ELEMENTS[args.device]
    sizes = [2 ** int(power) for power in filter(None, args.chunks.split(","))] or [own]
    for shape in args.shapes.split(","):
        for tokens in map(int, args.tokens.split(",")):
            hidden, vocabulary = map(int, shape.split("x"))
            for size in sizes:
                logprobs.CHUNK_ELEMENTS[args.device] = size
                name = f"{tokens} tokens, {shape}" + f", chunks of {size}" * bool(args.chunks)
                dtype = getattr(torch, args.dtype)
                result[name] = measured(
                    tokens, hidden, vocabulary, dtype, args.device, args.repeats
                )
                keep()
    logprobs.CHUNK_ELEMENTS[args.device] = own
    print(keep().read_text(encoding="utf-8"), end="")
    return result


if __name__ == "__main__":
    main()
