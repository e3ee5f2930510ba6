"""Records become alarms: what a person should look at. No alarm changes a number or ends a run."""

import math
from collections.abc import Mapping, Sequence

MAX_CHOSEN_DROP = 0.25  # of the reference's log-prob; Zephyr-7B-beta's own run ended at 0.18
Record = Mapping[str, object]


def training_alarms(
    metrics: Mapping[str, float], beta: float | None, rates: Sequence[float], precision: float
) -> dict[str, str]:
    """Alarms of a train record: name -> a sentence that says what is wrong.

    Args: beta: None for SFT. rates: learning rates of all steps. precision: relative spacing of
    numbers in the dtype that the forward computes in.
    """
    alarms = {}
    rate = metrics["learning_rate"]
    # How far all updates together would move the weights, at most, as a share of their size.
    reach = metrics["update_ratio"] / rate * sum(rates) if rate else math.inf
    if reach < precision:
        alarms["frozen_weights"] = (
            f"all {len(rates)} updates, pulling one way, would move the weights by {reach:.1e} of "
            f"their size; the forward's rounding hides moves below {precision:.1e}"
        )
    if beta is not None:
        drop = -metrics["rewards/chosen"] / beta
        reference = metrics["logps/chosen"] + drop
        if drop > -MAX_CHOSEN_DROP * reference:
            alarms["chosen_falls"] = (
                f"chosen responses lost {drop:.1f} nats of the reference's {reference:.1f}; a "
                "lower learning rate, fewer epochs or a larger beta hold them"
            )
    return alarms


def evaluation_alarms(record: Record, earlier: Sequence[Record]) -> dict[str, str]:
    """Alarm of overfitting at an evaluation.

    It is raised where margins grew since the evaluation with the best accuracy, while accuracy fell
    by more than two standard errors.
    """
    if "rewards/accuracies" not in record or not earlier:
        return {}
    best = max(earlier, key=lambda r: number(r, "rewards/accuracies"))
    pairs, accuracy = number(best, "pairs"), number(best, "rewards/accuracies")
    share = (accuracy * pairs + 1) / (pairs + 2)  # Laplace's estimate: its error is never 0
    standard_error = math.sqrt(share * (1 - share) / pairs)
    drop = accuracy - number(record, "rewards/accuracies")
    margin, best_margin = number(record, "rewards/margins"), number(best, "rewards/margins")
    if drop <= 2 * standard_error or margin <= best_margin:
        return {}
    return {
        "overfit": f"since step {best['step']} the accuracy fell by {drop:.3f} while margins grew: "
        "the pairs are learnt by heart"
    }


def number(record: Record, name: str) -> float:
    """A metric of a record."""
    value = record[name]
    assert isinstance(value, (int, float)), f"{name} is {value!r}, not a number"
    return value
