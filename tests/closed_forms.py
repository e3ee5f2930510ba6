"""What the tests know of each loss apart from its code: its closed form, written from the paper.

This is the one place where a loss is declared to the tests. A loss of `zephyr.losses.LOSSES`
without an entry here still passes the tests that need none (numeric gradients, rewards, pairs that
do not touch each other, ...). The tests that compare with a closed form skip it by name and say
what is missing.

Legend: `c`, `r` log-ratios of the chosen and the rejected response, float64 [P], already averaged
over tokens where the loss averages; log-probs in their place for a loss without a reference. `b`
beta; `e` label smoothing; a setting of the loss's own by its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

SMOOTHING = 0.1  # the label smoothing of the tests, for a loss that takes it
FAR = 1e4  # nats: log-ratios at which every exponential is 0 or infinite
NEAR = 1e-3  # nats: -NEAR is the summed log-prob of a response that is nearly certain
# Tokens of the responses in the first two pairs of the tests: counts of chosen, of rejected.
FAR_TOKENS = ((7, 11), (31, 5))


class ClosedForm(NamedTuple):
    """A loss as its paper writes it. Every field is checked by a test of `tests/test_losses.py`.

    loss: `(c, r, b, e) -> [P]`, without the SFT term; it takes `settings` as keywords.
    gradient: `(c, r, b, e) -> (d loss / d c, d loss / d r)`, each [P]; likewise.
    at_reference: `(b, e) ->` the loss where policy and reference are equal: c == r == 0. None for a
        loss without a reference.
    far_off: the losses at beta 1 of the summed log-ratios (FAR, -FAR) and (-FAR, FAR); of a loss
        without a reference, of the summed log-probs (-NEAR, -FAR) and (-FAR, -NEAR), with its SFT
        term.
    smoothing: what the loss does with `label_smoothing`; length_averaged: whether log-ratios are
        averaged over tokens; reference_free: whether it takes log-probs; sft_weight: that of the
        SFT term in the paper. All must be those of the entry in `zephyr.losses.LOSSES`.
    settings: a value of each of the loss's own settings, other than its default, for the tests.
    """

    loss: Callable[..., Tensor]
    gradient: Callable[..., tuple[Tensor, Tensor]]
    at_reference: Callable[[float, float], float] | None
    far_off: tuple[float, float]
    smoothing: str = "refused"
    length_averaged: bool = False
    reference_free: bool = False
    sft_weight: float = 0.0
    settings: Mapping[str, float] = {}


def log_sigmoid(x: Tensor) -> Tensor:
    return -(1 + (-x).exp()).log()


def cross_entropy(margin: Tensor, e: float) -> Tensor:
    """Of the label (1 - e, e) under Bradley-Terry."""
    return -(1 - e) * log_sigmoid(margin) - e * log_sigmoid(-margin)


def exo(margin: Tensor, e: float) -> Tensor:
    """KL of (p, 1 - p) with p = sigmoid(margin) from the label (1 - e, e)."""
    p = torch.sigmoid(margin)
    return p * (p / (1 - e)).log() + (1 - p) * ((1 - p) / e).log()


def slope(x: Tensor) -> Tensor:
    """The derivative of the sigmoid."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def of_margin(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of a loss of c - r: equal, with opposite signs."""
    return gradient, -gradient


def log_odds(c: Tensor) -> Tensor:
    """log(p / (1 - p)) with p = exp(c)."""
    return c - (1 - c.exp()).log()


def dpop_margin(c: Tensor, r: Tensor, b: float, penalty: float) -> Tensor:
    return b * (c - r - penalty * torch.where(c < 0, -c, 0.0))  # at c = 0 the penalty is off


s = torch.sigmoid
E = SMOOTHING
LOG_2 = math.log(2)
# Length-averaged log-ratios of the two pairs that are far off, as margins.
FAR_MARGINS = [FAR / chosen + FAR / rejected for chosen, rejected in FAR_TOKENS]
# Of the second of them without a reference: the rejected response is nearly certain.
FAR_CHOSEN, NEAR_REJECTED = FAR / FAR_TOKENS[1][0], NEAR / FAR_TOKENS[1][1]
NEAR_CHOSEN = NEAR / FAR_TOKENS[0][0]
PENALTY, GAMMA = 3.0, 0.4

