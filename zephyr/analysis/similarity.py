"""How alike the two responses of a pair are, as texts."""

from collections.abc import Iterable

from zephyr.config import BadInput


def text_similarities(pairs: Iterable[tuple[str, str]]) -> list[float]:
    """The normalised Indel similarity of each pair of texts a and b, in [0, 1].

    2 L / (|a| + |b|), where L is the length of their longest common subsequence and |a| the
    characters of a: 1 for equal texts, 0 for texts without a common character. It is 1 minus the
    fewest characters to insert and delete that make b of a, divided by |a| + |b|.

    Raises: BadInput: rapidfuzz is not installed.
    """
    try:
        from rapidfuzz.distance import Indel
    except ImportError:
        raise BadInput(
            "the column similarity needs rapidfuzz, which is not installed: "
            "pip install 'zephyr[data]', or leave the column out with --no-similarity"
        ) from None
    return [float(Indel.normalized_similarity(a, b)) for a, b in pairs]
