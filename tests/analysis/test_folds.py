"""Cross-validated suspicion: found where planted, and no pair votes on itself."""

import numpy as np
import pytest

from zephyr.analysis.folds import (
    fit,
    fold_suspicion,
    objective,
    out_of_fold_logits,
    principal,
)
from zephyr.config import BadInput

RNG = np.random.default_rng(0)


def planted(pairs: int = 600, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Features of which one direction tells the better response, 5 % of the labels flipped."""
    x_PF = RNG.normal(size=(pairs, size))
    x_PF[:, 0] = np.abs(x_PF[:, 0]) * 3
    is_flipped = RNG.random(pairs) < 0.05
    x_PF[is_flipped] *= -1
    return x_PF, is_flipped


def test_planted_flips_are_found() -> None:
    """Fails where out-of-fold logits lose the sign of a feature, or a fold's pairs are given the
    logits of others."""
    x_PF, is_flipped = planted()
    suspected = fold_suspicion([x_PF], 5) > 0.5
    hits = (suspected & is_flipped).sum()
    assert hits > 0.7 * is_flipped.sum() and hits > 0.7 * suspected.sum()


def test_a_pair_does_not_decide_its_own_label() -> None:
    """Features without any signal, more of them than pairs: a fit to all pairs gets every label
    right. Fails where a pair is among those that its weights are fitted to: the share that is right
    out of fold is one half."""
    x_PF = principal(RNG.normal(size=(100, 120)))
    assert (x_PF @ fit(x_PF, 1e-3) > 0).mean() > 0.95
    assert abs((out_of_fold_logits(x_PF, 5, 0) > 0).mean() - 0.5) < 0.15
    assert (fold_suspicion([x_PF], 5) > 0.5).mean() < 0.1


def test_the_directions_do_not_see_labels() -> None:
    """Fails where the features are centered, or scaled by something that a flip changes: then the
    labels of a held-out pair would reach the weights."""
    x_PF, _ = planted(50, 5)
    signs_P = np.where(RNG.random(50) < 0.5, -1, 1)[:, None]
    np.testing.assert_allclose(np.abs(principal(x_PF * signs_P)), np.abs(principal(x_PF)))


def test_the_weights_are_those_of_the_minimum() -> None:
    """Fails where Newton's method stops early: at the minimum every step in any direction raises
    the loss."""
    x_PF = principal(planted(200, 10)[0])
    w_F = fit(x_PF, 0.01)
    least = objective(x_PF, w_F, 0.01)
    for direction_F in RNG.normal(size=(20, 10)):
        assert objective(x_PF, w_F + 1e-3 * direction_F, 0.01) > least


def test_pairs_without_features_have_no_suspicion() -> None:
    """Fails where a missing row spoils the others, or a number of folds that can't be passes."""
    x_PF, _ = planted(60, 4)
    x_PF[7] = np.nan
    suspicion_P = fold_suspicion([x_PF, RNG.normal(size=60)], 3)
    assert np.flatnonzero(np.isnan(suspicion_P)).tolist() == [7]
    for folds in (1, 60):
        with pytest.raises(BadInput, match=f"--folds: .* at most 59, .* got {folds}"):
            fold_suspicion([x_PF], folds)
