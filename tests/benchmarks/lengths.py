"""Length profiles of preference pairs and dialogues, and rows of random tokens that have them.

Lognormals, clipped as truncation clips (prompt <= 512, prompt + response <= 1024), reproduce what
is published of the data sets: UltraFeedback's median prompt + response of 409 tokens and median
prompt / response of 0.42 (here 401 and 0.42)."""

import random
from collections.abc import Sequence

import numpy as np

from zephyr.chat import EncodedPair
from zephyr.costs import work as costs
from zephyr.costs.work import PROFILES  # noqa: F401


def pair_lengths(
    profile: str, pairs: int, seed: int = 0, longest: int = 1024
) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) of each pair; everything is scaled by `longest` / 1024."""
    return costs.pair_lengths(profile, pairs, seed, longest // 2, longest, longest / 1024)


def dialogue_lengths(documents: int, seed: int = 0, longest: int = 2048) -> list[int]:
    """UltraChat-like: a mean of about 1,140 tokens, half of them over 1,024, cut at `longest`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(1060), 0.62, documents)
    return drawn.clip(16, longest).astype(int).tolist()


def random_pairs(
    lengths: Sequence[tuple[int, int, int]], vocabulary: int, seed: int = 0
) -> list[EncodedPair]:
    """Pairs of random token ids with these lengths; the two responses differ in their first
    token."""
    rng = random.Random(seed)

    def draw(n: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(n)]

    pairs = [EncodedPair(str(i), draw(p), draw(c), draw(r)) for i, (p, c, r) in enumerate(lengths)]
    return [
        pair._replace(
            rejected_ids=[3 + (pair.chosen_ids[0] - 2) % (vocabulary - 3), *pair.rejected_ids[1:]]
        )
        for pair in pairs
    ]