CLOSED_FORMS: dict[str, ClosedForm] = {
    "sigmoid": ClosedForm(
        loss=lambda c, r, b, e: cross_entropy(b * (c - r), e),
        gradient=lambda c, r, b, e: of_margin(b * (s(b * (c - r)) - (1 - e))),
        at_reference=lambda b, e: LOG_2,
        far_off=(E * 2 * FAR, (1 - E) * 2 * FAR),
        smoothing="accepted",
    ),
    "robust": ClosedForm(
        loss=lambda c, r, b, e: (
            ((1 - e) * cross_entropy(b * (c - r), 0) - e * cross_entropy(b * (r - c), 0))
            / (1 - 2 * e)
        ),
        gradient=lambda c, r, b, e: of_margin(-b * (s(b * (r - c)) + e / (1 - 2 * e))),
        at_reference=lambda b, e: LOG_2,
        far_off=(-E * 2 * FAR / (1 - 2 * E), (1 - E) * 2 * FAR / (1 - 2 * E)),
        smoothing="accepted",
    ),
    "ipo": ClosedForm(
        loss=lambda c, r, b, e: (c - r) ** 2 - (c - r) / b + 1 / (4 * b * b),
        gradient=lambda c, r, b, e: of_margin(2 * (c - r) - 1 / b),
        at_reference=lambda b, e: 1 / (4 * b * b),
        far_off=((FAR_MARGINS[0] - 0.5) ** 2, (FAR_MARGINS[1] + 0.5) ** 2),
        length_averaged=True,
    ),
    "sigmoid_norm": ClosedForm(
        loss=lambda c, r, b, e: cross_entropy(b * (c - r), e),
        gradient=lambda c, r, b, e: of_margin(b * (s(b * (c - r)) - (1 - e))),
        at_reference=lambda b, e: LOG_2,
        far_off=(E * FAR_MARGINS[0], (1 - E) * FAR_MARGINS[1]),
        smoothing="accepted",
        length_averaged=True,
    ),
    "hinge": ClosedForm(
        loss=lambda c, r, b, e: (1 - b * (c - r)).clamp(min=0),
        gradient=lambda c, r, b, e: of_margin(-b * (b * (c - r) < 1).double()),
        at_reference=lambda b, e: 1.0,
        far_off=(0.0, 1 + 2 * FAR),
    ),
    "exo_pair": ClosedForm(
        loss=lambda c, r, b, e: exo(b * (c - r), e),
        gradient=lambda c, r, b, e: of_margin(
            b * slope(b * (c - r)) * (b * (c - r) - math.log((1 - e) / e))
        ),
        at_reference=lambda b, e: -LOG_2 - 0.5 * math.log(e * (1 - e)),
        far_off=(-math.log(1 - E), -math.log(E)),
        smoothing="required",
    ),
    "nca_pair": ClosedForm(
        loss=lambda c, r, b, e: (
            -log_sigmoid(b * c) - log_sigmoid(-b * c) / 2 - log_sigmoid(-b * r) / 2
        ),
        gradient=lambda c, r, b, e: (b * (1.5 * s(b * c) - 1), 0.5 * b * s(b * r)),
        at_reference=lambda b, e: 2 * LOG_2,
        far_off=(0.5 * FAR, 1.5 * FAR),
    ),
    "sppo_hard": ClosedForm(
        loss=lambda c, r, b, e: (c - 1 / (2 * b)) ** 2 + (r + 1 / (2 * b)) ** 2,
        gradient=lambda c, r, b, e: (2 * c - 1 / b, 2 * r + 1 / b),
        at_reference=lambda b, e: 1 / (2 * b * b),
        far_off=(2 * (FAR - 0.5) ** 2, 2 * (FAR + 0.5) ** 2),
    ),
    "apo_zero": ClosedForm(
        loss=lambda c, r, b, e: 1 - s(b * c) + s(b * r),
        gradient=lambda c, r, b, e: (-b * slope(b * c), b * slope(b * r)),
        at_reference=lambda b, e: 1.0,
        far_off=(0.0, 2.0),
    ),
    "apo_down": ClosedForm(
        loss=lambda c, r, b, e: s(b * c) + 1 - s(b * (c - r)),
        gradient=lambda c, r, b, e: (
            b * slope(b * c) - b * slope(b * (c - r)),
            b * slope(b * (c - r)),
        ),
        at_reference=lambda b, e: 1.0,
        far_off=(1.0, 1.0),
    ),
    "dpop": ClosedForm(
        loss=lambda c, r, b, e, penalty: -log_sigmoid(dpop_margin(c, r, b, penalty)),
        gradient=lambda c, r, b, e, penalty: (
            -b * s(-dpop_margin(c, r, b, penalty)) * (1 + penalty * (c < 0)),
            b * s(-dpop_margin(c, r, b, penalty)),
        ),
        at_reference=lambda b, e: LOG_2,
        far_off=(0.0, (2 + PENALTY) * FAR),
        settings={"penalty": PENALTY},
    ),
    "simpo": ClosedForm(
        loss=lambda c, r, b, e, gamma: -log_sigmoid(b * c - b * r - gamma),
        gradient=lambda c, r, b, e, gamma: of_margin(-b * s(b * r - b * c + gamma)),
        at_reference=None,
        far_off=(0.0, FAR_CHOSEN - NEAR_REJECTED + GAMMA),
        length_averaged=True,
        reference_free=True,
        settings={"gamma": GAMMA},
    ),
    "orpo": ClosedForm(
        loss=lambda c, r, b, e: -b * log_sigmoid(log_odds(c) - log_odds(r)),
        # The paper's Eq. 8 to 10: delta = 1 / (1 + odds ratio), h = 1 / (1 - p).
        gradient=lambda c, r, b, e: (
            -b * s(log_odds(r) - log_odds(c)) / (1 - c.exp()),
            b * s(log_odds(r) - log_odds(c)) / (1 - r.exp()),
        ),
        at_reference=None,
        far_off=(
            NEAR_CHOSEN,
            2 * FAR_CHOSEN - NEAR_REJECTED - math.log(1 - math.exp(-NEAR_REJECTED)),
        ),
        length_averaged=True,
        reference_free=True,
        sft_weight=1.0,
    ),
    "cpo": ClosedForm(
        loss=lambda c, r, b, e: cross_entropy(b * (c - r), e),
        gradient=lambda c, r, b, e: of_margin(b * (s(b * (c - r)) - (1 - e))),
        at_reference=None,
        far_off=(E * (FAR - NEAR) + NEAR_CHOSEN, (1 - E) * (FAR - NEAR) + FAR_CHOSEN),
        smoothing="accepted",
        reference_free=True,
        sft_weight=1.0,
    ),
}


def closed_form(name: str) -> ClosedForm:
    """The entry of a loss; a test of a loss without one is skipped, and says what is missing."""
    if name not in CLOSED_FORMS:
        pytest.skip(
            f"loss {name!r} declares no closed form: add CLOSED_FORMS[{name!r}] = ClosedForm(loss, "
            "gradient, at_reference, far_off) to tests/closed_forms.py"
        )
    return CLOSED_FORMS[name]
