"""How full rows get, how even the ranks of a DPO step are, and what planning and collation take,
each against its bound.

python tests/benchmarks/bench_packing.py [--documents 208000 --pairs 61966 --steps 200 --out DIR]"""

import argparse
import random
from collections.abc import Iterable, Sequence

import measure
import numpy as np
import torch
from bench_step import SHAPES, pair_table, random_policy
from lengths import dialogue_lengths, pair_lengths
from transformers import MistralConfig

from zephyr.packing import best_fit, collate_pairs, plan_epochs
from zephyr.training.flops import pair_flops

Lengths = Sequence[tuple[int, int, int]]
LAYERS_7B = 6_979_321_856  # parameters outside embedding and head


def fewest_bins(lengths: Sequence[int], capacity: int) -> int:
    """No packing has fewer bins (Martello & Toth 1990, bound L2): lengths over the half never share
    one, and what is too long for the room beside a length of `least` stays out of it; the best
    bound over all `least`."""
    count = np.bincount(lengths, minlength=capacity + 1)
    number, total = (
        np.cumsum(count),
        np.cumsum(count * np.arange(capacity + 1)),
    )  # of lengths <= index
    least, half = np.arange(1, capacity // 2 + 1), capacity // 2
    alone = number[-1] - number[half]
    room = (number[capacity - least] - number[half]) * capacity - (
        total[capacity - least] - total[half]
    )
    over = total[half] - total[least - 1] - room
    return max(
        -(-int(total[-1]) // capacity), int(alone + np.maximum(0, -(-over // capacity)).max())
    )


def fill(lengths: Sequence[int], capacity: int) -> dict[str, object]:
    """Rows of `capacity` tokens: how full, and how many against the fewest possible."""
    bins, bound = len(best_fit(lengths, capacity)), fewest_bins(lengths, capacity)
    return {
        "fill": sum(lengths) / (bins * capacity),
        "most_possible": sum(lengths) / (bound * capacity),
        "bins": bins,
        "fewest_bins": bound,
        "seconds": measure.seconds(lambda: best_fit(lengths, capacity), repeats=3, warm_ups=0),
    }


def critical_path(loads: Iterable[Sequence[float]], ideal: Iterable[float]) -> float:
    """The most loaded rank's work over the mean rank's in the ideal layout, mean over steps."""
    return float(np.mean([max(load) / best for load, best in zip(loads, ideal)]))


def balance(lengths: Lengths, per_step: int, ranks: int, budget: int = 16384) -> dict[str, object]:
    """Critical path over ideal (shared prompts, evenly split) of the plan, in tokens and in
    operations; of the longest pair or an even split, whichever is more, which whole pairs can't
    undercut; of pairs dealt at random; of pairs padded to their rank's longest."""
    shared, model = [sum(of_pair) for of_pair in lengths], MistralConfig()
    cost = [pair_flops(model, LAYERS_7B, *of_pair, True) for of_pair in lengths]
    plan = plan_epochs(shared, per_step=per_step, epochs=1, ranks=ranks, budget_tokens=budget)
    steps = [step for step in plan.steps if len(step.examples()) == per_step]
    rng, rank_size = random.Random(0), max(1, per_step // ranks)
    dealt = [rng.sample(step.examples(), per_step) for step in steps]
    parts = [
        [step[start : start + rank_size] for start in range(0, per_step, rank_size)]
        for step in dealt
    ]

    def ideal(work: Sequence[float]) -> list[float]:
        return [sum(work[i] for i in step.examples()) / ranks for step in steps]

    def loads(work: Sequence[float]) -> list[list[float]]:
        return [
            [sum(work[i] for micro in rank for i in micro) for rank in step.ranks] for step in steps
        ]

    padded = [
        [
            2 * len(part) * max(p + max(c, r) for p, c, r in (lengths[i] for i in part))
            for part in step
        ]
        for step in parts
    ]
    least = [
        [max(max(shared[i] for i in step.examples()), best)]
        for step, best in zip(steps, ideal(shared))
    ]
    at_random = [[sum(shared[i] for i in part) for part in step] for step in parts]
    of = {
        "tokens": (loads(shared), shared),
        "operations": (loads(cost), cost),
        "least_possible_tokens": (least, shared),
        "random_tokens": (at_random, shared),
        "padded_tokens": (padded, shared),
    }
    return {
        "steps": len(steps),
        "micro_batches": len(steps[0].ranks[0]),
        **{name: critical_path(load, ideal(work)) for name, (load, work) in of.items()},
    }


def collation(shape: str, pairs: int = 8) -> dict[str, object]:
    """CPU microseconds that a row takes to become tensors, and forward and backward of model
    `shape` on the same row."""
    config, lengths = SHAPES[shape], pair_lengths("ultrafeedback", pairs)
    examples, tokens = pair_table(lengths, config.vocab_size), sum(map(sum, lengths))
    policy = random_policy(config, "sdpa", torch.float32)
    batch = collate_pairs(examples, range(pairs))
    host = measure.seconds(lambda: collate_pairs(examples, range(pairs)), repeats=20)
    step = measure.seconds(lambda: policy(batch).sum().backward(), repeats=3)
    return {
        "model": shape,
        "tokens": tokens,
        "seconds": host,
        "microseconds_per_token": host["median"] / tokens * 1e6,
        "forward_backward_microseconds_per_token": step["median"] / tokens * 1e6,
        "share": host["median"] / (host["median"] + step["median"]),
    }


def main(argv: Sequence[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in {
        "documents": 208_000,
        "pairs": 61_966,
        "steps": 200,
        "model": "B",
        "out": measure.RESULTS,
    }.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    args = parser.parse_args(argv)
    documents = dialogue_lengths(args.documents)
    lengths = pair_lengths("ultrafeedback", args.pairs)
    shared = [sum(of_pair) for of_pair in lengths]
    grid = [(per_step, ranks) for per_step in (32, 64, 128) for ranks in (2, 4, 8, 16, 32)]
    result = {
        "documents": {"number": len(documents), "mean": float(np.mean(documents))},
        "fill": {str(capacity): fill(documents, capacity) for capacity in (2048, 16384)},
        "balance": {
            f"{per_step} pairs, {ranks} ranks": balance(
                lengths[: args.steps * per_step], per_step, ranks
            )
            for per_step, ranks in grid
        },
        "plan": {
            "pairs": len(lengths),
            "epochs": 3,
            "seconds": measure.seconds(
                lambda: plan_epochs(shared, per_step=32, epochs=3, ranks=16, budget_tokens=16384),
                repeats=3,
                warm_ups=0,
            ),
        },
        "collation": collation(args.model),
    }
    measure.RESULTS = args.out
    measure.save("packing", "python tests/benchmarks/bench_packing.py", result)
    return result


if __name__ == "__main__":
    main()
