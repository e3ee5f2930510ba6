"""Attention of one packed row by several ranks together, in float64.

    torchrun --nproc_per_node=G tests/model/sequence_ranks.py OUT.pt

OUT.pt holds, by name, the largest difference from one rank that has the whole row, and `sizes`: the
largest absolute value of what was compared.
"""

import sys
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from zephyr.chat import EncodedPair
from zephyr.model.attention import attend, sdpa
from zephyr.model.sequence import all_scored, all_tokens, exchange, own_tokens
from zephyr.packing import PackedBatch, SequenceGroup, collate_pairs, share_of_row

HEADS, HEAD_SIZE = 4, 8
PAIRS = [
    EncodedPair(str(i), list(range(1, 4 + 3 * i)), [7] * (2 + i), [8] * (5 - i)) for i in range(3)
]


def random(*shape: int, seed: int) -> Tensor:
    """The same numbers on every rank."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def whole(share: Tensor, sequence: SequenceGroup, tokens: int) -> Tensor:
    """Rows [n, ...] of all ranks, in the order of the packed row: [N, ...]."""
    parts = [torch.empty_like(share) for _ in range(sequence.size)]
    dist.all_gather(parts, share.contiguous(), group=sequence.group)
    return torch.stack(parts, dim=1).flatten(0, 1)[:tokens]


def attention_differences(
    sequence: SequenceGroup, row: PackedBatch, key_heads: int, window: int | None
) -> dict[str, float]:
    """Output and gradients of queries, keys and values, shared against whole."""
    tokens = len(row.tokens_N)
    shapes = [(HEADS, HEAD_SIZE)] + 2 * [(key_heads, HEAD_SIZE)]
    inputs = [random(tokens, *shape, seed=i) for i, shape in enumerate(shapes)]
    cotangent = random(tokens, HEADS, HEAD_SIZE, seed=9)
    call = partial(attend, sdpa, nn.Module(), layout=row.layout, sliding_window=window)

    def run(parts: list[Tensor], against: Tensor, **more: object) -> list[Tensor]:
        leaves = [part.clone().requires_grad_() for part in parts]
        batched = [leaf.transpose(0, 1)[None] for leaf in leaves]
        output, _ = call(*batched, None, **more)
        return [output[0].detach(), *torch.autograd.grad(output[0], leaves, against)]

    wanted = run(inputs, cotangent)
    padding = -tokens % sequence.size

    def share(row_N: Tensor) -> Tensor:
        padded = torch.cat([row_N, torch.full_like(row_N[:1], 7.0).expand(padding, -1, -1)])
        return padded[sequence.rank :: sequence.size]

    found = run([share(x) for x in inputs], share(cotangent), sequence=sequence)
    names = ("output", "query", "key", "value")
    return {
        name: float((whole(mine, sequence, tokens) - all_of_it).abs().max())
        for name, mine, all_of_it in zip(names, found, wanted)
    }


def adjoint_difference(sequence: SequenceGroup) -> float:
    """<g, A x> - <A^T g, x> over all ranks, for each exchange A: it is linear, and its backward
    must be its transpose."""
    size, rank, worst = sequence.size, sequence.rank, 0.0
    exchanges = [
        (lambda x: exchange(x, sequence), (size, 3, 2, 5)),
        (lambda x: all_tokens(x, 3 * size - 1, sequence), (3, 2 * size, 5)),
        (lambda x: own_tokens(x, sequence), (3 * size - 1, 2, 5)),
    ]
    for number, (run, shape) in enumerate(exchanges):
        x = random(*shape, seed=100 * number + rank).requires_grad_()
        output = run(x)
        g = random(*output.shape, seed=1000 * number + rank + 50)
        (back,) = torch.autograd.grad(output, x, g)
        products = torch.stack([(g * output).sum(), (back * x).sum()]).detach()
        dist.all_reduce(products, group=sequence.group)
        worst = max(worst, abs(float(products[0] - products[1])) / abs(float(products[0])))
    return worst


def scored_difference(sequence: SequenceGroup, row: PackedBatch) -> float:
    """Values of scored tokens put together, and their gradients: to the bit."""
    share = share_of_row(row, sequence.rank, sequence.size)
    assert share.share is not None
    wanted, g = random(2, len(row.targets_T), seed=3), random(2, len(row.targets_T), seed=4)
    mine = wanted[:, share.share.places_T].requires_grad_()
    found = all_scored(mine, share, sequence)
    (back,) = torch.autograd.grad(found, mine, g)
    same = torch.equal(found, wanted) and torch.equal(back, g[:, share.share.places_T])
    return 0.0 if same else 1.0


def main(out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    group = dist.new_group(list(range(dist.get_world_size())))
    sequence = SequenceGroup(group, dist.get_rank(), dist.get_world_size())
    found = {"adjoint": adjoint_difference(sequence)}
    for shared in (True, False):
        row = collate_pairs(PAIRS, range(3), prefix_sharing=shared)
        found[f"scored {shared}"] = scored_difference(sequence, row)
        for key_heads in (1, 2, 4):
            for window in (None, 5):
                differences = attention_differences(sequence, row, key_heads, window)
                for name, value in differences.items():
                    found[f"{name} {shared} {key_heads} {window}"] = value
    if sequence.rank == 0:
        torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
