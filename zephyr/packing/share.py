"""A packed row becomes the share of one of several ranks that compute it together.

Token i of the row lies on rank i modulo the ranks. So every rank has the same number of tokens, but
for the last one, and of each prompt and each response about the same: tokens that reach the
log-prob head are divided as evenly as the others. `zephyr.model.sequence` exchanges them.

Shape letters:
    N  tokens of the row; of a share after `share_of_row`: ceil(N of the row / ranks)
    T  scored tokens of the row; of a share after `share_of_row`
"""

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from zephyr.packing.collate import PackedBatch, Share


class SequenceGroup(NamedTuple):
    """The ranks that compute a row together."""

    group: ProcessGroup
    rank: int  # of this process in the group: 0 to size - 1
    size: int  # at least 2


def share_of_row(batch: PackedBatch, rank: int, ranks: int) -> PackedBatch:
    """What rank `rank` of `ranks` computes of a packed row.

    Its tokens, positions and scored tokens are those of the share. All that speaks of sequences,
    responses or pairs stays that of the row: layout, `response_tokens_R`, indices, units, weights.

    Args:
        batch: of a whole row, on the CPU.
        rank: 0 to ranks - 1.

    Raises:
        ValueError: the batch is a share already.
    """
    if batch.share is not None:
        raise ValueError("the batch is the share of a rank already, expected that of a whole row")
    is_own_T = batch.scored_T % ranks == rank
    unique = batch.num_unique_scored
    return replace(
        batch,
        tokens_N=own_tokens(batch.tokens_N, rank, ranks),
        positions_N=own_tokens(batch.positions_N, rank, ranks),
        scored_T=batch.scored_T[is_own_T] // ranks,
        targets_T=batch.targets_T[is_own_T],
        num_unique_scored=int(is_own_T[:unique].sum()),
        share=Share(places_T=is_own_T.nonzero().squeeze(-1), row_scored=len(is_own_T)),
    )


def own_tokens(row_N: Tensor, rank: int, ranks: int) -> Tensor:
    """Every `ranks`-th entry from `rank` on; the row is padded with zeros, so that shares are equal
    in length. Attention cuts the padding off."""
    padded: Tensor = F.pad(row_N, (0, -len(row_N) % ranks))
    return padded[rank::ranks].clone(memory_format=torch.contiguous_format)
