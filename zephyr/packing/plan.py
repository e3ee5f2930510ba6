"""Lengths become a plan of integers: step -> rank -> micro-batch -> example indices.

A pure function of lengths, seed and config, so every rank computes the same one, the learning-rate
schedule is known before step 0, and resuming is a step number. A step holds the same examples for
any number of ranks."""

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """One optimiser step: `ranks[r][m]` are the example indices of micro-batch m on rank r.

    Every rank has the same number of micro-batches (the collectives of ZeRO-3 run in lock-step);
    one may be empty."""

    epoch: float  # passes over the examples completed before this step
    ranks: list[list[list[int]]]

    def examples(self) -> list[int]:
        """The example indices of the step, the same for any number of ranks, ascending."""
        return sorted(
            i for micro_batches in self.ranks for micro_batch in micro_batches for i in micro_batch
        )


class Plan(NamedTuple):
    """All steps of a run, with how well they fill the hardware."""

    steps: list[Step]
    tokens: int  # real tokens, all steps
    fill_ratio: float  # real tokens / (micro-batches that are not empty x budget)
    imbalance: float  # sum over steps of the most loaded rank's cost / sum of the mean rank's


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Bins of indices, none over `budget` tokens: longest first, into the fullest bin with room;
    alike on every rank.

    Best-fit decreasing (Ding et al. 2024, arXiv:2404.10830). O(n log n). Raises: ValueError naming
    the first example over the budget (examples are cut when they are encoded, never here)."""
    bins: list[list[int]] = []
    with_room: dict[int, list[list[int]]] = {}  # bins by their free tokens
    rooms: list[int] = []  # the free tokens that some bin has, ascending
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = int(lengths[i])
        if not 0 < length <= budget:
            raise ValueError(
                f"example {i} has {length} tokens; 1 to {budget} (the budget) are wanted"
            )
        fitting = bisect_left(rooms, length)
        if fitting < len(rooms):
            room = rooms[fitting]
            fullest = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[fitting]
        else:
            room, fullest = budget, []
            bins.append(fullest)
        fullest.append(i)
        if room - length not in with_room:
            insort(rooms, room - length)
        with_room.setdefault(room - length, []).append(fullest)
    return bins


def plan_epochs(
    lengths: Sequence[int],
    *,
    per_step: int,
    epochs: int,
    ranks: int,
    budget_tokens: int,
    seed: int = 42,
    shuffle: bool = True,
    window_tokens: int | None = None,
    costs: Sequence[float] | None = None,
) -> Plan:
    """Every example exactly once an epoch, in optimiser steps of `per_step` units balanced over
    `ranks`.

    A unit is one example (DPO: a pair) or, with `window_tokens`, one window of examples that best
    fit fills (SFT). Windows say which examples make a step; micro-batches are filled with examples,
    whatever their window: they never see each other. The last step of an epoch keeps what is left;
    the loop divides by its own count. shuffle=False orders units by first example. Args: lengths:
    packed tokens of each example. costs: work of each example, any unit; default its tokens.
    Raises: ValueError where a count is < 1, there is no example, or one is longer than its window
    or the budget."""
    for name, value in (
        ("per_step", per_step),
        ("epochs", epochs),
        ("ranks", ranks),
        ("len(lengths)", len(lengths)),
    ):
        if value < 1:
            raise ValueError(f"{name}: at least 1 is wanted, got {value}")
    costs = lengths if costs is None else costs
    steps: list[Step] = []
    for epoch in range(epochs):
        units = epoch_units(
            lengths, random.Random(f"{seed}:{epoch}") if shuffle else None, window_tokens
        )
        done = 0
        for start in range(0, len(units), per_step):
            examples = [i for unit in units[start : start + per_step] for i in unit]
            steps.append(
                Step(
                    epoch + done / len(lengths),
                    balance_ranks(examples, lengths, costs, ranks, budget_tokens),
                )
            )
            done += len(examples)
    return with_totals(steps, lengths, costs, budget_tokens)


def plan_pass(
    lengths: Sequence[int], *, ranks: int, budget_tokens: int, indices: Sequence[int] | None = None
) -> Plan:
    """One pass over the examples (or `indices` of them) in a single step: reference log-probs,
    evaluation."""
    indices = range(len(lengths)) if indices is None else indices
    steps = (
        [Step(0.0, balance_ranks(indices, lengths, lengths, ranks, budget_tokens))]
        if len(indices)
        else []
    )
    return with_totals(steps, lengths, lengths, budget_tokens)


def epoch_units(
    lengths: Sequence[int], rng: random.Random | None, window_tokens: int | None
) -> list[list[int]]:
    """The units of one epoch in the order of training: shuffled by `rng`, or in the order of the
    data."""
    order = list(range(len(lengths)))
    if rng is not None:
        rng.shuffle(order)
    if window_tokens is None:
        return [[i] for i in order]
    windows = best_fit([lengths[i] for i in order], window_tokens)
    units = sorted(
        sorted(order[j] for j in window) for window in windows
    )  # best fit put the longest examples first
    if rng is not None:
        rng.shuffle(units)
    return units


def balance_ranks(
    examples: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    ranks: int,
    budget_tokens: int,
) -> list[list[list[int]]]:
    """A step's examples as micro-batches of ranks: the dearest to the cheapest rank, exchanges,
    then best fit to the budget."""
    of_rank: list[list[int]] = [[] for _ in range(ranks)]
    cheapest = [(0.0, 0, rank) for rank in range(ranks)]
    for i in sorted(examples, key=lambda i: (-costs[i], i)):
        spent, count, rank = heapq.heappop(cheapest)
        of_rank[rank].append(i)
        heapq.heappush(cheapest, (spent + costs[i], count + 1, rank))
    rebalance(of_rank, costs)
    packed = [
        [
            sorted(mine[j] for j in micro)
            for micro in best_fit([lengths[i] for i in mine], budget_tokens)
        ]
        for mine in of_rank
    ]
    most = max(map(len, packed))
    return [micro_batches + [[]] * (most - len(micro_batches)) for micro_batches in packed]


def rebalance(of_rank: list[list[int]], costs: Sequence[float]) -> None:
    """While the most loaded rank has over 1 % more than the mean: give one of its examples away, or for
    a cheaper one, as is best."""
    loads = [sum(costs[i] for i in mine) for mine in of_rank]
    while (most := max(loads)) > 1.01 * sum(loads) / len(loads):
        dear = loads.index(most)
        after, mine, theirs, rank = min(
            (max(most - costs[mine] + cost, loads[rank] + costs[mine] - cost), mine, theirs, rank)
            for rank in range(len(loads))
            if rank != dear
            for mine in of_rank[dear]
            for theirs, cost in [(-1, 0), *((i, costs[i]) for i in of_rank[rank])]
        )
        if after >= most:
            return
        for of, lost, gained in ((dear, mine, theirs), (rank, theirs, mine)):
            of_rank[of] = [i for i in of_rank[of] if i != lost] + [gained] * (gained >= 0)
            loads[of] = sum(costs[i] for i in of_rank[of])


def with_totals(
    steps: list[Step], lengths: Sequence[int], costs: Sequence[float], budget_tokens: int
) -> Plan:
    """The steps with their totals."""
    tokens = sum(lengths[i] for step in steps for i in step.examples())
    micro_batches = sum(1 for step in steps for rank in step.ranks for micro in rank if micro)
    loads = [
        [sum(costs[i] for micro in rank for i in micro) for rank in step.ranks] for step in steps
    ]
    imbalance = (
        sum(map(max, loads)) / sum(sum(load) / len(load) for load in loads) if steps else 1.0
    )
    return Plan(
        steps, tokens, tokens / (micro_batches * budget_tokens) if steps else 0.0, imbalance
    )
