"""Hidden states of a model become the suspicion that a pair's label is flipped, cross-validated:
the pair itself is not among those that decide it.

Shape letters:
    P  pairs
    F  features
    K  folds
"""

from collections.abc import Sequence

import numpy as np

from zephyr.analysis.flips import flip_probability, sigmoid
from zephyr.analysis.visits import Floats
from zephyr.config import BadInput

COMPONENTS = 128  # principal directions of the features that are kept
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)  # penalties that are tried, of the mean loss
ITERATIONS = 25
TOLERANCE = 1e-8


def fold_suspicion(features: Sequence[Floats], folds: int, seed: int = 0) -> Floats:
    """The probability that each pair's label is flipped, from features of its two responses.

    Each feature is that of the chosen response less that of the rejected one, so that a flip turns
    its sign. A logistic regression without intercept, P(chosen is better) = sigmoid(w . x), is
    fitted to the other folds and gives the pair's out-of-fold logit (confident learning, Northcutt
    et al. 2021, arXiv:1911.00068, trains so too); `flip_probability` turns the logits into
    probabilities.

    Args:
        features: blocks [P, F] or [P]; NaN where a pair has none: its suspicion is NaN.
        folds: parts of the pairs, at least 2.
        seed: of the folds.
    Returns: float64 [P].
    Raises: BadInput for a number of folds that the pairs don't allow.
    """
    blocks = [block if block.ndim == 2 else block[:, None] for block in features]
    has_all_P = np.all([np.isfinite(block).all(axis=1) for block in blocks], axis=0)
    known = np.flatnonzero(has_all_P)
    if not 2 <= folds <= len(known):
        raise BadInput(
            f"--folds: expected at least 2 and at most {len(known)}, the pairs with features, got "
            f"{folds}"
        )
    suspicion_P = np.full(len(has_all_P), np.nan)
    x_PF = np.hstack([principal(block[known]) for block in blocks])
    suspicion_P[known] = flip_probability(out_of_fold_logits(x_PF, folds, seed))
    return suspicion_P


def principal(x_PF: Floats) -> Floats:
    """The features in their principal directions, at most COMPONENTS, scaled to a mean square of 1.

    The directions are those of the second moments about 0, which a flip, x to -x, leaves as they
    are: they tell nothing of the labels.
    """
    x_PF = np.asarray(x_PF, np.float64)
    _, directions_FF = np.linalg.eigh(x_PF.T @ x_PF)
    projected_PF: Floats = x_PF @ directions_FF[:, ::-1][:, :COMPONENTS]
    size = float(np.sqrt(np.square(projected_PF).sum(axis=1).mean()))
    if size > 0:
        projected_PF /= size
    return projected_PF


def out_of_fold_logits(x_PF: Floats, folds: int, seed: int) -> Floats:
    """w . x [P] of each pair, w fitted to the pairs of all other folds.

    Of RIDGES that one is taken under which the labels of pairs are most probable out of fold.
    """
    fold_P = np.random.default_rng(seed).permutation(np.arange(len(x_PF)) % folds)
    best_P, best_loss = np.zeros(len(x_PF)), np.inf
    for ridge in RIDGES:
        logit_P = np.empty(len(x_PF))
        for fold in range(folds):
            logit_P[fold_P == fold] = x_PF[fold_P == fold] @ fit(x_PF[fold_P != fold], ridge)
        loss = float(np.logaddexp(0.0, -logit_P).mean())
        if loss < best_loss:
            best_P, best_loss = logit_P, loss
    return best_P


def fit(x_PF: Floats, ridge: float) -> Floats:
    """The weights w [F] that minimize mean softplus(-w . x) + ridge / 2 |w|^2, by Newton's method.

    The loss is convex; a step that does not lower it is halved.
    """
    w_F = np.zeros(x_PF.shape[1])
    loss = objective(x_PF, w_F, ridge)
    for _ in range(ITERATIONS):
        p_P = sigmoid(x_PF @ w_F)
        gradient_F = -x_PF.T @ (1 - p_P) / len(x_PF) + ridge * w_F
        hessian_FF = (x_PF * (p_P * (1 - p_P))[:, None]).T @ x_PF / len(x_PF)
        step_F = np.linalg.solve(hessian_FF + ridge * np.eye(len(w_F)), gradient_F)
        size = 1.0
        while size > TOLERANCE and objective(x_PF, w_F - size * step_F, ridge) > loss:
            size /= 2
        w_F = w_F - size * step_F
        before, loss = loss, objective(x_PF, w_F, ridge)
        if before - loss < TOLERANCE:
            break
    return w_F


def objective(x_PF: Floats, w_F: Floats, ridge: float) -> float:
    return float(np.logaddexp(0.0, -x_PF @ w_F).mean() + ridge / 2 * (w_F @ w_F))
