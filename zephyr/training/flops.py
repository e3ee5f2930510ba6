"""Lengths and a model's shape become useful work: the operations that the algorithm needs.

"Useful" is strict: a shared prompt counts once; padding and recomputed activations never count.
"""

import torch
from transformers import PreTrainedConfig

from zephyr.training.devices import DEVICES, find_device


def forward_flops(
    config: PreTrainedConfig,
    num_layer_parameters: int,
    tokens: int,
    scored: int,
    attended: float,
    adapters: int = 0,
) -> float:
    """Floating-point operations of one forward: a third of those of forward and backward.

    They are the matrix products of the layers, attention, and the head on scored tokens. Frozen
    matrices need no gradient of their own: a third of what they take, forward and backward, is
    left out.
    Args: num_layer_parameters: parameters of all layers, without embedding, head and adapters.
    attended: (query, key) pairs. adapters: parameters of adapters; > 0: all others are frozen.
    """
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = 2.0 * num_layer_parameters * tokens
    attention = 4 * config.num_hidden_layers * heads * head_size * attended
    head = 2.0 * config.hidden_size * config.vocab_size * scored
    if adapters:
        return float((layers + head) * 2 / 3 + attention + 2.0 * adapters * tokens)
    return float(layers + attention + head)


def pair_flops(
    config: PreTrainedConfig,
    num_layer_parameters: int,
    prompt: int,
    chosen: int,
    rejected: int,
    prefix_sharing: bool,
    adapters: int = 0,
) -> float:
    """One forward of a pair with the given token counts."""
    first, both = prompt + chosen, prompt + rejected
    attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2
    tokens = first + (rejected if prefix_sharing else both)
    scored = chosen + rejected
    return forward_flops(config, num_layer_parameters, tokens, scored, attended, adapters)


def text_flops(
    config: PreTrainedConfig,
    num_layer_parameters: int,
    tokens: int,
    targets: int,
    adapters: int = 0,
) -> float:
    """One forward of a text with the given token counts."""
    attended = tokens**2 / 2
    return forward_flops(config, num_layer_parameters, tokens, targets, attended, adapters)


def mfu(forward: float, seconds: float, ranks: int) -> float | None:
    """Model FLOPs utilization of training: useful work as a share of the GPU's dense bfloat16 peak.

    Args: forward: floating-point operations of the forward; forward and backward take three times
    as many.
    Returns: None where the peak is unknown.
    """
    name = find_device(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    if name is None:
        return None
    return 3 * forward / (seconds * ranks * DEVICES[name].peak)
