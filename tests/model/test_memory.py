"""Predicted bytes against counted ones, and against those of a GPU."""

import gc
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedModel

from zephyr.chat import EncodedPair
from zephyr.config import Hardware
from zephyr.model import attention, fused
from zephyr.model.memory import layer_bytes, step_memory, step_peak
from zephyr.model.recompute import checkpoint_activations
from zephyr.packing import PackedBatch, collate_pairs, plan_epochs

TESTS = Path(__file__).parents[1]
sys.path.append(str(TESTS / "benchmarks"))
from lengths import dialogue_lengths, pair_lengths  # noqa: E402
from live_bytes import LiveBytes  # noqa: E402

POLICIES = [False, "mlp", "elementwise", True]
SEVEN_B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
Lengths = tuple[int, int, int]


def mistral(layers: int, **sizes: int) -> MistralConfig:
    return MistralConfig(num_hidden_layers=layers, vocab_size=384, **sizes)


def row_of(pairs: Sequence[Lengths]) -> PackedBatch:
    examples = [EncodedPair(str(i), [1] * p, [1] * c, [1] * r) for i, (p, c, r) in enumerate(pairs)]
    return collate_pairs(examples, range(len(pairs)))


def keys_a_token(batch: PackedBatch) -> float:
    return sum(batch.layout.key_lengths) / len(batch.tokens_N)


def kept_bytes(make: Callable[[int], PreTrainedModel], batch: PackedBatch) -> float:
    """Bytes a token that are alive between forward and backward of one layer more."""
    alive = {}
    for layers in (1, 2):
        lm = make(layers).train()
        with LiveBytes() as watch:
            output = lm.base_model(
                input_ids=batch.tokens_N[None],
                position_ids=batch.positions_N[None],
                attention_mask=torch.empty(1, 1, 0, 0, device=batch.tokens_N.device),
                use_cache=False,
                layout=batch.layout,
            )
        gc.collect()
        alive[layers] = watch.live
        del output, lm
    return (alive[2] - alive[1]) / len(batch.tokens_N)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_layer_of_7b_keeps_what_is_predicted(policy: bool | str) -> None:
    """Counted on the meta device, with the kernel of a GPU and shared prompts; rotary angles apart
    (256 bytes in all). Fails where a tensor is forgotten, kept twice, or saved by a module that is
    computed again."""
    batch = row_of([(155, 302, 301)] * 10).to("meta")
    hardware = Hardware(attention="torch_varlen", activation_checkpointing=policy)

    def make(layers: int) -> PreTrainedModel:
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(
                mistral(layers, **SEVEN_B),
                dtype=torch.bfloat16,
                attn_implementation=attention.register_kernel("torch_varlen"),
            )
        checkpoint_activations(lm, policy)
        return lm

    keys = sum(batch.layout.key_lengths) / 7580
    predicted = layer_bytes(mistral(1, **SEVEN_B), hardware, keys)
    assert kept_bytes(make, batch) == pytest.approx(predicted, abs=16)


@pytest.mark.parametrize("policy", [False, "elementwise"])
def test_a_fused_layer_keeps_what_is_predicted(policy: bool | str) -> None:
    """Our Triton kernels, by the interpreter on the CPU. Fails where a kernel saves more than its
    inputs, or a policy keeps what a kernel saves anyway."""
    pytest.importorskip("triton", reason="triton is not installed: pip install triton")
    batch = row_of([(3, 4, 5)] * 2)
    hardware = Hardware(attention="sdpa", activation_checkpointing=policy, fused="triton")

    def make(layers: int) -> PreTrainedModel:
        lm = AutoModelForCausalLM.from_config(
            mistral(layers, **SMALL),
            dtype=torch.bfloat16,
            attn_implementation=attention.register_kernel("sdpa"),
        )
        fused.fuse(lm, "triton")
        checkpoint_activations(lm, policy)
        return lm

    masks = 2 * 5 * (3 + 5) * 2 / len(batch.tokens_N)  # of rejected responses, sdpa's alone
    kept = kept_bytes(make, batch) - (masks if policy in (False, "mlp") else 0)
    predicted = layer_bytes(mistral(1, **SMALL), hardware, keys_a_token(batch))
    # The interpreter leaves a few bytes.
    assert kept == pytest.approx(predicted, rel=0.02, abs=12)


