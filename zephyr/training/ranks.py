"""A value of one rank becomes known to all, over gloo, where torchrun started more than one; alone,
nothing is set up."""

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
    """A gloo group of all ranks, made at its first use (a collective)."""
    import torch.distributed as distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    return distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def gather_from_ranks(make: Callable[[], T], *raises: type[Exception]) -> list[T]:
    """`make()` of every rank, on every rank; where it raises one of `raises` anywhere, all ranks
    raise that. A collective.

    Values and exceptions must be picklable."""
    if world_size() == 1:
        return [make()]
    import torch.distributed as distributed

    try:
        made = make(), None
    except raises as error:
        made = None, error
    everyone = [made] * world_size()
    distributed.all_gather_object(everyone, made, group=gloo_group())
    for error in filter(None, (made[1], *(error for _, error in everyone))):
        raise error
    return [value for value, _ in everyone]
