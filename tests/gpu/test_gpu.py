"""What only a GPU can show: kernels against a float32 oracle, ln 2 in bfloat16, a DPO step at 7B
width under ZeRO-3.

    make gpu-check GPU_PYTHON=python3

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
from zephyr.model.load import checkpoint_activations, load_policy
from zephyr.model.logprobs import LogProbHead, response_logprobs
from zephyr.packing import collate_pairs

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import measure

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
GPU = "cuda"
SEGMENTS = {
    "even": [(64, 64, 64)] * 3,
    "ragged": [(155, 302, 87), (1, 1, 1), (512, 40, 130), (17, 129, 256)],
}


def seconds(call: Callable[[], object], repeats: int = 10) -> float:
    return measure.seconds(call, repeats, warm_ups=3)["median"]


def error(a: Tensor, truth: Tensor) -> float:
    """Root mean square difference: one unlucky element decides nothing."""
    return float((a.double() - truth.double()).square().mean().sqrt())


def usable(kernel: str) -> None:
    reason = attention.unavailable_reason(kernel, torch.bfloat16, GPU)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("window", [None, 48])
@pytest.mark.parametrize("heads,key_heads", [(32, 8), (8, 8)])
@pytest.mark.parametrize("prefix_sharing", [True, False])
@pytest.mark.parametrize("segments", SEGMENTS)
@pytest.mark.parametrize("kernel", ["torch_varlen", "flash_attn", "sdpa"])
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
    layout = collate_pairs(rows, range(len(rows)), prefix_sharing=prefix_sharing).to(GPU).layout
    generator = torch.Generator(GPU).manual_seed(0)
    tokens = sum(layout.query_lengths)
    *qkv, grad = (
        torch.randn(tokens, h, 128, generator=generator, device=GPU).bfloat16()
        for h in (heads, key_heads, key_heads, heads)
    )

    def run(function: object, dtype: torch.dtype) -> list[Tensor]:
        query, key, value = (t.to(dtype).requires_grad_() for t in qkv)
        key_MKE, value_MKE = (attention.append_shared_keys(t, layout) for t in (key, value))
        output = function(query, key_MKE, value_MKE, layout, 128**-0.5, window)
        grads = torch.autograd.grad(output, (query, key, value), grad.to(dtype))
        return [output.detach(), *grads]

    assert not torch.backends.cuda.matmul.allow_tf32  # or the oracle would be no oracle
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
    generator = torch.Generator(GPU).manual_seed(0)
    hidden = torch.randn(8192, 4096, device=GPU, generator=generator).bfloat16().requires_grad_()
    linear = torch.nn.Linear(4096, 32000, bias=False, device=GPU, dtype=torch.bfloat16)
    head, targets = (
        LogProbHead.from_linear(linear),
        torch.randint(32000, (8192,), device=GPU, generator=generator),
    )

    def plain(h: Tensor, w: Tensor) -> Tensor:
        return (h @ w.t()).float().log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)

    def results(score: object, h: Tensor, w: Tensor) -> list[Tensor]:
        logp = score(h, w)
        return [logp.detach(), *torch.autograd.grad(logp.sum(), (h, w))]

    torch.backends.cuda.matmul.allow_tf32 = False
    truth = results(
        plain,
        hidden.detach().float().requires_grad_(),
        linear.weight.detach().float().requires_grad_(),
    )
    theirs = results(plain, hidden, linear.weight)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    ours = results(lambda h, _: head(h, targets), hidden, linear.weight)
    extra = torch.cuda.max_memory_allocated() - before - sum(t.nbytes for t in ours)
    for mine, other, exact, factor in zip(ours, theirs, truth, (2, 3, 3)):
        assert error(mine, exact) <= factor * error(other, exact)
    assert extra < 8192 * 32000 * 4
    forward_and_backward = seconds(
        lambda: results(lambda h, _: head(h, targets), hidden, linear.weight)
    )
    bare = seconds(lambda: [hidden.detach() @ linear.weight.detach().t() for _ in range(3)])
    measured["head, 8192 x 4096 x 32000"] = {
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
        hidden_size=4096,
        intermediate_size=14336,
        num_attention_heads=32,
        num_key_value_heads=8,
        num_hidden_layers=layers,
        vocab_size=32000,
        sliding_window=4096,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.device(GPU):  # a CPU takes ten seconds to draw these weights
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def random_pairs(count: int, seed: int = 0) -> list[EncodedPair]:
    """Pairs in the lengths of UltraFeedback: prompt 155, responses 300 tokens on average."""
    rng = random.Random(seed)

    def ids(mean: float, spread: float, most: int) -> list[int]:
        return [
            rng.randrange(3, 32000)
            for _ in range(min(most, 1 + int(rng.lognormvariate(math.log(mean), spread))))
        ]

    return [
        EncodedPair(str(i), ids(110, 1.1, 512), ids(240, 0.75, 512), ids(240, 0.75, 512))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return seven_b_wide(tmp_path_factory.mktemp("wide") / "model")


@pytest.mark.parametrize("kernel", ["torch_varlen", "flash_attn"])
def test_packed_log_probs_at_7b_width(kernel: str, wide: Path, measured: dict[str, object]) -> None:
    """Shared and unshared rows through the flash kernel against one sequence at a time through
    sdpa, in bfloat16. Fails where a position, a prompt's last token or the window is off: log-probs
    would differ by nats, not by rounding."""
    usable(kernel)
    pairs = random_pairs(4)
    policy = load_policy(wide, attention=kernel, dtype=torch.bfloat16).to(GPU)
    plain = load_policy(wide, attention="sdpa", dtype=torch.bfloat16).to(GPU)
    with torch.no_grad():
        alone = torch.stack(
            [
                torch.stack(
                    response_logprobs(
                        plain, collate_pairs(pairs, [i], prefix_sharing=False).to(GPU)
                    )
                )
                for i in range(4)
            ]
        ).squeeze(-1)
        for prefix_sharing in (True, False):
            row = torch.stack(
                response_logprobs(
                    policy, collate_pairs(pairs, range(4), prefix_sharing=prefix_sharing).to(GPU)
                ),
                -1,
            )
            difference = float(((row - alone).abs() / alone.abs()).max())
            measured.setdefault(
                "packed against alone, worst relative difference of a response's log-prob", {}
            )[f"{kernel} sharing={prefix_sharing}"] = difference
            assert difference < 5e-3


@pytest.mark.skipif(
    os.environ.get("DS_ACCELERATOR") != "cuda",
    reason="DS_ACCELERATOR is not cuda: `make gpu-check` sets it",
)
def test_dpo_step_at_7b_width_under_zero3(
    wide: Path, tmp_path: Path, measured: dict[str, object]
) -> None:
    """The engine, reference, loss and optimiser of a real run on one GPU: the first loss is ln 2 in
    bfloat16, the loss falls, gradients are finite. Fails where reference and policy take different
    paths, or ZeRO-3 loses a micro-batch."""
    pytest.importorskip(
        "deepspeed",
        reason="deepspeed is not installed here; it is pure Python, a wheel can be carried",
    )
    from functools import partial

    from zephyr import losses, reference
    from zephyr.config import Hardware, Optim
    from zephyr.model.memory import step_memory
    from zephyr.packing import plan_epochs
    from zephyr.training.engine import Engine
    from zephyr.training.tolerance import GRADIENT_TOLERANCE
    from zephyr.verify.preflight import gradient_difference

    kernel = (
        "flash_attn"
        if attention.unavailable_reason("flash_attn", torch.bfloat16, GPU) is None
        else "torch_varlen"
    )
    engine = Engine(Hardware(attention=kernel, tokens_per_micro_batch=8192), 0)
    try:
        engine.initialize(
            partial(load_policy, wide, attention=kernel, dtype=torch.bfloat16), Optim()
        )
        pairs = random_pairs(32)
        lengths = [len(p.prompt_ids) + len(p.chosen_ids) + len(p.rejected_ids) for p in pairs]
        plan = plan_epochs(lengths, per_step=32, epochs=1, ranks=1, budget_tokens=8192)
        collate = partial(collate_pairs, pairs)
        frozen = reference.reference_logprobs(
            engine,
            pairs,
            lengths,
            first_epoch=plan,
            collate=collate,
            weights="random",
            directory=str(tmp_path),
        )
        means: list[float] = []
        micro_tokens = max(sum(lengths[i] for i in micro) for micro in plan.steps[0].ranks[0])
        held = torch.cuda.memory_allocated()

        def step() -> None:
            micro_batches = [*plan.steps[0].ranks[0], []]
            total = torch.zeros((), device=GPU)
            for m, indices in enumerate(
                micro_batches
            ):  # the last is empty, as on a rank with nothing left to do
                batch = collate(indices).to(GPU)
                loss = losses.dpo(
                    *response_logprobs(engine, batch), *frozen(batch), beta=0.1
                ).loss_P.sum()
                engine.backward(loss / len(pairs), last=m == len(micro_batches) - 1)
                total += loss.detach()
            assert math.isfinite(engine.step(1e-5)) and all(
                0 < part < math.inf for part in engine.update_and_weight_sq_norms(1e-5).tolist()
            )
            means.append(float(total) / len(pairs))

        for policy in (False, True, "mlp"):
            engine.policy.lm.gradient_checkpointing_disable()
            checkpoint_activations(engine.policy.lm, policy)
            torch.cuda.reset_peak_memory_stats()
            taken = seconds(step, repeats=5)
            measured[
                "DPO step, 7B width, 2 layers, 32 pairs, ZeRO-3 on one GPU, "
                f"activation_checkpointing {policy}"
            ] = {
                "attention": kernel,
                "tokens": sum(lengths),
                "micro_batches": len(plan.steps[0].ranks[0]),
                "seconds": taken,
                "peak_bytes": torch.cuda.max_memory_allocated(),
                "bytes_beside_the_model": torch.cuda.max_memory_allocated() - held,
                "predicted": step_memory(
                    engine.policy.lm.config,
                    engine.num_parameters,
                    ranks=1,
                    tokens=micro_tokens,
                    hardware=Hardware(activation_checkpointing=policy),
                    zero=engine.settings["zero_optimization"],
                    device=GPU,
                ),
            }
        assert (
            abs(means[0] - math.log(2)) < 1e-3 and means[7] < 0.5 and all(map(math.isfinite, means))
        )
        measured["losses of those steps"] = means
        assert (
            gradient_difference(engine, collate(plan.steps[0].ranks[0][0]).to(GPU))
            < GRADIENT_TOLERANCE["bfloat16"]
        )
    finally:
        engine.close()
