"""A model's shape and DeepSpeed's settings become the collectives of a micro-batch, and seconds.

ZeRO-3 gathers all weights for the forward, again for the backward, and reduces the gradients of the
trained ones. The numbers are the same for every micro-batch, an empty one too, so that ranks stay
in lock-step. With `zero_hpz_partition_size` (ZeRO++, hierarchical partitioning, arXiv:2306.10209)
the second gather is among the ranks of a node.
"""

from typing import NamedTuple

from zephyr.costs.memory import RANKS_PER_NODE
from zephyr.costs.work import Config, Model, Settings
from zephyr.model.load import DTYPES
from zephyr.training.deepspeed_settings import hpz_ranks
from zephyr.training.devices import Device


class Collective(NamedTuple):
    """Collectives of one kind in a micro-batch."""

    name: str
    size: float  # bytes of the whole tensors, before they are cut into the parts of the ranks
    ranks: int  # that take part
    most_calls: int | None  # DeepSpeed joins neighbours in buckets; None: only they decide


def micro_batch_collectives(
    model: Model, ranks: int, config: Config, settings: Settings, training: bool
) -> list[Collective]:
    """The collectives of a micro-batch; not training: of a forward alone.

    most_calls: with `hardware.gather: layer` one a decoder layer, and one each for the embedding,
    the last norm and the output layer.
    """
    item = DTYPES[config.hardware.dtype].itemsize
    whole = float(item * model.shared)
    calls = model.config.num_hidden_layers + 3 if config.hardware.gather == "layer" else None
    gathers = [Collective("gather, forward", whole, ranks, calls)]
    if not training:
        return gathers
    group = min(hpz_ranks(settings), ranks)
    gathers.append(Collective("gather, backward", whole, group if group > 1 else ranks, calls))
    reduced = 4 if settings.get("communication_data_type") == "fp32" else item
    return [*gathers, Collective("reduce", float(reduced * model.trained), ranks, None)]


def collective_seconds(collective: Collective, device: Device) -> float:
    """Seconds of a ring: each rank sends all parts but one, over the slowest link."""
    ranks = collective.ranks
    return collective.size / ranks * (ranks - 1) / network_rate(device, ranks)


def network_rate(device: Device, ranks: int) -> float:
    """Bytes/s of a collective: in a node up to 8 ranks, else across nodes, slower past 64 ranks."""
    if ranks <= RANKS_PER_NODE:
        return device.node
    if ranks <= 64:
        return device.across
    return device.across * (0.85 if ranks <= 256 else 0.7)


def collective_table(
    model: Model, device: Device, config: Config, settings: Settings
) -> list[dict[str, float]]:
    """What a rank sends for a micro-batch on 8 to 1,024 ranks: GB by collective, and milliseconds
    of all."""
    rows = []
    for ranks in (2**k for k in range(3, 11)):
        made = micro_batch_collectives(model, ranks, config, settings, training=True)
        row: dict[str, float] = {"ranks": ranks}
        for one in made:
            row[f"{one.name} GB"] = one.size * (one.ranks - 1) / one.ranks / 1e9
        row["ms"] = 1e3 * sum(collective_seconds(one, device) for one in made)
        rows.append(row)
    return rows
