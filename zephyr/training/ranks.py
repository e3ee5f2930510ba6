"""A value of each rank becomes known to all, over gloo, where torchrun started more than one.

For commands that run without an `Engine`. In a single process nothing is set up.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(days=30)  # rank 0 may ask a server for days while the others wait


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0


@cache
def gloo_group() -> "ProcessGroup":
    """A gloo group of all ranks, made at its first use. A collective."""
    import torch.distributed as distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    group: ProcessGroup = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
    return group


def gather_from_ranks(make: Callable[[], T], *raises: type[Exception]) -> list[T]:
    """`make()` of every rank, on every rank. A collective.

    Values and exceptions must be picklable.
    Raises: on every rank what `make` raises on any, if it is one of `raises`: this rank's own
    exception, else that of the lowest rank.
    """
    if world_size() == 1:
        return [make()]
    import torch.distributed as distributed

    values: list[T] = []
    raised: Exception | None = None
    try:
        values.append(make())
    except raises as error:
        raised = error
    mine = (values, raised)
    everyone = [mine] * world_size()
    distributed.all_gather_object(everyone, mine, group=gloo_group())
    for _, error_of_rank in [mine, *everyone]:
        if error_of_rank is not None:
            raise error_of_rank
    return [value for of_rank, _ in everyone for value in of_rank]
