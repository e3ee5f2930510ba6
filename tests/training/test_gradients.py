"""Settings that change how gradients are gathered and summed, not what they are: on one and on two
ranks, each trajectory by the real engine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import PAIRS, micro_batch
from processes import Launch
from torch import Tensor

from zephyr.model.load import load_policy
from zephyr.packing import collate_pairs

POLICIES = (True, "mlp", "elementwise", False)
RANKS = (1, 2)
Found = dict[str, dict[str, Any]]  # what gradients.py writes


def cases(folder: Path, ranks: int) -> dict[str, dict[str, Any]]:
    """All trajectories of so many processes."""
    plain = {"dtype": "float32", "gather": "layer"}
    found: dict[str, dict[str, Any]] = {}
    for gather in ("layer", "module"):
        for policy in POLICIES:
            hardware = {**plain, "gather": gather, "activation_checkpointing": policy}
            found[f"{gather} {policy}"] = {"hardware": hardware, "micro_batches": 2, "steps": 1}
    for size in [size for size in (2, 4) if size <= ranks]:
        for policy in POLICIES:
            hardware = {**plain, "sequence_parallel": size, "activation_checkpointing": policy}
            found[f"{size} together {policy}"] = {
                "hardware": hardware,
                "micro_batches": 2,
                "steps": 1,
            }
    found["skipped"] = {"hardware": plain, "micro_batches": 1, "steps": 2, "skip_mlp": 1}
    one = {"micro_batches": 1, "steps": 3}
    for dtype, count in (("float32", 1), ("auto", 1), ("bfloat16", 4), ("auto", 4)):
        found[f"{dtype} {count}"] = {
            "hardware": {"gradient_dtype": dtype},
            **one,
            "micro_batches": count,
        }
    for dtype, before in (("float32", "auto"), ("bfloat16", "float32")):
        state = [str(folder / before), 2]
        found[f"{before} 1"]["save"] = state
        hardware = {"gradient_dtype": dtype}
        found[f"resumed in {dtype}"] = {**one, "hardware": hardware, "steps": 1, "load": state}
    return found


@pytest.fixture(scope="module")
def found(
    tiny: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Found]:
    """The trajectories on so many ranks."""
    made: dict[int, Found] = {}

    def get(ranks: int) -> Found:
        if ranks not in made:
            folder = tmp_path_factory.mktemp("gradients")
            (folder / "cases.json").write_text(json.dumps(cases(folder, ranks)))
            arguments = (tiny, folder / "cases.json", folder / "out.pt")
            launch("tests/training/gradients.py", *arguments, ranks=ranks)
            made[ranks] = torch.load(folder / "out.pt")
        return made[ranks]

    return get


def plain_gradients(model: Path, ranks: int, count: int) -> dict[str, Tensor]:
    """By autograd alone, in float32: summed over ranks, then over micro-batches."""
    policy = load_policy(model)
    named = dict(policy.lm.named_parameters())
    total: list[Tensor] = []
    for m in range(count):
        of_ranks = []
        for rank in range(ranks):
            batch = collate_pairs(PAIRS, micro_batch(rank, ranks, m, count))
            loss = policy(batch).sum() / len(PAIRS)
            of_ranks.append(torch.autograd.grad(loss, list(named.values())))
        summed = [sum(of_one[1:], of_one[0]) for of_one in zip(*of_ranks)]
        total = [a + b for a, b in zip(total, summed)] if total else summed
    return dict(zip(named, total))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("ranks", RANKS)
def test_a_gathered_layer_has_the_gradients_of_plain_pytorch(
    ranks: int, policy: bool | str, found: Callable[[int], Found], tiny: Path
) -> None:
    """To the bit where whole layers are gathered, to rounding where single modules are: DeepSpeed's
    hooks inside a layer change the order in which autograd adds a hidden state's gradients. Fails
    where a layer's gradients are taken before they are complete, a micro-batch or a rank is lost,
    or recomputation meets weights that are not there."""
    wanted = plain_gradients(tiny, ranks, 2)
    layer, module = (
        found(ranks)[f"{gather} {policy}"]["gradients"][0] for gather in ("layer", "module")
    )
    for name, gradient in wanted.items():
        assert gradient.any() and torch.equal(layer[name], gradient), name
        assert (module[name] - gradient).norm() <= 2e-6 * gradient.norm(), name


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize(
    "ranks, size",
    [(2, 2), *(pytest.param(4, size, marks=pytest.mark.long) for size in (2, 4))],
)
def test_ranks_that_compute_a_row_together_have_the_gradients_of_plain_pytorch(
    ranks: int, size: int, policy: bool | str, found: Callable[[int], Found], tiny: Path
) -> None:
    """To rounding: each rank adds up the gradients of its own tokens. Fails where a row is counted
    once for each of its ranks, where a key's gradient from other ranks' queries is lost, where
    recomputation exchanges in another order, or where a token that pads a share has a gradient. On
    4 ranks the two key heads are copied."""
    wanted = plain_gradients(tiny, ranks // size, 2)
    together = found(ranks)[f"{size} together {policy}"]["gradients"][0]
    for name, gradient in wanted.items():
        assert gradient.any(), name
        assert (together[name] - gradient).norm() <= 2e-6 * gradient.norm(), name


@pytest.mark.parametrize("ranks", RANKS)
def test_a_weight_that_a_step_does_not_use_has_no_gradient_there(
    ranks: int, found: Callable[[int], Found]
) -> None:
    """As an expert that no token was sent to: the MLP of the last layer is skipped in the second
    step. Fails where its gradient is that of the step before, or ranks wait for it."""
    first, second = found(ranks)["skipped"]["gradients"]
    skipped = [name for name in first if name.startswith("model.layers.1.mlp")]
    assert len(skipped) == 3 and all(first[name].any() for name in skipped)
    assert not any(second[name].any() for name in skipped)
    others = set(second) - set(skipped) - {"model.layers.1.post_attention_layernorm.weight"}
    assert all(second[name].any() for name in others)


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether gradients, their norms and weights are equal to the bit."""
    pairs = list(zip([*a["gradients"], a["weights"]], [*b["gradients"], b["weights"]]))
    return all(torch.equal(x[name], y[name]) for x, y in pairs for name in x)


