"""Suspected flipped labels: found where they were planted, none found where there are none."""

import numpy as np

from zephyr.analysis.flips import flip_probability


def margins(count: int, learned: float) -> np.ndarray:
    """Margins of a policy that has learned the labels to some degree, in its own unit."""
    return 0.003 * np.random.default_rng(0).normal(learned, 1.0, count)


def test_clean_labels_are_not_suspected() -> None:
    """Fails where every pair that is not learned yet is called flipped: a policy that gets 84 % of
    clean labels right has 16 % of its margins below 0."""
    for learned in (0.0, 1.0, 3.0):
        suspected = flip_probability(margins(2000, learned)) > 0.5
        assert suspected.sum() <= 20


def test_a_few_pairs_raise_no_suspicion() -> None:
    """150 clean pairs, two thirds of them learned, margins with long tails: by maximum likelihood
    alone some of the seeds show dozens of flips. Fails where the prior is lost."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        evidence_P = rng.normal(0.3, 0.5, 150) * rng.exponential(1.0, 150)
        assert (flip_probability(evidence_P) > 0.5).sum() <= 5


def test_planted_flips_are_found() -> None:
    """5 % of the margins of a policy that has learned well are turned. Fails where they are not
    suspected, or others are."""
    clean = margins(2000, 3.0)
    is_flipped = np.random.default_rng(1).random(2000) < 0.05
    suspicion = flip_probability(np.where(is_flipped, -clean, clean))
    suspected = suspicion > 0.5
    assert (suspected & is_flipped).sum() > 0.9 * is_flipped.sum()
    assert (suspected & is_flipped).sum() > 0.9 * suspected.sum()
    assert abs(suspicion.mean() - is_flipped.mean()) < 0.01


def test_no_evidence_is_no_suspicion() -> None:
    """Fails where a run without visits, or one that has not moved, raises or suspects."""
    assert flip_probability(np.zeros(0)).shape == (0,)
    assert not flip_probability(np.zeros(3)).any()
    assert not flip_probability(np.full(3, np.nan)).any()
