"""How far two computations of one log-probability may lie apart, in rows packed differently: the
rounding of the forward.

Measured with SmolLM2-135M-Instruct on 90 responses of hh_harmless that packing changes at all. In
bfloat16 a token differs by at most 0.10 of 1 + its size, a response's tokens by 0.025 in the root
mean square, its sum by 0.16 nats times the root of its tokens; in float32 by 3e-6, 1e-6 and 1e-5.
Positions that are all one higher, which a rotary embedding does not see, change tokens as much as
packing does (0.012 to 0.039 in the root mean square of a response): this tells the rounding of any
model. Positions that are wrong between prompt and response move tokens of that model by 1 to 4, and
0.3 to 1.3 in that mean."""

import math

# of 1 + a token's size: never less than the first is allowed, never more than the second
TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.25)}
RESPONSE_TOLERANCE = {
    "float32": (5e-5, 5e-5),
    "bfloat16": (0.01, 0.06),
}  # the root mean square over a response's tokens
SUM_TOLERANCE = {
    "float32": 1e-3,
    "bfloat16": 0.4,
}  # nats of a response's sum, times the root of its tokens
SUMS_RMS_TOLERANCE = {
    "float32": 4e-4,
    "bfloat16": 0.16,
}  # the root mean square of that over the responses of a step
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}  # a gradient's norm, of itself


def clamp_tolerance(limits: tuple[float, float], noise: float) -> float:
    """A multiple of the model's own rounding, within the limits."""
    low, high = limits
    return min(high, max(low, noise)) if math.isfinite(noise) else low


def response_tolerance_nats(dtype: str, tokens: int) -> float:
    """What a response's summed log-prob may differ by: rounding of tokens adds up as their root."""
    return SUM_TOLERANCE[dtype] * math.sqrt(tokens)
