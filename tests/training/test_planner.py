"""Useful work is counted as the paper and pencil count it, for Mistral-7B; limits are named."""

import gc
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig

from zephyr.chat import EncodedPair
from zephyr.config import ConfigError, Hardware
from zephyr.model import attention, memory
from zephyr.model.load import Policy
from zephyr.model.logprobs import LogProbHead
from zephyr.model.recompute import checkpoint_activations
from zephyr.packing import collate_pairs, plan_epochs
from zephyr.training import flops, planner

MISTRAL_7B = MistralConfig()
LAYERS = 32 * (
    2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
)  # q, o; k, v; MLP; norms


def test_forward_of_mistral_7b_by_hand() -> None:
    """13.96 GFLOP a token in the layers, 0.262 in the head, 0.268 of attention at 1,024 tokens.
    Fails for a factor of two, or a head counted on tokens that are not scored."""
    assert flops.forward_flops(MISTRAL_7B, LAYERS, 1, 0, 0) == pytest.approx(13.959e9, rel=1e-3)
    assert flops.forward_flops(MISTRAL_7B, 0, 1, 1, 0) == pytest.approx(0.262e9, rel=1e-2)
    assert flops.text_flops(MISTRAL_7B, 0, 1024, 0) / 1024 == pytest.approx(0.268e9, rel=1e-2)
    wide = MistralConfig(head_dim=256)  # as Gemma's: heads x size is not hidden
    assert flops.text_flops(wide, 0, 1024, 0) == 2 * flops.text_flops(MISTRAL_7B, 0, 1024, 0)


def test_sharing_counts_the_prompt_once() -> None:
    """155, 302 and 301 tokens, the means of UltraFeedback: 1.20 times less work. Fails where a
    shared prompt counts twice."""
    shared, apart = (
        flops.pair_flops(MISTRAL_7B, LAYERS, 155, 302, 301, sharing) for sharing in (True, False)
    )
    assert apart / shared == pytest.approx(1.20, abs=0.01)
    by_hand = (
        2 * LAYERS * (155 + 302 + 301)
        + 2 * 4096 * 32000 * 603
        + 4 * 4096 * 32 * (457**2 / 2 + 301 * 155 + 301**2 / 2)
    )
    assert shared == pytest.approx(by_hand, rel=1e-9)
    by_hand = (
        2 * LAYERS * (457 + 456)
        + 2 * 4096 * 32000 * 603
        + 4 * 4096 * 32 * (457**2 / 2 + 456**2 / 2)
    )
    assert apart == pytest.approx(by_hand, rel=1e-9)


