"""Lengths and a model's shape become useful work: the floating-point operations that the algorithm
needs.

"Useful" is strict: a shared prompt counts once, padding and recomputed activations never count."""

import torch
from transformers import PreTrainedConfig

PEAK_FLOPS = {
    "H100": 989.4e12,
    "H200": 989.4e12,
    "GH200": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
}  # dense bfloat16


def forward_flops(
    config: PreTrainedConfig, num_layer_parameters: int, tokens: int, scored: int, attended: float
) -> float:
    """Floating-point operations of one forward: matrix products of the layers, attention, and the
    head on scored tokens.

    Args: num_layer_parameters: parameters of all layers (neither embedding nor head). attended: (query,
    key) pairs."""
    head_size = (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_size * attended
    return (
        2.0 * num_layer_parameters * tokens
        + attention
        + 2.0 * config.hidden_size * config.vocab_size * scored
    )


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
    """Model FLOPs utilisation of training (3 x forward) against the GPU's dense bfloat16 peak; None
    where that is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in name), None)
    return 3 * forward / (seconds * ranks * peak) if peak else None
