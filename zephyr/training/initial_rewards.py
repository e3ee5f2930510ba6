"""Before the first update of DPO, policy and reference are the same weights: all rewards are 0.

A reference store that was computed with other weights is found here.
"""

from collections.abc import Sequence
from typing import NamedTuple

from zephyr.config import BadInput, DPOConfig
from zephyr.training.engine import Engine
from zephyr.training.metrics import Ledger
from zephyr.training.tolerance import SUM_TOLERANCE, SUMS_RMS_TOLERANCE, response_tolerance_nats


class InitialReward(NamedTuple):
    """A pair's reward of one response before the first update, and its limit."""

    reward: float
    allowed: float  # the limit of its size: what another packing may change by rounding


def require_zero_rewards(
    engine: Engine,
    ledger: Ledger,
    config: DPOConfig,
    examples: Sequence[int],
    initial_loss: float | None,
) -> None:
    """Check that in the first step policy and reference agree: all rewards are 0.

    Another packing may change log-probs by rounding. Three limits: each reward by itself
    (`response_tolerance_nats`), their mean square (`SUMS_RMS_TOLERANCE`), and their sum (rounding
    errors cancel). A collective, before the first update.

    Args: ledger: holds this rank's pairs of the first step. examples: of that step, on all ranks.
    initial_loss: of each pair while the policy is its reference; None: not checked.
    Raises: BadInput naming the pairs whose rewards are not 0, on every rank.
    """
    ranks = engine.all_gather(initial_rewards(ledger, config, initial_loss))
    found = [pair for pairs, _ in ranks for pair in pairs]
    for side in ("chosen", "rejected"):
        rewards = [reward for _, of_rank in ranks for reward in of_rank[side]]
        if not found and is_biased(rewards, config.hardware.dtype):
            found = [f"rewards/{side} {ledger.ids[i]}" for i in examples]
    if found:
        raise BadInput(
            f"policy and reference differ before the first update: the rewards of {len(found)} of "
            f"{len(examples)} pairs are not 0: {', '.join(found[:5])}; the reference store holds "
            f"other values than the model's: delete {config.reference.dir}, then start again"
        )


def initial_rewards(
    ledger: Ledger, config: DPOConfig, initial_loss: float | None
) -> tuple[list[str], dict[str, list[InitialReward]]]:
    """Of this rank's pairs in the ledger: those with a reward or loss too far off, and the rewards
    of both sides."""
    too_far: list[str] = []
    rewards: dict[str, list[InitialReward]] = {"chosen": [], "rejected": []}
    for _, _, indices, stats in ledger.visits:
        columns = (stats[name].tolist() for name in ("rewards/chosen", "rewards/rejected", "loss"))
        for i, chosen, rejected, loss in zip(indices, *columns):
            of_pair = []
            for side, reward in (("chosen", chosen), ("rejected", rejected)):
                tokens = ledger.token_counts[f"{side}_tokens"][i]
                nats = response_tolerance_nats(config.hardware.dtype, tokens)
                of_pair.append(InitialReward(reward, config.beta * nats))
                rewards[side].append(of_pair[-1])
            # A NaN is not within anything.
            near = all(abs(of.reward) <= of.allowed for of in of_pair)
            if initial_loss is not None:
                loss_allowed = abs(chosen) + abs(rejected) + 1e-5
                near = near and abs(loss - initial_loss) <= loss_allowed
            if not near:
                too_far.append(
                    f"{ledger.ids[i]} (rewards {chosen:+.4f} and {rejected:+.4f}, loss {loss:.4f})"
                )
    return too_far, rewards


def is_biased(rewards: Sequence[InitialReward], dtype: str) -> bool:
    """Whether rewards are together further from 0 than rounding moves them.

    Either their sum is too large for errors that cancel, or their mean square is too large, each
    reward taken as a share of its own limit.
    """
    reward_sum = sum(of.reward for of in rewards)
    allowed_square = sum(of.allowed**2 for of in rewards)
    squares = [(of.reward / of.allowed) ** 2 for of in rewards]
    mean_square = (SUMS_RMS_TOLERANCE[dtype] / SUM_TOLERANCE[dtype]) ** 2
    # 1 + : one reward may be as large as its own limit (a share of 1), also where there are so few
    # rewards that its square alone would exceed the mean.
    within = reward_sum**2 <= allowed_square and sum(squares) <= 1 + len(squares) * mean_square
    return not within
