"""The optimizer of a config: torch's AdamW, or torch's RMSprop as transformers made it.

What differs between them stands here: the vectors of their state, and how long an update was.
DeepSpeed calls either for one sub-group of parameters at a time, each a flat float32 vector.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer, RMSprop

from zephyr.config import Optim, SFTOptim

CHUNK_ELEMENTS = 2**23  # of a vector at a time: few enough to stay in a GPU's cache
# Vectors of the optimizer's state, as long as the weights, by optim.optimizer.
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "rmsprop": ("square_avg",)}
UPDATE_SQ_NORM = "update_sq_norm"  # in RMSprop's state: of the last update, float64 []


def make_optimizer(groups: Iterable[dict[str, object]], optim: Optim | SFTOptim) -> Optimizer:
    """The optimizer at rate 0; the rate of each step is set before it.

    RMSprop has the values that transformers 4.35 leaves at torch's defaults: alpha 0.99, eps 1e-8,
    no momentum, not centered. Args: groups: of parameters, each with its `weight_decay`.
    """
    if optim.optimizer == "adamw":
        return AdamW(groups, lr=0.0, betas=optim.adam_betas, eps=1e-8, fused=True)
    made = RMSprop(groups, lr=0.0, alpha=0.99, eps=1e-8)
    # Its update can't be computed again from its state alone, and the gradient is freed.
    made.register_step_post_hook(lambda optimizer, *_: keep_update_sq_norm(optimizer))
    return made


def moments_of(optimizer: Optimizer) -> tuple[str, ...]:
    """Names of the vectors in the optimizer's state."""
    return MOMENTS["rmsprop" if isinstance(optimizer, RMSprop) else "adamw"]


def new_state(optimizer: Optimizer, weights: Tensor, steps: int) -> dict[str, Tensor]:
    """The state of flat weights before the first step, said to be after `steps` of them."""
    state = {name: torch.zeros_like(weights) for name in moments_of(optimizer)}
    return {"step": torch.tensor(float(steps), device=weights.device), **state}


def keep_update_sq_norm(optimizer: Optimizer) -> None:
    """Keep the squared norm of the update that RMSprop has just made, in the state of each."""
    for group in optimizer.param_groups:
        for flat in group["params"]:
            if flat.grad is None:
                continue
            state = optimizer.state[flat]
            vectors = (flat.grad.split(CHUNK_ELEMENTS), state["square_avg"].split(CHUNK_ELEMENTS))
            norms = [
                (gradient / square.sqrt().add_(group["eps"])).norm()
                for gradient, square in zip(*vectors)
            ]
            state[UPDATE_SQ_NORM] = sum_of_squares(norms) * group["lr"] ** 2


def sum_of_squares(norms: Sequence[Tensor]) -> Tensor:
    """In float64 []."""
    total: Tensor = torch.stack(list(norms)).double().square_().sum()
    return total
