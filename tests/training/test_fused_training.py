"""Fused layers under ZeRO-3: the training that they give is that of transformers' modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from interpreter import rounding_interpreter
from processes import ROOT
from torch import Tensor

from zephyr import losses
from zephyr.chat import EncodedPair
from zephyr.config import Hardware, Optim
from zephyr.model.adapter import exported
from zephyr.model.load import DTYPES, load_policy
from zephyr.model.logprobs import response_logprobs
from zephyr.packing import collate_pairs
from zephyr.training.engine import Engine

PAIRS = [EncodedPair("a", [5, 6], [8], [10, 11]), EncodedPair("b", [20], [21], [3])]


class Training(NamedTuple):
    """What steps of DPO gave."""

    losses: Tensor
    grad_norms: Tensor
    weights: Tensor


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """An engine without a policy; with one, each of its parameters is partitioned."""
    with rounding_interpreter(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        made = Engine(Hardware(attention="sdpa", deepspeed="configs/deepspeed/cpu.json"), 0)
        yield made
        made.close()


def train(engine: Engine, folder: Path, steps: int, **hardware: object) -> Training:
    """Steps of two micro-batches each, of a new policy."""
    engine.hardware = replace(engine.hardware, **hardware)
    load = partial(
        load_policy,
        folder,
        dtype=DTYPES[engine.hardware.dtype],
        fused=engine.hardware.fused,
        activation_checkpointing=engine.hardware.activation_checkpointing,
    )
    engine.initialize(load, Optim(grad_clip=1e9))
    found, norms = [], []
    for _ in range(steps):
        for i in range(2):
            batch = collate_pairs(PAIRS, [i])
            zero_P = torch.zeros(1)
            terms = losses.dpo(*response_logprobs(engine, batch), zero_P, zero_P, beta=0.1)
            engine.backward(terms.loss_P.sum() / 2, last=i == 1)
            found.append(terms.loss_P.detach())
        norms.append(engine.step(1e-3))
    weights = torch.cat(
        [p.float().flatten() for _, p in engine.full_tensors(exported(engine.policy.lm))]
    )
    return Training(torch.cat(found), torch.stack(norms), weights)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_training_is_the_same(engine: Engine, tiny: Path) -> None:
    """Losses, gradient norms and weights in float32 to rounding, with every policy of what is
    computed again. Fails where ZeRO-3 does not gather a norm's weight for a kernel, a kernel keeps
    a weight that is gone in the backward, or its gradient is not reduced."""
    plain = train(engine, tiny, 1, dtype="float32", activation_checkpointing=False, fused="none")
    for policy in (False, "mlp", "elementwise", True):
        ours = train(
            engine, tiny, 1, dtype="float32", activation_checkpointing=policy, fused="triton"
        )
        for name, a, b in zip(Training._fields, ours, plain):
            assert distance(a, b) < 1e-5, (policy, name)
    assert not torch.equal(ours.losses, plain.losses)  # or no kernel ran


def test_training_in_bfloat16_errs_no_more(engine: Engine, tiny: Path) -> None:
    """Losses and gradient norms against float32: at most twice the error of transformers' modules
    in bfloat16. Fails where a gradient is summed or kept in bfloat16."""
    exact, plain, ours = (
        train(engine, tiny, 2, dtype=dtype, activation_checkpointing=True, fused=fused)
        for dtype, fused in (("float32", "none"), ("bfloat16", "none"), ("bfloat16", "triton"))
    )
    for truth, theirs, mine in zip(exact[:2], plain[:2], ours[:2]):
        assert 0 < distance(mine, truth) <= 2 * distance(theirs, truth)