def test_mfu_is_useful_work_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is three forwards. Fails for another convention, or a figure on a device whose peak
    is unknown."""
    assert flops.mfu(1e12, 1.0, 1) is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert flops.mfu(989.4e12 / 3, 2.0, 1) == pytest.approx(0.5) and flops.mfu(
        989.4e12 / 3, 1.0, 4
    ) == pytest.approx(0.25)


def test_the_longest_example_is_named() -> None:
    """Fails where a too small budget is found by an index error, or in the middle of a run."""
    planner.require_budget([3, 9], ["a", "b"], 9)
    with pytest.raises(
        ConfigError, match=r"at least 9 is wanted, .* the longest example \(b\), got 8"
    ):
        planner.require_budget([3, 9], ["a", "b"], 8)


def test_the_plan_is_told_in_a_line() -> None:
    """Steps, tokens, micro-batches, filling and imbalance, each by hand. Fails where the log would
    mislead, or reports how full the only micro-batch of a step is, which alarms without reason."""
    plan = plan_epochs([4, 4, 8], per_step=3, epochs=2, ranks=2, budget_tokens=8, shuffle=False)
    text = planner.describe_plan(plan, 2)
    assert text == (
        "plan: 2 steps, 3 examples in the first, 32 tokens in all; 2 ranks, 1.0 micro-batches a "
        "step on each; the most loaded rank has 1.000 x the mean work"
    )
    plan = plan_epochs([4, 4, 6], per_step=3, epochs=2, ranks=2, budget_tokens=8, shuffle=False)
    text = planner.describe_plan(plan, 2)
    assert f"{plan.imbalance:.3f} x" in text and plan.imbalance > 1
    plan = plan_epochs([4, 4, 6], per_step=3, epochs=2, ranks=1, budget_tokens=8, shuffle=False)
    text = planner.describe_plan(plan, 1)
    assert "; 1 rank, 2.0 micro-batches a step on each; " in text
    assert "a micro-batch holds 7 tokens on average, 87.5% of the budget" in text
    assert "mean work" not in text
    assert "; 4 ranks, 4 of them to a row, 2.0 micro-batches" in planner.describe_plan(plan, 4)


GPU = Hardware()  # bfloat16, flash attention


def test_activations_of_mistral_7b_by_hand() -> None:
    """0.26 MB a token of the layers' inputs; with norms and attention 1.71; with products and
    attention 3.02; of Hugging Face's eager modules 6.43: one copy a norm less than the 6.75 that is
    published, for in bfloat16 autograd saves no norm's input beside its float32 copy; of fused
    kernels 4.46. Fails where a policy forgets a tensor, or counts one of every layer once."""
    of = {
        policy: 32
        * memory.layer_bytes(MISTRAL_7B, replace(GPU, activation_checkpointing=policy))
        / 1e6
        for policy in (False, "mlp", "elementwise", True)
    }
    assert of[True] == pytest.approx(0.262, abs=0.001) and of["mlp"] == pytest.approx(
        1.708, abs=0.001
    )
    assert of["elementwise"] == 32 * 94_336 / 1e6
    assert of[False] == pytest.approx(6.75, rel=0.06)
    fused = replace(GPU, activation_checkpointing=False, fused="triton")
    assert memory.layer_bytes(MISTRAL_7B, fused) == 139_400
    mlp = replace(GPU, activation_checkpointing="mlp")
    assert (
        memory.layer_bytes(MISTRAL_7B, mlp, keys=2.0) - memory.layer_bytes(MISTRAL_7B, mlp)
        == 2 * 2 * 1024
    )


@pytest.mark.parametrize("policy", [False, "mlp", "elementwise", True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_keeps_what_is_predicted(dtype: str, policy: bool | str) -> None:
    """Bytes alive between forward and backward of two layers more, on the CPU, a packed row of
    shared prompts. Fails where transformers' modules save another tensor than the prediction knows
    of."""
    batch = collate_pairs(
        [EncodedPair(str(i), [1] * 90, [5] * 60, [6] * 50) for i in range(3)], range(3)
    )
    hardware = Hardware(attention="sdpa", dtype=dtype, activation_checkpointing=policy)
    alive = {}
    for layers in (1, 3):
        lm = MistralConfig(
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            head_dim=16,
            vocab_size=384,
        )
        model = Policy(
            AutoModelForCausalLM.from_config(
                lm,
                dtype=getattr(torch, dtype),
                attn_implementation=attention.register_kernel("sdpa"),
            )
        )
        model.lm.set_output_embeddings(LogProbHead.from_linear(model.lm.get_output_embeddings()))
        checkpoint_activations(model.lm.train(), policy)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            logp_T = model(batch)
        alive[layers] = sum(
            event.nbytes()
            for event in profile.profiler.kineto_results.events()
            if event.name() == "[memory]"
        )
        del logp_T, model
        gc.collect()  # or it would go while the next one is measured
    tokens, item = len(batch.tokens_N), 2 if dtype == "bfloat16" else 4
    masks = (
        3 * 50 * (90 + 50) * item if policy in (False, "mlp") else 0
    )  # of the rejected responses, which sdpa alone needs
    per_token = ((alive[3] - alive[1]) / 2 - masks) / tokens
    predicted = memory.layer_bytes(lm, hardware, keys=sum(batch.layout.key_lengths) / tokens)
    assert per_token == pytest.approx(predicted, rel=0.05)


def test_memory_of_a_rank_by_hand() -> None:
    """Moments and the update's gradient of 7.24e9 parameters on 8 ranks; offloaded moments; nothing
    gathered on one rank; gradients in bfloat16, which are joined before they are widened. Fails
    where a share is counted whole, or a whole as a share."""

    def parts(ranks: int, gradients: str = "float32", **zero: object) -> dict[str, int]:
        return memory.step_memory(
            MISTRAL_7B,
            7_241_732_096,
            ranks=ranks,
            tokens=8192,
            hardware=GPU,
            zero=zero,
            device="cuda",
            gradient_dtype=gradients,
        )

    share = 7_241_732_096 // 8
    assert parts(8)["moments"] == 8 * share and parts(8)["update"] == 4 * share
    assert parts(1)["moments"] == 8 * 7_241_732_096 and parts(1)["update"] == 4 * 10**9
    assert parts(1, "bfloat16")["update"] == 6 * 10**9
    offloaded = parts(8, offload_optimizer={})
    assert offloaded["moments"] == 4 * share and offloaded["update"] == 0
    assert parts(8)["gathered"] == 2 * 10**9 and parts(1)["gathered"] == 0
    assert parts(1, offload_param={})["gathered"] == 2 * 10**9  # from the CPU
    kept = replace(GPU, activation_checkpointing=False)
    more = memory.step_memory(
        MISTRAL_7B, 7_241_732_096, ranks=8, tokens=8192, hardware=kept, zero={}, device="cuda"
    )["activations"]
    assert 50e9 < more < 60e9 and parts(8)["activations"] < 5e9
    assert parts(8)["head"] < 1.7e9


def test_the_peak_is_of_the_update_or_of_a_micro_batch() -> None:
    """Fails where both are added, or one is left out."""
    parts = {"moments": 100, "update": 50, "gathered": 1, "activations": 20, "head": 3}
    assert memory.step_peak(parts) == 150
    assert memory.step_peak({**parts, "activations": 60}) == 164


@pytest.mark.parametrize(
    "dtype,device,scored,head",
    [
        ("bfloat16", "cuda", 20, 800 + 6 * 240 + 2000),
        ("bfloat16", "cpu", 20, 800 + 6 * 240 + 800 + 2000),
        ("bfloat16", "cuda", None, 2000 + 6 * 540 + 2000),
        ("float32", "cpu", 20, 800 + 4 * 240 + 3200),
    ],
)
def test_memory_of_a_head_by_hand(dtype: str, device: str, scored: int | None, head: int) -> None:
    """50 tokens of size 4, 10 words: exponentials in float32; a chunk's gradient and the weight's,
    each in float32, in bfloat16 beside a copy; on a CPU that chunk once more; ten bytes of each
    number of a token's hidden state, 16 in float32. Fails where tokens that are not scored count,
    or the CPU's copy does on a GPU or in float32."""
    lm = MistralConfig(
        hidden_size=4,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=10,
    )
    found = memory.step_memory(
        lm,
        1000,
        ranks=1,
        tokens=50,
        scored=scored,
        hardware=replace(GPU, dtype=dtype),
        zero={},
        device=device,
    )
    assert found["head"] == head
