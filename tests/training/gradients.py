"""Gradients and weights of a few steps of the real engine, one trajectory after the other.

    python tests/training/gradients.py MODEL CASES.json OUT.pt

CASES.json maps names to cases: `hardware` (keys of the config), `micro_batches` of each rank (or of
the ranks that compute a row together) in each step, `steps`, and optionally `load` or `save` (a
folder of training state, and the updates after which it is made) and `skip_mlp` (the step in which
the MLP of the last layer is skipped).
OUT.pt maps the names to the gradients of each step and the weights at the end, by parameter.
"""

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import Tensor

from zephyr.chat import EncodedPair
from zephyr.config import Hardware, Optim
from zephyr.model.load import DTYPES, load_policy
from zephyr.packing import collate_pairs
from zephyr.training.engine import Engine

PAIRS = [
    EncodedPair(str(i), [1, 5 + i, 9] * (1 + i % 3), [7, 10 + i, 2], [8 + i] * (1 + i % 4) + [2])
    for i in range(8)
]


def micro_batch(rank: int, ranks: int, m: int, count: int) -> list[int]:
    """The pairs of a micro-batch: each rank has every other pair, in `count` equal parts."""
    mine = list(range(len(PAIRS)))[rank::ranks]
    return mine[m::count]


def trajectory(engine: Engine, model: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Train, and return what the module's docstring says. A collective."""
    count, first = case["micro_batches"], 0
    engine.hardware = hardware = Hardware(
        attention="sdpa", deepspeed="configs/deepspeed/cpu.json", **case["hardware"]
    )
    load = partial(
        load_policy,
        model,
        dtype=DTYPES[hardware.dtype],
        activation_checkpointing=hardware.activation_checkpointing,
    )
    engine.set_sequence_parallel(hardware.sequence_parallel)
    engine.initialize(load, Optim(grad_clip=0.5, weight_decay=0.1), micro_batches=count)
    if "load" in case:
        folder, first = case["load"]
        engine.load_state(Path(folder), first)
    gradients: list[dict[str, Tensor]] = []
    for step in range(first, first + case["steps"]):
        skipped = engine.policy.lm.model.layers[-1].mlp
        if step == case.get("skip_mlp"):
            skipped.forward = torch.zeros_like
        for m in range(count):
            mine = micro_batch(engine.data_rank, engine.data_world_size, m, count)
            batch = engine.place(collate_pairs(PAIRS, mine))
            engine.backward(engine(batch).sum() / len(PAIRS), last=m == count - 1)
        named = list(engine.policy.lm.named_parameters())
        gradients.append({name: safe_get_full_grad(p).clone() for name, p in named})
        gradients[-1]["norm"] = engine.step(1e-3)
        if [step + 1] == case.get("save", [])[1:]:
            save(engine, Path(case["save"][0]))
    weights = {name: safe_get_full_fp32_param(p).clone() for name, p in named}
    chosen = engine.gradient_dtype
    engine.engine.destroy()
    return {"gradients": gradients, "weights": weights, "gradient_dtype": chosen}


def save(engine: Engine, folder: Path) -> None:
    if engine.rank == 0:
        folder.mkdir()
    engine.barrier()
    engine.save_state(folder)
    engine.barrier()


def main(model: str, cases: str, out: str) -> None:
    torch.set_num_threads(1)
    engine = Engine(Hardware(attention="sdpa", deepspeed="configs/deepspeed/cpu.json"), 0)
    asked = json.loads(Path(cases).read_text())
    found = {name: trajectory(engine, Path(model), case) for name, case in asked.items()}
    if engine.rank == 0:
        torch.save(found, out)
    engine.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
