"""Length profiles of preference pairs and dialogues, and rows of random tokens that have them.

Lognormals, clipped as truncation clips (prompt <= 512, prompt + response <= 1024), reproduce what is published of the data sets:
UltraFeedback's median prompt + response of 409 tokens and median prompt / response of 0.42 (here 401 and 0.42)."""
import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zephyr.chat import EncodedPair


class Profile(NamedTuple):
    """Mean and log-deviation of prompts and of responses before clipping, and the correlation of a pair's two responses."""
    prompt: tuple[float, float]
    response: tuple[float, float]
    correlation: float = 0.6


PROFILES = {"ultrafeedback": Profile((185, 1.1), (320, 0.75)), "hh": Profile((140, 0.8), (60, 0.75)), "tldr": Profile((352, 0.4), (33, 0.35))}


def pair_lengths(profile: str, pairs: int, seed: int = 0, longest: int = 1024) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) of each pair; everything is scaled by `longest` / 1024."""
    rng, of, scale = np.random.default_rng(seed), PROFILES[profile], longest / 1024
    z = rng.standard_normal((3, pairs))
    z[2] = of.correlation * z[1] + (1 - of.correlation**2) ** 0.5 * z[2]
    prompt, chosen, rejected = (m * scale * np.exp(s * x - s * s / 2) for (m, s), x in zip((of.prompt, of.response, of.response), z))
    prompt = prompt.clip(2, longest // 2).astype(int)
    return [(int(p), *(int(min(max(r, 2), longest - p)) for r in both)) for p, *both in zip(prompt, chosen, rejected)]


def dialogue_lengths(documents: int, seed: int = 0, longest: int = 2048) -> list[int]:
    """UltraChat-like: a mean of about 1,140 tokens, half of them over 1,024, cut at `longest`."""
    drawn = np.random.default_rng(seed).lognormal(np.log(1060), 0.62, documents)
    return drawn.clip(16, longest).astype(int).tolist()


def random_pairs(lengths: Sequence[tuple[int, int, int]], vocabulary: int, seed: int = 0) -> list[EncodedPair]:
    """Pairs of random token ids with these lengths; the two responses differ in their first token."""
    rng = random.Random(seed)

    def draw(n: int) -> list[int]:
        return [rng.randrange(3, vocabulary) for _ in range(n)]
    pairs = [EncodedPair(str(i), draw(p), draw(c), draw(r)) for i, (p, c, r) in enumerate(lengths)]
    return [pair._replace(rejected_ids=[3 + (pair.chosen_ids[0] - 2) % (vocabulary - 3), *pair.rejected_ids[1:]]) for pair in pairs]
