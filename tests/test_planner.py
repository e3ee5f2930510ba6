"""Useful work is counted as the paper and pencil count it, for Mistral-7B; limits are named."""
import pytest
import torch
from transformers import MistralConfig

from zephyr.config import ConfigError
from zephyr.packing import plan_epochs
from zephyr.training import planner

MISTRAL_7B = MistralConfig()
LAYERS = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)     # q, o; k, v; MLP; norms


def test_forward_of_mistral_7b_by_hand() -> None:
    """13.96 GFLOP a token in the layers, 0.262 in the head, 0.268 of attention at 1,024 tokens. Fails for a factor of two, or
    a head counted on tokens that are not scored."""
    assert planner.forward_flops(MISTRAL_7B, LAYERS, 1, 0, 0) == pytest.approx(13.959e9, rel=1e-3)
    assert planner.forward_flops(MISTRAL_7B, 0, 1, 1, 0) == pytest.approx(0.262e9, rel=1e-2)
    assert planner.text_flops(MISTRAL_7B, 0, 1024, 0) / 1024 == pytest.approx(0.268e9, rel=1e-2)


def test_sharing_counts_the_prompt_once() -> None:
    """155, 302 and 301 tokens, the means of UltraFeedback: 1.20 times less work. Fails where a shared prompt counts twice."""
    shared, apart = (planner.pair_flops(MISTRAL_7B, LAYERS, 155, 302, 301, sharing) for sharing in (True, False))
    assert apart / shared == pytest.approx(1.20, abs=0.01)
    by_hand = 2 * LAYERS * (155 + 302 + 301) + 2 * 4096 * 32000 * 603 + 4 * 4096 * 32 * (457**2 / 2 + 301 * 155 + 301**2 / 2)
    assert shared == pytest.approx(by_hand, rel=1e-9)


def test_mfu_is_useful_work_over_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is three forwards. Fails for another convention, or a figure on a device whose peak is unknown."""
    assert planner.mfu(1e12, 1.0, 1) is None or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert planner.mfu(989.4e12 / 3, 2.0, 1) == pytest.approx(0.5) and planner.mfu(989.4e12 / 3, 1.0, 4) == pytest.approx(0.25)


def test_the_longest_example_is_named() -> None:
    """Fails where a too small budget is found by an index error, or in the middle of a run."""
    planner.require_budget([3, 9], ["a", "b"], 9)
    with pytest.raises(ConfigError, match=r"at least 9 is wanted, which the longest example \(b\) takes, got 8"):
        planner.require_budget([3, 9], ["a", "b"], 8)


def test_the_plan_is_told_in_a_line() -> None:
    """Steps, tokens, micro-batches, filling and imbalance, each by hand. Fails where the log would mislead."""
    plan = plan_epochs([4, 4, 8], per_step=3, epochs=2, ranks=2, budget_tokens=8, shuffle=False)
    text = planner.describe(plan, 2)
    assert "2 steps, 3 examples in the first, 32 tokens in all; 2 ranks, 1.0 micro-batches a step 100.0% full" in text
    assert "1.000 x the mean work" in text
