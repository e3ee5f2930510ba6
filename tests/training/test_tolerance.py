"""The limits lie between what rounding made and what a fault made, as both were measured, and
follow the model's own rounding between them."""

from __future__ import annotations

import math

import pytest

from zephyr.training.tolerance import (
    GRADIENT_TOLERANCE,
    RESPONSE_TOLERANCE,
    SUM_TOLERANCE,
    SUMS_RMS_TOLERANCE,
    TOKEN_TOLERANCE,
    clamp_tolerance,
    response_tolerance_nats,
)

# SmolLM2-135M-Instruct, packed and alone, of 1 + the size: see the module's docstring
MADE_BY_ROUNDING = {
    "float32": {"token": 3e-6, "response": 1e-6, "sum": 1e-5},
    "bfloat16": {"token": 0.10, "response": 0.025, "sum": 0.16},
}
MADE_BY_A_FAULT = {"token": 1.0, "response": 0.3}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_limits_part_rounding_from_faults(dtype: str) -> None:
    """Twice what was measured fits under the highest limit, a quarter of a fault's least does not.
    Fails where a limit is moved beyond what it was measured for, by a digit or by the other
    dtype's."""
    measured = MADE_BY_ROUNDING[dtype]
    for limits, of in ((TOKEN_TOLERANCE[dtype], "token"), (RESPONSE_TOLERANCE[dtype], "response")):
        low, high = limits
        assert low <= high and 2 * measured[of] <= high <= MADE_BY_A_FAULT[of] / 4
    assert 2 * measured["sum"] <= SUM_TOLERANCE[dtype] < 1


def test_a_dtypes_limits_are_of_its_rounding() -> None:
    """A float32 forward rounds finer by five digits: its limits are lower by one and more, each.
    Fails where a float32 run is checked as loosely as a bfloat16 one."""
    for of in (SUM_TOLERANCE, SUMS_RMS_TOLERANCE, GRADIENT_TOLERANCE):
        assert 10 * of["float32"] <= of["bfloat16"]
    for of in (TOKEN_TOLERANCE, RESPONSE_TOLERANCE):
        assert 10 * of["float32"][1] <= of["bfloat16"][0]
    # means over many vary less than one: they are held tighter
    assert all(SUMS_RMS_TOLERANCE[dtype] < SUM_TOLERANCE[dtype] for dtype in SUM_TOLERANCE)
    assert all(
        RESPONSE_TOLERANCE[dtype][1] < TOKEN_TOLERANCE[dtype][1] for dtype in TOKEN_TOLERANCE
    )


def test_noise_moves_the_limit_between_its_ends() -> None:
    """Fails where a noisy model allows anything, a quiet one nothing, or a noise that is no number
    the most."""
    assert [clamp_tolerance((1.0, 4.0), noise) for noise in (0.5, 1.0, 2.5, 4.0, 9.0)] == [
        1,
        1,
        2.5,
        4,
        4,
    ]
    assert [clamp_tolerance((1.0, 4.0), noise) for noise in (math.nan, math.inf)] == [1, 1]


def test_a_responses_rounding_grows_as_the_root_of_its_tokens() -> None:
    """Fails where a long response is held to a short one's limit, or may differ by all its
    tokens."""
    assert response_tolerance_nats("float32", 1) == SUM_TOLERANCE["float32"]
    assert response_tolerance_nats("bfloat16", 400) == pytest.approx(20 * SUM_TOLERANCE["bfloat16"])
