"""How far two computations of one log-probability may differ in rows that are packed differently.

The difference is the rounding of the forward. Measured with SmolLM2-135M-Instruct on 90 responses
of hh_harmless that packing changes at all:

                                       bfloat16                    float32
    a token, relative to 1 + its size  0.10 at most                3e-6 at most
    root mean square over a response   0.025 at most               1e-6 at most
    a response's sum                   0.16 nats x root of tokens  1e-5 nats x root of tokens

The rounding of any model is measured by shifting all positions by one, which a rotary embedding
does not see. This changes tokens as much as packing does: by 0.012 to 0.039 in the root mean square
over a response. Wrong positions between prompt and response change that model's tokens far more, by
1 to 4, and the root mean square by 0.3 to 1.3.
"""

import math

# Of a token, relative to 1 + its size: (at least allowed, at most allowed)
TOKEN_TOLERANCE = {"float32": (1e-4, 1e-4), "bfloat16": (0.02, 0.25)}
# Of the root mean square over a response's tokens, likewise
RESPONSE_TOLERANCE = {"float32": (5e-5, 5e-5), "bfloat16": (0.01, 0.06)}
# Of a response's sum, in nats, times the root of its tokens
SUM_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.4}
# Of the root mean square of that over the responses of a step
SUMS_RMS_TOLERANCE = {"float32": 4e-4, "bfloat16": 0.16}
# Of a gradient's norm, relative to it
GRADIENT_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-3}


def clamp_tolerance(limits: tuple[float, float], noise: float) -> float:
    """`noise`, a multiple of the model's own rounding, clamped to the limits."""
    low, high = limits
    return min(high, max(low, noise)) if math.isfinite(noise) else low


def response_tolerance_nats(dtype: str, tokens: int) -> float:
    """How much a response's summed log-prob may differ: errors of tokens add up as their root."""
    return SUM_TOLERANCE[dtype] * math.sqrt(tokens)
