"""What only a GPU can show: kernels and head against a float32 oracle, packed rows at 7B width.

    make gpu-check

What a training step must hold is in tests/benchmarks/bench_options.py.

With ZEPHYR_REHEARSE=1 every test runs on a CPU at toy sizes, with the kernels that run there.

The rule of error: against float32 of the same bfloat16 inputs, a kernel errs at most twice as much
as plain PyTorch in bfloat16, its gradients at most three times.
"""

import math
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracle import dense_attention
from torch import Tensor

from zephyr.chat import EncodedPair
from zephyr.model import attention
from zephyr.model.load import load_policy
from zephyr.model.logprobs import LogProbHead, response_logprobs
from zephyr.packing import collate_pairs

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import device as devices
import measure
from live_bytes import peak_bytes

TOY = os.environ.get("ZEPHYR_REHEARSE") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available() and not TOY, reason="no GPU on this machine"),
]
DEVICE = "cpu" if TOY else "cuda"
HEADS = [(4, 2), (2, 2)] if TOY else [(32, 8), (8, 8)]
HEAD_SIZE = 16 if TOY else 128
SCORED, HIDDEN, INNER, VOCABULARY = (96, 32, 64, 400) if TOY else (8192, 4096, 14336, 32000)
WINDOW = 48
SEGMENTS = {
    "even": [(64, 64, 64)] * 3,
    "ragged": [(15, 30, 8), (1, 1, 1), (51, 4, 13), (1, 12, 25)]
    if TOY
    else [(155, 302, 87), (1, 1, 1), (512, 40, 130), (17, 129, 256)],
}


def seconds(call: Callable[[], object], repeats: int = 10) -> float:
    few = (1, 1) if TOY else (repeats, 3)
    return measure.seconds(call, few[0], warm_ups=few[1], device=DEVICE)["median"]


@pytest.fixture(autouse=True)
def _exact_float32() -> None:
    """Or the oracle, computed on the GPU in float32, would be no oracle."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def error(a: Tensor, truth: Tensor) -> float:
    """Root mean square difference: one unlucky element decides nothing."""
    return float((a.double() - truth.double()).square().mean().sqrt())


def usable(kernel: str) -> None:
    reason = attention.unavailable_reason(kernel, torch.bfloat16, DEVICE)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("heads,key_heads", HEADS)
@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("kernel", ["torch_varlen", "sdpa", "flash_attn"])
def test_kernel_against_dense_float32(
    kernel: str,
    segments: str,
    prefix_sharing: bool,
    heads: int,
    key_heads: int,
    window: int | None,
    measured: dict[str, object],
) -> None:
    """Output and gradients under shared prompts (more keys than queries: causal at the bottom
    right), grouped heads and a window. A kernel that aligns at the top left, or drops the window,
    errs by far more than the rule allows."""
    usable(kernel)
    rows = [EncodedPair("", [1] * p, [1] * c, [1] * r) for p, c, r in SEGMENTS[segments]]
    layout = collate_pairs(rows, range(len(rows)), prefix_sharing=prefix_sharing).to(DEVICE).layout
    generator = torch.Generator(DEVICE).manual_seed(0)
    tokens = sum(layout.query_lengths)
    *qkv, grad = (
        torch.randn(tokens, h, HEAD_SIZE, generator=generator, device=DEVICE).bfloat16()
        for h in (heads, key_heads, key_heads, heads)
    )

    def run(function: object, dtype: torch.dtype) -> list[Tensor]:
        query, key, value = (t.to(dtype).requires_grad_() for t in qkv)
        key_MKE, value_MKE = (attention.append_shared_keys(t, layout) for t in (key, value))
        output = function(query, key_MKE, value_MKE, layout, HEAD_SIZE**-0.5, window)
        grads = torch.autograd.grad(output, (query, key, value), grad.to(dtype))
        return [output.detach(), *grads]

    truth, plain = run(dense_attention, torch.float32), run(dense_attention, torch.bfloat16)
    ours = run(attention.KERNELS[kernel], torch.bfloat16)
    errors = {}
    for name, a, b, exact, factor in zip(
        ("output", "query", "key", "value"), ours, plain, truth, (2, 3, 3, 3)
    ):
        errors[name] = error(a, exact) / error(b, exact)
        assert errors[name] <= factor, (
            f"{name}: {error(a, exact)} against PyTorch's {error(b, exact)}"
        )
    measured.setdefault("attention error / PyTorch's in bfloat16", {})[
        f"{kernel} {segments} {heads}/{key_heads} window={window} sharing={prefix_sharing}"
    ] = errors


def test_head_against_float32_and_its_memory(measured: dict[str, object]) -> None:
    """8,192 scored tokens, hidden 4,096, vocabulary 32,000: values and gradients by the rule, and
    the memory beside inputs and gradients. Fails where [tokens, vocabulary] exists, or a sum is
    kept in bfloat16."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    hidden = torch.randn(SCORED, HIDDEN, device=DEVICE, generator=generator).bfloat16()
    hidden.requires_grad_()
    linear = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False, device=DEVICE, dtype=torch.bfloat16)
    head, targets = (
        LogProbHead.from_linear(linear),
        torch.randint(VOCABULARY, (SCORED,), device=DEVICE, generator=generator),
    )

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return (h @ w.t()).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)

    def results(score: object, h: Tensor, w: Tensor) -> list[Tensor]:
        logp = score(h, w)
        return [logp.detach(), *torch.autograd.grad(logp.sum(), (h, w))]

    truth = results(
        plain,
        hidden.detach().float().requires_grad_(),
        linear.weight.detach().float().requires_grad_(),
    )
    theirs = results(plain, hidden, linear.weight)
    devices.release(DEVICE)
    peak, ours = peak_bytes(
        lambda: results(lambda h, _: head(h, targets), hidden, linear.weight), DEVICE
    )
    extra = peak - sum(t.nbytes for t in ours)
    for mine, other, exact, factor in zip(ours, theirs, truth, (2, 3, 3)):
        assert error(mine, exact) <= factor * error(other, exact)
    assert TOY or extra < SCORED * VOCABULARY * 4
    forward_and_backward = seconds(
        lambda: results(lambda h, _: head(h, targets), hidden, linear.weight)
    )
    bare = seconds(lambda: [hidden.detach() @ linear.weight.detach().t() for _ in range(3)])
    measured[f"head, {SCORED} x {HIDDEN} x {VOCABULARY}"] = {
        "extra_bytes": extra,
        "seconds": forward_and_backward,
        "seconds of 3 bare products of that size": bare,
    }


