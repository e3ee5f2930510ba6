"""A training script as one rank, its collectives counted: `count_collectives.py OUT ARGUMENT...`

OUT gets, of each forward and backward on rank 0, the operations with their bytes and their ranks.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

calls: list[tuple[str, int, int]] = []
micro_batches: list[list[tuple[str, int, int]]] = []


def counted(name: str) -> Callable[..., object]:
    """The function of torch.distributed, whose calls are counted by their whole tensor."""
    function = getattr(dist, name)

    def call(*arguments: Tensor, **options: object) -> object:
        whole = max(
            (a for a in (*arguments, *options.values()) if isinstance(a, Tensor)), key=Tensor.numel
        )
        size = whole.numel() * whole.element_size()
        calls.append((name, size, dist.get_world_size(options.get("group"))))
        return function(*arguments, **options)

    return call


if __name__ == "__main__":
    for name in ("all_gather_into_tensor", "all_reduce", "broadcast"):
        setattr(dist, name, counted(name))

    import train_dpo
    from zephyr.config import DPOConfig
    from zephyr.training.engine import Engine
    from zephyr.training.launch import launch

    forward, backward = Engine.__call__, Engine.backward

    def count_from_here(engine: Engine, *arguments: object, **options: object) -> Tensor:
        calls.clear()
        return forward(engine, *arguments, **options)

    def count_to_here(engine: Engine, *arguments: object, **options: object) -> None:
        backward(engine, *arguments, **options)
        micro_batches.append(list(calls))

    Engine.__call__, Engine.backward = count_from_here, count_to_here
    parts = (train_dpo.check, train_dpo.train, train_dpo.predict)
    code = launch(DPOConfig, *parts, "", sys.argv[2:])
    if os.environ.get("RANK", "0") == "0":
        Path(sys.argv[1]).write_text(json.dumps(micro_batches))
    os._exit(code)
