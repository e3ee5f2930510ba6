"""A training state written by some number of ranks and read by another: every element comes to its
place, or it is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from zephyr.config import BadInput
from zephyr.training import shards

# On some rank of three b is all padding while c, behind it in the same flat vector, is not.
VECTORS = ("master", "exp_avg", "exp_avg_sq")
SIZES = {"a.weight": 7, "b.weight": 4, "c.weight": 9}


def of_rank(rank: int, ranks: int, values: dict[str, Tensor]) -> SimpleNamespace:
    """What DeepSpeed's ZeRO-3 optimiser holds on a rank, as far as `live_shards` reads it: one flat
    vector of the parameters' equal parts, the last rank's padded with 99; two groups. Its own
    layout is read by tests/training/test_engine.py."""
    groups, flats, state = [], [], {}
    for names in (["a.weight"], ["b.weight", "c.weight"]):
        parts = {vector: [] for vector in VECTORS}
        group = []
        for name in names:
            size = -(-SIZES[name] // ranks)
            group.append(
                SimpleNamespace(
                    name=name, ds_numel=SIZES[name], partition_numel=lambda size=size: size
                )
            )
            for vector in parts:
                padded = torch.full((size * ranks,), 99.0)
                padded[: SIZES[name]] = values[f"{name}.{vector}"]
                parts[vector].append(padded[rank * size : (rank + 1) * size])
        flat = torch.cat(parts["master"])
        groups.append(group)
        flats.append(flat)
        state[flat] = {
            "exp_avg": torch.cat(parts["exp_avg"]),
            "exp_avg_sq": torch.cat(parts["exp_avg_sq"]),
        }
    return SimpleNamespace(
        fp16_groups=groups,
        fp32_partitioned_groups_flat=flats,
        optimizer=SimpleNamespace(state=state),
    )


def live(zero: SimpleNamespace, rank: int) -> Iterator[shards.Shard]:
    names = Names()
    return shards.live_shards(zero, names, rank, 3)


class Names:
    """A parameter's own name: these stand-ins can't be keys of a dict."""

    def __getitem__(self, parameter: SimpleNamespace) -> str:
        return parameter.name


@pytest.fixture
def values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.{vector}": torch.randn(size, generator=generator)
        for name, size in SIZES.items()
        for vector in VECTORS
    }


@pytest.mark.parametrize("file_bytes", [1, 10**6], ids=["a shard a file", "one file"])
@pytest.mark.parametrize("wrote,reads", [(1, 1), (1, 3), (3, 1), (2, 3), (3, 2), (8, 3)])
def test_every_element_comes_to_its_place(
    wrote: int,
    reads: int,
    file_bytes: int,
    values: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Fails where a range is filed under another start, padding is written or read as a weight, a
    vector is left out, a rank's second file replaces its first, or the padding of a reader is
    filled."""
    monkeypatch.setattr(shards, "FILE_BYTES", file_bytes)
    for rank in range(wrote):
        shards.save_shards(live(of_rank(rank, wrote, values), rank), tmp_path, rank)
    assert len(list(tmp_path.iterdir())) >= wrote * (3 if file_bytes == 1 else 1)
    empty = {name: torch.full_like(value, -1.0) for name, value in values.items()}
    for rank in range(reads):
        found, wanted = of_rank(rank, reads, empty), of_rank(rank, reads, values)
        shards.load_shards(live(found, rank), tmp_path)
        for ours, theirs in zip(
            found.fp32_partitioned_groups_flat, wanted.fp32_partitioned_groups_flat
        ):
            assert torch.equal(ours, theirs)
            for moment in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(
                    found.optimizer.state[ours][moment], wanted.optimizer.state[theirs][moment]
                )


def test_adams_state_is_made_as_of_the_step(values: dict[str, Tensor]) -> None:
    """Where no update was made yet: moments of 0, and the checkpoint's count of steps. Fails where
    a resumed run corrects its moments as if they were the first."""
    zero = of_rank(0, 1, values)
    for state in zero.optimizer.state.values():
        state.clear()
    assert {shard.name for shard in live(zero, 0)} == set(values)
    for state in zero.optimizer.state.values():
        assert state["step"] == 3.0 and not state["exp_avg"].any() and not state["exp_avg_sq"].any()


@pytest.mark.parametrize("longer", [True, False])
def test_another_models_state_is_refused(
    longer: bool, values: dict[str, Tensor], tmp_path: Path
) -> None:
    """A vector of another length, either way; a rank's file that is not there; a parameter that was
    never written. Fails where the rest of a vector stays as it was."""
    for rank in range(2):
        shards.save_shards(live(of_rank(rank, 2, values), rank), tmp_path, rank)
    zero = of_rank(0, 1, values)
    zero.fp16_groups[0][0].ds_numel += 1 if longer else -1
    with pytest.raises(BadInput, match=r"a\.weight\.master has 7 elements, this model's has"):
        shards.load_shards(live(zero, 0), tmp_path)
    (tmp_path / "rank-1-0.safetensors").unlink()
    with pytest.raises(BadInput, match=r"a\.weight\.master has 4 of the 7 elements that this"):
        shards.load_shards(live(of_rank(0, 1, values), 0), tmp_path)
    (tmp_path / "rank-0-0.safetensors").unlink()
    with pytest.raises(BadInput, match="has 0 of the 7"):
        shards.load_shards(live(of_rank(0, 1, values), 0), tmp_path)


def test_an_updates_size_counts_decay_with_its_sign() -> None:
    """torch's AdamW on weights whose gradient pulls where decay pulls, then against it: the update
    read from the moments is the one that was made, over two groups. Fails where decay is left out,
    or counted the wrong way round, which no random gradient would show; or for another epsilon."""
    for pull in (1.0, -1.0, 1e-8):  # the last as small as Adam's epsilon
        flats = [
            torch.linspace(1, 2, 50).requires_grad_(),
            torch.linspace(2, 3, 30).requires_grad_(),
        ]
        groups = [
            {"params": [flat], "weight_decay": decay} for flat, decay in zip(flats, (0.5, 0.0))
        ]
        adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-8)
        zero = SimpleNamespace(
            fp32_partitioned_groups_flat=flats,
            sub_group_to_group_id={0: 0, 1: 1},
            optimizer=adamw,
        )
        for lr in (1e-3, 3e-3):
            before = torch.cat([flat.detach().clone() for flat in flats])
            for group in adamw.param_groups:
                group["lr"] = lr
            for flat in flats:
                flat.grad = pull * flat.detach()
            adamw.step()
            after = torch.cat([flat.detach() for flat in flats])
            update, weight = shards.update_and_weight_sq_norms(zero, lr).sqrt().tolist()
            assert update == pytest.approx(float((after - before).norm()), rel=5e-3)
            assert weight == pytest.approx(float(after.norm()), rel=1e-6)