class Row(NamedTuple):
    """A micro-batch in numbers."""

    tokens: int
    scored: int
    keys: int


def rows_of(kind: str, budget: int, documents: int) -> list[Row]:
    """The micro-batches of a cell of tests/benchmarks/bench_step.py."""
    examples = [Row(size, size - 1, size) for size in dialogue_lengths(documents)]
    if kind != "sft":
        drawn = pair_lengths(kind, 32, longest=1024)
        examples = [Row(p + c + r, c + r, 2 * p + c + r) for p, c, r in drawn]
    plan = plan_epochs(
        [example.tokens for example in examples],
        per_step=len(examples),
        epochs=1,
        ranks=1,
        budget_tokens=budget,
        window_tokens=2048 if kind == "sft" else None,
    )
    return [
        Row(*(sum(column) for column in zip(*(examples[i] for i in micro))))
        for micro in plan.steps[0].ranks[0]
    ]


def predicted_parts(
    shape: MistralConfig, parameters: int, row: Row, policy: bool | str
) -> dict[str, int]:
    """`step_memory` of a micro-batch on one GPU."""
    return step_memory(
        shape,
        parameters,
        ranks=1,
        tokens=row.tokens,
        hardware=Hardware(activation_checkpointing=policy),
        zero={},
        device="cuda",
        scored=row.scored,
        keys=row.keys / row.tokens,
    )


def test_a_step_of_7b_takes_what_an_h200_measured() -> None:
    """Peak of the first step of all 32 layers above what the engine holds, Adam's moments included,
    within 5 %: `true` at 8k and 16k tokens, `mlp` at 11k. Fails where the working set of a layer's
    backward or the head is forgotten."""
    policies: dict[str, bool | str] = {"all": True, "mlp": "mlp"}
    seen = 0
    for path in sorted((TESTS / "benchmarks/results").glob("step_7B*.gpu.json")):
        result = json.loads(path.read_text())["result"]
        shape = MistralConfig(**result["shape"])
        for name, cell in result["cells"].items():
            kind, budget, what = (part.rpartition("=")[2] for part in name.split(":"))
            if what not in policies:
                continue
            rows = rows_of(kind, int(budget), int(result["settings"]["documents"]))
            assert len(rows) == cell["micro_batches"]
            assert sum(row.tokens for row in rows) == cell["tokens"]
            parts = [
                predicted_parts(shape, result["parameters"], row, policies[what]) for row in rows
            ]
            found = max(part["activations"] + part["head"] for part in parts)
            assert found == pytest.approx(cell["step_peak_bytes"], rel=0.05), (path.name, name)
            seen += 1
    assert seen >= 5


def test_two_layers_take_what_an_h200_measured() -> None:
    """Of 7B's width, within 5 %, Adam's moments new. `false` peaks in the backward, `true` and
    `mlp` in the update. Fails where both are added, though they are never held at once."""
    path = TESTS / "gpu/results/NVIDIA-H200-torch-2.11.0.json"
    measured = json.loads(path.read_text())
    shape = mistral(2, **SEVEN_B)
    shape.vocab_size = 32000
    row = Row(tokens=8111, scored=6281, keys=9941)  # the fullest of its three micro-batches
    peaks = {}
    for policy in (False, True, "mlp"):
        found = measured[
            "DPO step, 7B width, 2 layers, 32 pairs, ZeRO-3 on one GPU, "
            f"activation_checkpointing {policy}"
        ]
        parameters = found["predicted"]["states"] // 12
        parts = predicted_parts(shape, parameters, row, policy)
        assert step_peak(parts) == pytest.approx(found["bytes_beside_the_model"], rel=0.05), policy
        peaks[policy] = step_peak(parts) == parts["moments"] + parts["update"]
    assert peaks == {False: False, True: True, "mlp": True}
