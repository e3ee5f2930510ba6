"""A published judge's raw reply becomes the verdict that it states, so that stored verdicts can be
checked against their source."""

import json
import math
from collections.abc import Mapping
from typing import NamedTuple


class Verdict(NamedTuple):
    """preference: 1 where the first answer is the better, 2 where the second is. tied: both have
    one rank; the preference is then the first answer's rank all the same, as AlpacaEval counts
    it."""

    preference: int
    tied: bool


def ranked_verdict(raw: object, shown_as: Mapping[str, str]) -> Verdict:
    """The verdict of a judge that explains itself and ranks: {"concise_explanation",
    "ordered_models": [{"model", "rank"}, ...]}.

    Args: raw: the reply, as JSON text or parsed. shown_as: which of output_1 and output_2 each of
    the names m and M stood for. Raises: ValueError where the reply does not rank both answers 1 or
    2."""
    reply = json.loads(raw) if isinstance(raw, str) else raw
    ranking = reply.get("ordered_models") if isinstance(reply, Mapping) else None
    entries = (
        [entry for entry in ranking if isinstance(entry, Mapping)]
        if isinstance(ranking, list)
        else []
    )
    ranks = {shown_as.get(str(entry.get("model"))): entry.get("rank") for entry in entries}
    if ranks.keys() != {"output_1", "output_2"} or not all(
        type(rank) is int and rank in (1, 2) for rank in ranks.values()
    ):
        raise ValueError(
            f"the reply ranks {ranking!r:.200}, wanted rank 1 or 2 for each of "
            f"{', '.join(shown_as)}"
        )
    return Verdict(ranks["output_1"], ranks["output_1"] == ranks["output_2"])


def probability_of_m(raw: object) -> float | None:
    """p(m) / (p(m) + p(M)) at the first token of a chat completion with `logprobs`: how sure a
    judge is of the answer called m.

    A letter that is not among the top tokens counts as impossible. None: the judge gave no reply.
    Raises: ValueError where the reply has no log-probabilities, or none of either letter."""
    if raw is None:
        return None
    try:
        top = raw["logprobs"]["content"][0]["top_logprobs"]  # type: ignore[index]
        logprobs = {token["token"]: float(token["logprob"]) for token in top}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(
            f"the reply has no log-probabilities of its first token: {type(error).__name__} {error}"
        ) from None
    m, other = (math.exp(logprobs.get(letter, -math.inf)) for letter in "mM")
    if m + other <= 0:
        raise ValueError(
            f"the reply's first token is neither m nor M, but one of "
            f"{', '.join(map(repr, logprobs))}"
        )
    return m / (m + other)
