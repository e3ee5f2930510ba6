"""A step number becomes a learning rate."""

import math


def learning_rate(
    step: int, steps: int, *, lr_peak: float, schedule: str, warmup_fraction: float
) -> float:
    """The learning rate of step `step` of `steps`: linear warm-up from 0, then `schedule` down to 0
    (constant: none).

    Warm-up takes ceil(warmup_fraction * steps) steps at lr_peak * step / warmup_steps; 0 starts at
    the peak."""
    warmup_steps = math.ceil(warmup_fraction * steps)
    if step < warmup_steps:
        return lr_peak * step / warmup_steps
    left = (steps - step) / max(1, steps - warmup_steps)
    return (
        lr_peak
        * {"constant": 1.0, "linear": left, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left)))}[
            schedule
        ]
    )
