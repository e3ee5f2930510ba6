"""A process can start an engine after it has closed another, as a notebook does."""

from functools import partial
from pathlib import Path

import pytest
import torch
from processes import ROOT

from zephyr.chat import EncodedPair
from zephyr.config import Hardware, Optim
from zephyr.model.load import load_policy
from zephyr.packing import collate_pairs
from zephyr.training.engine import Engine


def test_one_engine_after_another(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both give the same log-probs. Fails where DeepSpeed takes process groups of the first, which
    are gone, for the second, or the first leaves torchrun's variables behind."""
    monkeypatch.chdir(ROOT)
    pair = EncodedPair("a", [5, 6], [8], [10, 11])
    found = []
    for _ in range(2):
        hardware = Hardware(
            attention="sdpa", dtype="float32", deepspeed="configs/deepspeed/cpu.json"
        )
        engine = Engine(hardware, 0)
        engine.initialize(partial(load_policy, tiny), Optim())
        found.append(engine(collate_pairs([pair], [0])).detach())
        engine.close()
    assert torch.equal(*found)
