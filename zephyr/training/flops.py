"""Lengths and a model's shape become useful work: the operations that the algorithm needs.

"Useful" is strict: a shared prompt counts once; padding and recomputed activations never count.
"""

import torch
from transformers import PreTrainedConfig

from zephyr.training.devices import DEVICES, find_device


def forward_flops(
    config: PreTrainedConfig, num_layer_parameters: int, tokens: int, scored: int, attended: float
) -> float:
    """Floating-point operations of one forward.

    They are the matrix products of the layers, attention, and the head on scored tokens.
    Args: num_layer_parameters: parameters of all layers, without embedding and head. attended:
    (query, key) pairs.
    """
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = 2.0 * num_layer_parameters * tokens
    attention = 4 * config.num_hidden_layers * heads * head_size * attended
    head = 2.0 * config.hidden_size * config.vocab_size * scored
    return float(layers + attention + head)


def pair_flops(
    config: PreTrainedConfig,
    num_layer_parameters: int,
    prompt: int,
    chosen: int,
    rejected: int,
    prefix_sharing: bool,
) -> float:
    """One forward of a pair with the given token counts."""
    first, both = prompt + chosen, prompt + rejected
    attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2
    tokens = first + (rejected if prefix_sharing else both)
    return forward_flops(config, num_layer_parameters, tokens, chosen + rejected, attended)


def text_flops(
    config: PreTrainedConfig, num_layer_parameters: int, tokens: int, targets: int
) -> float:
    """One forward of a text with the given token counts."""
    return forward_flops(config, num_layer_parameters, tokens, targets, tokens**2 / 2)


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
