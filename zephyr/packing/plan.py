"""Lengths become a plan of integers: step -> rank -> micro-batch -> example indices.

The plan is a pure function of lengths, seed and config, made before any tensor. So every rank
computes the same plan, the learning-rate schedule is known before step 0, and a run resumes from a
step number. A step holds the same examples for any number of ranks.

Lengths and budgets are in tokens; a cost is in any unit of work.
"""

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MicroBatch = list[int]  # example indices
# Ranks are rebalanced while the most loaded rank's cost is above so many times the mean rank's.
MAX_IMBALANCE = 1.01


class Step(NamedTuple):
    """One optimiser step: `ranks[r][m]` holds the example indices of micro-batch m on rank r.

    Every rank has the same number of micro-batches, as the collectives of ZeRO-3 run in lock-step;
    some may be empty.
    """

    epoch: float  # passes over the examples completed before this step
    ranks: list[list[MicroBatch]]

    def examples(self) -> list[int]:
        """The example indices of the step, ascending; the same for any number of ranks."""
        return sorted(i for rank in self.ranks for micro_batch in rank for i in micro_batch)


class Plan(NamedTuple):
    """All steps of a run, and how well they use the hardware."""

    steps: list[Step]
    tokens: int  # real tokens of all steps
    fill_ratio: float  # real tokens / (micro-batches that are not empty x budget)
    imbalance: float  # sum over steps of the most loaded rank's cost / sum of the mean rank's


