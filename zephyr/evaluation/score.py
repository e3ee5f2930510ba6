"""Pairs become log-probs under a model and, against a reference, implicit rewards: a row a pair."""

from typing import NamedTuple


class TokenScores(NamedTuple):
    """The tokens of one response under a model and its reference, EOS included."""

    tokens: list[str]  # text of each token; joined, they are the response
    logp: list[float]  # log p of each token, in nats
    ref_logp: list[float]  # the same under the reference; empty where there is none