def seven_b_wide(folder: Path, layers: int = 2) -> Path:
    """A random Mistral of 7B width with few layers, and a tokenizer, as a Hugging Face folder."""
    from tiny import tiny_tokenizer
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_attention_heads=HEADS[0][0],
        num_key_value_heads=HEADS[0][1],
        num_hidden_layers=layers,
        vocab_size=VOCABULARY,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(DEVICE):  # a CPU takes ten seconds to draw these weights
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_pairs(count: int, seed: int = 0) -> list[EncodedPair]:
    """Pairs in the lengths of UltraFeedback: prompt 155, responses 300 tokens on average."""
    rng = random.Random(seed)

    def ids(mean: float, spread: float, most: int) -> list[int]:
        return [
            rng.randrange(3, VOCABULARY)
            for _ in range(min(most, 1 + int(rng.lognormvariate(math.log(mean), spread))))
        ]

    scale = 1 / 16 if TOY else 1
    of = [(110 * scale, 1.1, 512), (240 * scale, 0.75, 512), (240 * scale, 0.75, 512)]
    return [EncodedPair(str(i), *(ids(*one) for one in of)) for i in range(count)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seven_b_wide(tmp_path_factory.mktemp("wide") / "model")


@pytest.mark.parametrize("kernel", ["torch_varlen", "flash_attn", *["sdpa"] * TOY])
def test_packed_log_probs_at_7b_width(kernel: str, wide: Path, measured: dict[str, object]) -> None:
    """Shared and unshared rows through the flash kernel against one sequence at a time through
    sdpa, in bfloat16. Fails where a position, a prompt's last token or the window is off: log-probs
    would differ by nats, not by rounding."""
    usable(kernel)
    pairs = random_pairs(4)
    policy = load_policy(wide, attention=kernel, dtype=torch.bfloat16).to(DEVICE)
    plain = load_policy(wide, attention="sdpa", dtype=torch.bfloat16).to(DEVICE)
    with torch.no_grad():
        alone = torch.stack(
            [
                torch.stack(
                    response_logprobs(
                        plain, collate_pairs(pairs, [i], prefix_sharing=False).to(DEVICE)
                    )
                )
                for i in range(4)
            ]
        ).squeeze(-1)
        for prefix_sharing in (True, False):
            row = torch.stack(
                response_logprobs(
                    policy, collate_pairs(pairs, range(4), prefix_sharing=prefix_sharing).to(DEVICE)
                ),
                -1,
            )
            difference = float(((row - alone).abs() / alone.abs()).max())
            measured.setdefault(
                "packed against alone, worst relative difference of a response's log-prob", {}
            )[f"{kernel} sharing={prefix_sharing}"] = difference
            assert difference < 5e-3


@pytest.mark.parametrize("kernel", ["torch_varlen", "flash_attn", *["sdpa"] * TOY])
def test_empty_micro_batch_adds_nothing(kernel: str, wide: Path) -> None:
    """What a rank with nothing left to do computes: log-probs of no response, whose gradient is 0
    and finite. Fails where a kernel refuses it, or divides by its length."""
    usable(kernel)
    policy = load_policy(wide, attention=kernel, dtype=torch.bfloat16).to(DEVICE)
    empty = collate_pairs(random_pairs(2), []).to(DEVICE)
    chosen, rejected = response_logprobs(policy, empty)
    assert len(chosen) == len(rejected) == 0
    (policy(empty).sum() + chosen.sum() + rejected.sum()).backward()
    grads = [p.grad for p in policy.parameters() if p.grad is not None]
    assert grads and all(not grad.any() for grad in grads)
