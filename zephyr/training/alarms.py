"""Records become alarms: what a person would want to be woken for. None of them changes a number or
ends a run."""

import math
from collections.abc import Mapping, Sequence

MAX_CHOSEN_DROP = 0.25  # of the reference's log-prob; Zephyr-7B-beta's own run ended at 0.18
Record = Mapping[str, float]


def training_alarms(
    record: Record, beta: float | None, rates: Sequence[float], ulp: float
) -> dict[str, str]:
    """Name -> sentence of what is wrong at a train record. Args: beta: None for SFT. rates:
    learning rates of all steps. ulp: relative, of the dtype that the forward computes in."""
    alarms = {}
    path = (
        record["update_ratio"] / record["learning_rate"] * sum(rates)
        if record["learning_rate"]
        else math.inf
    )
    if path < ulp:
        alarms["frozen_weights"] = (
            f"all {len(rates)} updates, pulling one way, would move the weights by {path:.1e} of their size; "
            f"less than {ulp:.1e} is lost where the forward rounds them"
        )
    if beta is not None and (fall := -record["rewards/chosen"] / beta) > -MAX_CHOSEN_DROP * (
        record["logps/chosen"] + fall
    ):
        alarms["chosen_falls"] = (
            f"chosen responses lost {fall:.1f} nats of the reference's {record['logps/chosen'] + fall:.1f}; a "
            "lower learning rate, fewer epochs or a larger beta hold them"
        )
    return alarms


def evaluation_alarms(record: Record, earlier: Sequence[Record]) -> dict[str, str]:
    """Overfitting: accuracy fell by more than two standard errors since the evaluation of the best
    one, and margins grew."""
    if "rewards/accuracies" not in record or not earlier:
        return {}
    best = max(earlier, key=lambda r: r["rewards/accuracies"])
    share = (best["rewards/accuracies"] * best["pairs"] + 1) / (
        best["pairs"] + 2
    )  # after Laplace: its error is never 0
    fell = best["rewards/accuracies"] - record["rewards/accuracies"]
    if (
        fell <= 2 * math.sqrt(share * (1 - share) / best["pairs"])
        or record["rewards/margins"] <= best["rewards/margins"]
    ):
        return {}
    return {
        "overfit": f"since step {best['step']} the accuracy fell by {fell:.3f} while margins grew: the pairs are learnt by heart"
    }
