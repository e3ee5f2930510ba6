"""Several ranks compute one packed row together: sequence parallelism, for rows that one GPU does
not hold.

Each rank has its share of the row's tokens (`zephyr.packing.share`) and computes embeddings, norms,
MLPs and the log-prob head of these alone. Attention needs all tokens, but each head by itself: one
all-to-all gives every rank all tokens of its share of the heads, a second one gives the output back
(DeepSpeed-Ulysses, Jacobs et al. 2023, arXiv:2309.14509). Between the two, attention is that of one
rank: the same kernel, layout, shared prompts and window.

The log-probs of the row's targets are put together on every rank, so objectives see a whole row.
Each rank then calls backward with the same loss, and its parameters get the gradient that passes
through its own tokens: over the ranks these add up to the gradient of the loss, counted once.

Shape letters:
    G  ranks of the group
    n  tokens of a rank's share: N / G, rounded up
    N  tokens of the row
    H  heads of queries, keys or values, here of any of them
    h  heads of a rank: H / G
    E  size of a head
    T  scored tokens of the share
"""

import math
from typing import Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from zephyr.packing import Layout, PackedBatch, SequenceGroup


class GroupContext(Protocol):
    """The type of autograd's `ctx` in AllToAll."""

    group: dist.ProcessGroup


class AllToAll(torch.autograd.Function):
    """Send `sent[g]` to rank g of the group; `received[g]` is what rank g has sent.

    A permutation of blocks over all ranks, equal to its transpose: its backward is the same
    exchange of gradients. A collective, also in the backward.
    """

    @staticmethod
    def forward(ctx: GroupContext, sent: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=group)
        return received

    @staticmethod
    def backward(ctx: GroupContext, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous()
        received = torch.empty_like(grad)
        dist.all_to_all_single(received, grad, group=ctx.group)
        return received, None


class SumOverGroup(torch.autograd.Function):
    """Each rank's tensor summed over the group, on every rank.

    Every rank goes on to compute the same loss of the sum, which is counted once: so the gradient
    of a rank's term is that of the sum, without a second reduction.
    """

    @staticmethod
    def forward(ctx: GroupContext, term: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = term.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: GroupContext, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def exchange(sent: Tensor, sequence: SequenceGroup) -> Tensor:
    """See `AllToAll`."""
    received: Tensor = AllToAll.apply(sent.contiguous(), sequence.group)  # type: ignore[no-untyped-call]
    return received


def all_tokens(share_nHE: Tensor, tokens: int, sequence: SequenceGroup) -> Tensor:
    """All tokens of this rank's heads, for some heads' tokens of this rank: [n, H, E] -> [N, h, E].

    A collective.

    Args:
        tokens: N; what pads the shares is cut off.
    """
    sent_GnhE = rearrange(share_nHE, "n (g h) e -> g n h e", g=sequence.size)
    received_GnhE = exchange(sent_GnhE, sequence)
    return rearrange(received_GnhE, "g n h e -> (n g) h e")[:tokens]


def own_tokens(heads_NhE: Tensor, sequence: SequenceGroup) -> Tensor:
    """All heads of this rank's tokens: [N, h, E] -> [n, H, E]. Undoes `all_tokens`. A collective.

    Tokens that pad a share get zeros.
    """
    padded_NhE = F.pad(heads_NhE, (0, 0, 0, 0, 0, -len(heads_NhE) % sequence.size))
    sent_GnhE = rearrange(padded_NhE, "(n g) h e -> g n h e", g=sequence.size)
    received_GnhE = exchange(sent_GnhE, sequence)
    return rearrange(received_GnhE, "g n h e -> n (g h) e")


def attention_inputs(
    query_nHE: Tensor, key_nKE: Tensor, value_nKE: Tensor, layout: Layout, sequence: SequenceGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the whole row, of this rank's heads. A collective.

    Where the ranks do not divide the K key heads, each is repeated so often that they do: ranks
    that share a key head then get a copy each.

    Args:
        query_nHE, key_nKE, value_nKE: of this rank's tokens, of all heads.
        layout: of the row.

    Raises:
        ValueError: the ranks do not divide the query heads.
    """
    heads, key_heads = query_nHE.shape[1], key_nKE.shape[1]
    if heads % sequence.size:
        raise ValueError(f"{sequence.size} ranks can't divide {heads} query heads among them")
    copies = math.lcm(key_heads, sequence.size) // key_heads
    if copies > 1:
        key_nKE = repeat(key_nKE, "n k e -> n (k c) e", c=copies)
        value_nKE = repeat(value_nKE, "n k e -> n (k c) e", c=copies)
    tokens = sum(layout.query_lengths)
    query, key, value = (
        all_tokens(share, tokens, sequence) for share in (query_nHE, key_nKE, value_nKE)
    )
    return query, key, value


def all_scored(logp_T: Tensor, batch: PackedBatch, sequence: SequenceGroup) -> Tensor:
    """Values of this rank's scored tokens become those of all scored tokens of the row, in its
    order. A collective.

    Args:
        logp_T: [..., T of the share].
        batch: the share.

    Returns:
        [..., T of the row]. To the bit as computed: to each value the other ranks add zeros.
    """
    assert batch.share is not None, "the batch is that of a whole row"
    row_T = logp_T.new_zeros(*logp_T.shape[:-1], batch.share.row_scored)
    row_T = row_T.index_copy(-1, batch.share.places_T, logp_T)
    total: Tensor = SumOverGroup.apply(row_T, sequence.group)  # type: ignore[no-untyped-call]
    return total
