"""Points and scores of prompts become means, win rates and agreements, each with its interval.

Shapes: B resamples, P prompts."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

RESAMPLES = 4000
REFITS = 1000  # of the length-controlled fit


def mean_with_interval(name: str, values: Sequence[float]) -> dict[str, object]:
    """Return `{name: mean, "n": n, "stderr": s, "ci95": [low, high]}` of one value per prompt.

    stderr is the sample standard deviation / sqrt(n). ci95 are percentiles of the means of
    resampled prompts (Efron 1979). A number that so few values don't have is None."""
    rng, values_P, n = np.random.default_rng(0), np.array(values, dtype=float), len(values)
    if not n:
        return described(name, np.array([np.nan]), 0)
    parts = [
        values_P[rng.integers(n, size=(100, n))].mean(axis=1) for _ in range(RESAMPLES // 100)
    ]  # in parts, for memory
    stderr = float(values_P.std(ddof=1) / n**0.5) if n > 1 else None
    return described(name, np.array([values_P.mean(), *np.ravel(parts)]), n) | {"stderr": stderr}


def clustered_mean(name: str, values: Sequence[tuple[object, float]]) -> dict[str, object]:
    """The form of `mean_with_interval` for the mean of all values, and `clusters`, their number.
    Values of one cluster, e.g. of one question, belong together.

    stderr and ci95 are over clusters, of the mean's linear expansion (Cochran 1977, chapter 6).

    Args: values: pairs of cluster and value."""
    mean = sum(value for _, value in values) / max(1, len(values))
    distances: defaultdict[object, float] = defaultdict(float)
    for cluster, value in values:
        distances[cluster] += value - mean
    over_clusters = mean_with_interval(
        name, [mean + distance * len(distances) / len(values) for distance in distances.values()]
    )
    return {**over_clusters, "n": len(values), "clusters": len(distances)}


def described(name: str, values_B: np.ndarray, n: int) -> dict[str, object]:
    """The form of `mean_with_interval` for the number `values_B[0]`, whose spread is that of its
    values in resamples, `values_B[1:]`."""
    drawn = values_B[1:][np.isfinite(values_B[1:])]
    if not np.isfinite(values_B[0]):
        return {name: None, "n": n, "stderr": None, "ci95": None}
    return {
        name: float(values_B[0]),
        "n": n,
        "stderr": float(drawn.std()),
        "ci95": np.quantile(drawn, [0.025, 0.975]).tolist(),
    }


def length_controlled(points: Sequence[float], differences: Sequence[float]) -> dict[str, object]:
    """The win rate at equal lengths: sigmoid(a) of the fit
    P(win) = sigmoid(a + b tanh(difference / its standard deviation)).

    As Dubois et al. 2024 (arXiv:2404.04475), without their term for an instruction's difficulty,
    which needs the results of many models. A ridge (1 on b, 0.001 on a) keeps the fit finite: where
    length decides every verdict, a part of its effect is left.

    Args: points: 1, 0.5 or 0 per prompt. differences: our length minus theirs, per prompt."""
    if not (n := len(points)):
        return mean_with_interval("win_rate", [])
    y_P, ridge_22, fit_B2 = np.array(points), np.diag([1e-3, 1.0]), np.zeros((REFITS + 1, 2))
    x_P2 = np.stack(
        [np.ones(n), np.tanh(np.array(differences) / (np.std(differences) or np.inf))], axis=1
    )
    weights_BP = np.concatenate(
        [np.ones((1, n)), np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=REFITS)]
    )
    for _ in range(14):  # of Newton's steps; a fit on the edge gains about 1 in each
        p_BP = 1 / (1 + np.exp(-fit_B2 @ x_P2.T))
        curve_B22 = (
            (weights_BP * p_BP * (1 - p_BP)) @ (x_P2[:, :, None] * x_P2[:, None]).reshape(n, 4)
        ).reshape(-1, 2, 2) + ridge_22
        slope_B2 = (weights_BP * (y_P - p_BP)) @ x_P2 - fit_B2 @ ridge_22
        fit_B2 += np.linalg.solve(curve_B22, slope_B2[..., None])[..., 0].clip(-2, 2)
    return described("win_rate", 1 / (1 + np.exp(-fit_B2[:, 0])), n)


def agreement(labels: Sequence[float], verdicts: Sequence[float]) -> dict[str, object]:
    """How often two judges give the same of 1, 0.5 and 0: `agreement`, and Cohen's `kappa` (1960),
    the agreement beyond chance."""
    n = len(labels)
    places = [int(6 * label + 2 * verdict) for label, verdict in zip(labels, verdicts, strict=True)]
    cells_9 = np.bincount(places, minlength=9) / n
    cells_B33 = np.concatenate(
        [[cells_9], np.random.default_rng(0).multinomial(n, cells_9, size=RESAMPLES) / n]
    ).reshape(-1, 3, 3)
    same_B = cells_B33.trace(axis1=1, axis2=2)
    chance_B = (cells_B33.sum(1) * cells_B33.sum(2)).sum(1)
    kappa_B = (same_B - chance_B) / np.where(chance_B < 1, 1 - chance_B, np.nan)
    return {
        "agreement": mean_with_interval("share", [float(place in (0, 4, 8)) for place in places]),
        "kappa": described("kappa", kappa_B, n),
    }


def share_with_interval(name: str, points: Sequence[float]) -> dict[str, object]:
    """The form of `mean_with_interval` for points of 1, 0 and, for a tie, 0.5.

    ci95 is Wilson's score interval (1927), which stays true where a sample is small or all of its
    points are the same: there, resamples show no spread."""
    if not (n := len(points)):
        return mean_with_interval(name, [])
    values_P = np.array(points, dtype=float)
    share = float(values_P.mean())
    return {
        name: share,
        "n": n,
        "stderr": float(values_P.std(ddof=1) / n**0.5) if n > 1 else None,
        "ci95": [*wilson(share, n)],
    }


def wilson(share: float, n: float) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of a share of `n` trials; all of [0, 1] without one."""
    if n <= 0:
        return 0.0, 1.0
    z = 1.959963984540054
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)
