"""Margins become the probability that a pair's label is flipped: that its rejected response is the
better one.

Shape letters:
    V  visits
    P  pairs
"""

import numpy as np

from zephyr.analysis.visits import Floats, Visits

ITERATIONS = 200
NEWTON_STEPS = 5
TOLERANCE = 1e-6
PRIOR_PAIRS = 100  # pairs with right labels that are counted with the others
MAX_FLIPPED = 0.5  # the share of flipped labels: beyond half, the labels would be the flipped ones


def flip_suspicion(visits: Visits) -> Floats:
    """The probability that each pair's label is flipped, from the ledger alone.

    The evidence of a pair is the mean of its margins over its visits. See `flip_probability`.

    Returns: float64 [P] in [0, 1], in the order of `visits.ids`. A pair over 0.5 is suspected.
    """
    if not visits.ids:
        return np.zeros(0)
    counts_P = np.bincount(visits.pair_V)
    mean_P = np.bincount(visits.pair_V, weights=visits.margin_V) / counts_P
    return flip_probability(mean_P)


def flip_probability(evidence_P: Floats) -> Floats:
    """The posterior probability of a flip under Bradley-Terry with flipped labels.

    With the evidence z (above 0: for the label as it is), a scale a and a share e of flipped
    labels, the label as it is has the probability (1 - e) sigmoid(a z) + e sigmoid(-a z). The
    scale and the share that make all labels most probable are found by EM, with z in units of its
    median absolute value, and
    P(flipped | z) = e sigmoid(-a z) / ((1 - e) sigmoid(a z) + e sigmoid(-a z)).
    A pair whose margin is near 0 is undecided, not suspected: a clear margin for the other
    response is, where most margins are clear. The share has a prior, as if PRIOR_PAIRS more pairs
    were known to be right: a hundred pairs alone can't tell a few flips from noise.

    Args: evidence_P: float64 [P]; a value that is not finite is no evidence.
    Returns: float64 [P] in [0, 1].
    """
    z_P = np.nan_to_num(np.asarray(evidence_P, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    spread = float(np.median(np.abs(z_P))) if len(z_P) else 0.0
    if spread == 0:
        return np.zeros(len(z_P))
    z_P = z_P / spread
    scale, share = 1.0, 0.1
    flipped_P = np.zeros(len(z_P))
    for _ in range(ITERATIONS):
        kept_P = (1 - share) * sigmoid(scale * z_P)
        turned_P = share * sigmoid(-scale * z_P)
        flipped_P = turned_P / (kept_P + turned_P)
        before = (scale, share)
        share = min(float(flipped_P.sum()) / (len(z_P) + PRIOR_PAIRS), MAX_FLIPPED)
        scale = fit_scale(z_P, flipped_P, scale)
        if max(abs(scale - before[0]), abs(share - before[1])) < TOLERANCE:
            break
    return flipped_P


def fit_scale(z_P: Floats, flipped_P: Floats, scale: float) -> float:
    """The scale under which labels, each flipped with a probability, are most probable."""
    for _ in range(NEWTON_STEPS):
        p_P = sigmoid(scale * z_P)
        slope = float(((1 - flipped_P - p_P) * z_P).sum())
        curvature = float((p_P * (1 - p_P) * z_P * z_P).sum()) + 1e-9
        scale = float(np.clip(scale + slope / curvature, 0.0, 100.0))
    return scale


def sigmoid(x_P: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -x_P))
