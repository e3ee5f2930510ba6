"""A step number becomes a learning rate."""

import math


def learning_rate(
    step: int, steps: int, *, lr_peak: float, schedule: str, warmup_fraction: float
) -> float:
    """The learning rate of step `step` of `steps`.

    Linear warm-up from 0, at lr_peak * step / warmup_steps, over ceil(warmup_fraction * steps)
    steps; without warm-up it starts at the peak. Then `schedule` down to 0: linear or cosine
    (constant stays at the peak).
    """
    warmup_steps = math.ceil(warmup_fraction * steps)
    if step < warmup_steps:
        return lr_peak * step / warmup_steps
    left = (steps - step) / max(1, steps - warmup_steps)  # 1 after warm-up, 0 at the end
    factors = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 * (1 + math.cos(math.pi * (1 - left))),
    }
    return lr_peak * factors[schedule]
