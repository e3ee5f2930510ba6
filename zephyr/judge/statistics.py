"""Scores of answers become means and win rates with intervals.

Legend: B bootstrap resamples, P prompts."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

RESAMPLES = 4000


class Interval(NamedTuple):
    """A mean and its 95 % percentile-bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


class WinRate(NamedTuple):
    """`rate`: wins plus half the ties over all prompts, in [0, 1]; `decided`: wins over the prompts that are no tie
    (0.5 where all are ties)."""

    wins: int
    ties: int
    losses: int
    rate: Interval
    decided: float


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of `values` and its 95 % interval: percentiles of the means of resampled prompts (Efron 1979).

    Raises: ValueError if there is no value."""
    if not values:
        raise ValueError("the mean of no values was asked for")
    values_P = torch.tensor(values, dtype=torch.float64)
    draws_BP = torch.randint(len(values), (RESAMPLES, len(values)), generator=torch.Generator().manual_seed(seed))
    means_B = values_P[draws_BP].mean(dim=1)
    low, high = means_B.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(values_P.mean().item(), low, high)


def win_rate(scores: Sequence[float], opponent: Sequence[float], *, seed: int = 0) -> WinRate:
    """How often `scores` beats `opponent`, prompt by prompt; a tie counts half.

    Raises: ValueError if the two are not of one length, or empty."""
    if len(scores) != len(opponent):
        raise ValueError(f"{len(scores)} scores against {len(opponent)}: the same prompts are wanted on both sides")
    points = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(scores, opponent)]
    wins, ties, losses = (points.count(value) for value in (1.0, 0.5, 0.0))
    return WinRate(wins, ties, losses, bootstrap_mean(points, seed=seed), wins / (wins + losses) if wins + losses else 0.5)
