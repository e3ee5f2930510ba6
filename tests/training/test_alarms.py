"""Alarms: raised where they are for, silent in a healthy run."""

import pytest
import torch

from zephyr.training import alarms

ULP = torch.finfo(torch.bfloat16).eps
# Zephyr-7B-beta's own last record (its model card): rewards -4.52, log-probs -299.46, beta 0.1;
# updates of 4e-6 of the weights
ZEPHYR = {
    "update_ratio": 4e-6,
    "learning_rate": 5e-7,
    "rewards/chosen": -4.5221,
    "logps/chosen": -299.46,
}
RATES = [5e-7] * 5700


def test_zephyrs_own_run_is_healthy() -> None:
    """Its chosen log-probs fell by 18 %. Fails where an alarm cries wolf at the recipe itself."""
    assert alarms.training_alarms(ZEPHYR, 0.1, RATES, ULP) == {}


def test_frozen_weights() -> None:
    """The same update at a rate, or in a run, too small to change a bfloat16 weight; in float32
    that run is healthy. A step at rate 0 says nothing. Fails where the length of the run is left
    out, or a rate of 0 divides."""
    slow = ZEPHYR | {"update_ratio": 4e-9, "learning_rate": 5e-10}
    assert set(alarms.training_alarms(slow, 0.1, [5e-10] * 5700, ULP)) == {"frozen_weights"}
    assert set(alarms.training_alarms(ZEPHYR, 0.1, RATES[:20], ULP)) == {"frozen_weights"}
    assert alarms.training_alarms(slow, 0.1, [5e-10] * 5700, torch.finfo(torch.float32).eps) == {}
    assert (
        alarms.training_alarms(
            ZEPHYR | {"update_ratio": 0.0, "learning_rate": 0.0}, 0.1, RATES, ULP
        )
        == {}
    )


def test_chosen_falls() -> None:
    """Past a quarter of the reference's log-prob, whatever beta scales the reward with; a rise is
    none. Fails where beta is left out, or the sign is lost."""
    fallen = ZEPHYR | {"rewards/chosen": -7.0, "logps/chosen": -254.24 - 70}
    raised = alarms.training_alarms(fallen, 0.1, RATES, ULP)
    assert (
        set(raised) == {"chosen_falls"}
        and "lost 70.0 nats of the reference's -254.2" in raised["chosen_falls"]
    )
    assert set(alarms.training_alarms(fallen | {"rewards/chosen": -70.0}, 1.0, RATES, ULP)) == {
        "chosen_falls"
    }
    assert (
        alarms.training_alarms(
            fallen | {"rewards/chosen": 20.0, "logps/chosen": -54.24}, 0.1, RATES, ULP
        )
        == {}
    )
    assert (
        alarms.training_alarms({"update_ratio": 4e-6, "learning_rate": 5e-7}, None, RATES, ULP)
        == {}
    )  # SFT


def evaluation(step: int, accuracy: float, margin: float, pairs: int = 1000) -> dict[str, float]:
    return {"step": step, "rewards/accuracies": accuracy, "rewards/margins": margin, "pairs": pairs}


@pytest.mark.parametrize(
    "accuracy,margin,pairs,raised",
    [
        (0.70, 3.0, 1000, True),
        (0.76, 3.0, 1000, False),
        (0.70, 0.5, 1000, False),
        (0.85, 3.0, 1000, False),
        (0.70, 3.0, 20, False),
    ],
    ids=[
        "overfit",
        "within two standard errors",
        "margins fall too",
        "accuracy rises",
        "too few pairs to tell",
    ],
)
def test_overfitting(accuracy: float, margin: float, pairs: int, raised: bool) -> None:
    """Against the best evaluation (step 200), not the last, nor the one of the widest margin. Fails
    for an alarm at noise, or one that forgets the best."""
    earlier = [
        evaluation(100, 0.60, 0.5, pairs),
        evaluation(200, 0.78, 1.0, pairs),
        evaluation(300, 0.71, 1.1, pairs),
    ]
    found = alarms.evaluation_alarms(evaluation(400, accuracy, margin, pairs), earlier)
    assert set(found) == ({"overfit"} if raised else set())
    assert not raised or "since step 200 the accuracy fell by 0.080" in found["overfit"]


def test_no_earlier_evaluation_and_none_of_pairs() -> None:
    """Fails where the first evaluation, or one of SFT, ends the run."""
    assert alarms.evaluation_alarms(evaluation(100, 0.5, 0.1), []) == {}
    assert alarms.evaluation_alarms({"step": 2, "loss": 1.0}, [{"step": 1, "loss": 0.9}]) == {}