@pytest.mark.parametrize("ranks", RANKS)
def test_one_micro_batch_loses_nothing_in_bfloat16(
    ranks: int, found: Callable[[int], Found]
) -> None:
    """Three steps with clipping: gradients, norms and float32 weights to the bit, and `auto` takes
    it. Fails where anything beside the sum over micro-batches (average over ranks, norm, clipping)
    is done in the dtype of the sum."""
    in_float32, automatic = found(ranks)["float32 1"], found(ranks)["auto 1"]
    dtypes = (in_float32["gradient_dtype"], automatic["gradient_dtype"])
    assert dtypes == ("float32", "bfloat16") and same(in_float32, automatic)
    assert min(step["norm"] for step in in_float32["gradients"]) > 0.5  # it was clipped


@pytest.mark.parametrize("ranks", RANKS)
def test_four_micro_batches_are_summed_in_float32(
    ranks: int, found: Callable[[int], Found]
) -> None:
    """Fails where `auto` rounds a sum, or `bfloat16` is not heard, so that the test above compares
    a thing with itself."""
    in_bfloat16, automatic = found(ranks)["bfloat16 4"], found(ranks)["auto 4"]
    assert automatic["gradient_dtype"] == "float32" and not same(automatic, in_bfloat16)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_checkpoint_goes_on_in_the_other_dtype(ranks: int, found: Callable[[int], Found]) -> None:
    """Two steps in one, the third in the other, against three in float32. Fails where the state on
    disk depends on the dtype of the sum."""
    whole = found(ranks)["float32 1"]
    for dtype in ("float32", "bfloat16"):
        resumed = found(ranks)[f"resumed in {dtype}"]
        assert resumed["gradient_dtype"] == dtype
        assert same(resumed, {**whole, "gradients": whole["gradients"][2:]})