def best_fit(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack items into bins of at most `budget` tokens by best-fit decreasing.

    Each item, longest first, goes into the fullest bin that has space for it (Ding et al. 2024,
    arXiv:2404.10830). The result depends on the arguments only, so all ranks agree. The time is
    O(n log n), plus at most d moved list entries an item for the sorted list of the d <= min(n,
    budget) distinct numbers of free tokens.

    Args:
        lengths: tokens of each item.
        budget: most tokens of a bin.

    Returns:
        The bins, each a list of indices into `lengths`.

    Raises:
        ValueError: an item is empty or longer than the budget; names the first. (Examples are
            truncated when they are encoded, never here.)
    """
    bins: list[list[int]] = []
    bins_by_space: dict[int, list[list[int]]] = {}  # free tokens -> the bins that have so many
    spaces: list[int] = []  # the keys of bins_by_space, ascending
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        length = int(lengths[i])
        if not 0 < length <= budget:
            raise ValueError(
                f"example {i} has {length} tokens, expected 1 to {budget} (the budget)"
            )
        fitting = bisect_left(spaces, length)  # index of the smallest space that suffices
        if fitting < len(spaces):
            space = spaces[fitting]
            chosen_bin = bins_by_space[space].pop()
            if not bins_by_space[space]:
                del bins_by_space[space], spaces[fitting]
        else:
            space, chosen_bin = budget, []
            bins.append(chosen_bin)
        chosen_bin.append(i)
        if space - length not in bins_by_space:
            insort(spaces, space - length)
        bins_by_space.setdefault(space - length, []).append(chosen_bin)
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
    """Plan a training run: every example exactly once an epoch, balanced over the ranks.

    A step takes `per_step` units. A unit is one example (DPO: one pair) or, with `window_tokens`,
    the examples that best fit packs into one window (SFT). Windows decide only which examples make
    a step. Micro-batches are packed anew from single examples; attention never crosses examples.
    The last step of an epoch holds what is left; the training loop divides by its own count.

    Args:
        lengths: packed tokens of each example.
        per_step: units of a step.
        epochs: passes over the examples.
        ranks: processes that train.
        budget_tokens: most tokens of a micro-batch.
        seed: with the epoch's number, it seeds the order of the units.
        shuffle: draw the order of units. False: units are ordered by their first example.
        window_tokens: most tokens of a window; None: a unit is one example.
        costs: work of each example; default: its tokens.

    Raises:
        ValueError: a count is below 1, there are no examples, or one is longer than the window or
            the budget.
    """
    counts = {"per_step": per_step, "epochs": epochs, "ranks": ranks, "len(lengths)": len(lengths)}
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}, expected at least 1")
    costs = lengths if costs is None else costs
    steps: list[Step] = []
    for epoch in range(epochs):
        rng = random.Random(f"{seed}:{epoch}") if shuffle else None
        units = epoch_units(lengths, rng, window_tokens)
        done = 0  # examples of this epoch in the steps before
        for start in range(0, len(units), per_step):
            examples = [i for unit in units[start : start + per_step] for i in unit]
            micro_batches = balance_ranks(examples, lengths, costs, ranks, budget_tokens)
            steps.append(Step(epoch + done / len(lengths), micro_batches))
            done += len(examples)
    return with_totals(steps, lengths, costs, budget_tokens)


def plan_pass(
    lengths: Sequence[int], *, ranks: int, budget_tokens: int, indices: Sequence[int] | None = None
) -> Plan:
    """Plan one pass over the examples as a single step: evaluation, reference log-probs.

    Args:
        lengths: packed tokens of each example.
        ranks: processes that take part.
        budget_tokens: most tokens of a micro-batch.
        indices: the examples to take; default: all. Empty: a plan without a step.

    Raises:
        ValueError: an example is longer than the budget.
    """
    indices = range(len(lengths)) if indices is None else indices
    steps: list[Step] = []
    if len(indices):
        steps.append(Step(0.0, balance_ranks(indices, lengths, lengths, ranks, budget_tokens)))
    return with_totals(steps, lengths, lengths, budget_tokens)


def epoch_units(
    lengths: Sequence[int], rng: random.Random | None, window_tokens: int | None
) -> list[list[int]]:
    """The units of one epoch in training order: shuffled by `rng`, or in the order of the data."""
    order = list(range(len(lengths)))
    if rng is not None:
        rng.shuffle(order)
    if window_tokens is None:
        return [[i] for i in order]
    windows = best_fit([lengths[i] for i in order], window_tokens)
    # Best fit returns the longest examples first.
    units = sorted(sorted(order[j] for j in window) for window in windows)
    if rng is not None:
        rng.shuffle(units)
    return units


def balance_ranks(
    examples: Sequence[int],
    lengths: Sequence[int],
    costs: Sequence[float],
    ranks: int,
    budget_tokens: int,
) -> list[list[MicroBatch]]:
    """Distribute a step's examples over ranks, and pack those of each rank into micro-batches.

    Each example, the most expensive first, goes to the rank with the lowest cost so far. Then
    `rebalance` reduces the difference that is left. Ranks with fewer micro-batches get empty ones.
    Ranks without an example share one list of them: a plan of 1,024 ranks stays small.
    """
    busy = min(ranks, len(examples))  # ranks that get an example
    of_rank: list[list[int]] = [[] for _ in range(busy)]
    least_loaded = [(0.0, 0, rank) for rank in range(busy)]  # a heap: cost, examples, rank
    for i in sorted(examples, key=lambda i: (-costs[i], i)):
        cost, count, rank = heapq.heappop(least_loaded)
        of_rank[rank].append(i)
        heapq.heappush(least_loaded, (cost + costs[i], count + 1, rank))
    if busy == ranks:  # else each has one example, and no change helps
        rebalance(of_rank, costs)
    packed: list[list[MicroBatch]] = []
    for assigned in of_rank:
        bins = best_fit([lengths[i] for i in assigned], budget_tokens)
        packed.append([sorted(assigned[j] for j in micro_batch) for micro_batch in bins])
    most = max(len(micro_batches) for micro_batches in packed)
    for micro_batches in packed:
        micro_batches += [[] for _ in range(most - len(micro_batches))]
    idle: list[MicroBatch] = [[] for _ in range(most)]
    return packed + [idle] * (ranks - busy)


def rebalance(of_rank: list[list[int]], costs: Sequence[float]) -> None:
    """Reduce the cost of the most loaded rank until it is within MAX_IMBALANCE of the mean.

    Each round gives one of its examples to another rank, or exchanges it for one of theirs: the
    change that leaves the larger of the two loads smallest. Ends when no change helps. Modifies
    `of_rank`.
    """
    loads = [sum(costs[i] for i in assigned) for assigned in of_rank]
    if max(loads) <= MAX_IMBALANCE * sum(loads) / len(loads):
        return
    owners = sorted((i, rank) for rank, assigned in enumerate(of_rank) for i in assigned)
    step = StepExamples(
        example=np.array([i for i, _ in owners]),
        rank=np.array([rank for _, rank in owners]),
        cost=np.array([costs[i] for i, _ in owners], dtype=np.float64),
    )
    while (most := max(loads)) > MAX_IMBALANCE * sum(loads) / len(loads):
        loaded = loads.index(most)
        after, given, taken, rank = best_change(step, np.array(loads, dtype=np.float64), loaded)
        if after >= most * (1 - 1e-12):  # not by rounding alone: two exchanges would alternate
            return
        of_rank[loaded].remove(given)
        of_rank[rank].append(given)
        step.rank[step.example == given] = rank
        if taken >= 0:
            of_rank[rank].remove(taken)
            of_rank[loaded].append(taken)
            step.rank[step.example == taken] = loaded
        for changed in (loaded, rank):
            loads[changed] = sum(costs[i] for i in of_rank[changed])


class StepExamples(NamedTuple):
    """The examples of a step, ascending: [E] each."""

    example: NDArray[np.int64]
    rank: NDArray[np.int64]  # that has it
    cost: NDArray[np.float64]


def best_change(
    step: StepExamples, loads_R: NDArray[np.float64], loaded: int
) -> tuple[float, int, int, int]:
    """Of all gifts and exchanges of one example between the rank `loaded` and another rank, the one
    after which the larger of the two loads is smallest; of equals, that of the smallest numbers.

    Returns: that load, the example given, the example taken in exchange (-1: none), and the other
    rank.
    """
    found = []
    mine = step.rank == loaded
    for given, cost in zip(step.example[mine].tolist(), step.cost[mine].tolist()):
        left = loads_R[loaded] - cost
        gifts_R = np.maximum(left, loads_R + cost)
        gifts_R[loaded] = np.inf
        rank = int(gifts_R.argmin())  # the first of equals
        found.append((float(gifts_R[rank]), given, -1, rank))
        exchanges_E = np.maximum(left + step.cost, loads_R[step.rank] + cost - step.cost)
        exchanges_E[mine] = np.inf
        e = int(exchanges_E.argmin())
        found.append((float(exchanges_E[e]), given, int(step.example[e]), int(step.rank[e])))
    return min(found)


def with_totals(
    steps: list[Step], lengths: Sequence[int], costs: Sequence[float], budget_tokens: int
) -> Plan:
    """The plan of these steps, with its totals."""
    tokens = sum(lengths[i] for step in steps for i in step.examples())
    if not steps:
        return Plan(steps, tokens, fill_ratio=0.0, imbalance=1.0)
    micro_batches = sum(1 for step in steps for rank in step.ranks for micro in rank if micro)
    mean_load = most_load = 0.0
    for step in steps:
        loads = [sum(costs[i] for micro in rank for i in micro) for rank in step.ranks if rank[0]]
        mean_load += sum(loads) / len(step.ranks)
        most_load += max(loads)
    return Plan(
        steps,
        tokens,
        fill_ratio=tokens / (micro_batches * budget_tokens),
        imbalance=most_load / mean_load,
    )
