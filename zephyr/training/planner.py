"""Lengths and a model's shape become useful work: the floating-point operations that the algorithm needs.

"Useful" is strict: a shared prompt counts once, padding and recomputed activations never count."""
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedConfig

from zephyr.config import ConfigError, Hardware
from zephyr.packing import Plan

PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "GH200": 989.4e12, "A100": 312e12, "A800": 312e12}    # dense bfloat16
HEAD_CHUNK = 2**25                                  # zephyr.model.logprobs.CHUNK_ELEMENTS, on the same level as this module


def forward_flops(config: PreTrainedConfig, layer_parameters: int, tokens: int, scored: int, attended: float) -> float:
    """Floating-point operations of one forward: matrix products of the layers, attention, and the head on scored tokens.

    Args: layer_parameters: parameters of all layers (neither embedding nor head). attended: (query, key) pairs."""
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attention = 4 * config.num_hidden_layers * config.num_attention_heads * head_size * attended
    return 2.0 * layer_parameters * tokens + attention + 2.0 * config.hidden_size * config.vocab_size * scored


def pair_flops(config: PreTrainedConfig, layer_parameters: int, prompt: int, chosen: int, rejected: int, prefix_sharing: bool) -> float:
    """One forward of a pair with the given token counts."""
    first, both = prompt + chosen, prompt + rejected
    attended = (first**2 + both**2 - (prompt**2 if prefix_sharing else 0)) / 2
    tokens = first + (rejected if prefix_sharing else both)
    return forward_flops(config, layer_parameters, tokens, chosen + rejected, attended)


def text_flops(config: PreTrainedConfig, layer_parameters: int, tokens: int, targets: int) -> float:
    """One forward of a text with the given token counts."""
    return forward_flops(config, layer_parameters, tokens, targets, tokens**2 / 2)


def mfu(forward: float, seconds: float, ranks: int) -> float | None:
    """Model FLOPs utilisation of training (3 x forward) against the GPU's dense bfloat16 peak; None where that is unknown."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((flops for gpu, flops in PEAK_FLOPS.items() if gpu in name), None)
    return 3 * forward / (seconds * ranks * peak) if peak else None


def policy_of(hardware: Hardware) -> str:
    """`hardware.activation_checkpointing` as the name of what a layer keeps for its backward; true is full, false none."""
    return {True: "full", False: "none"}.get(hardware.activation_checkpointing, hardware.activation_checkpointing)


def layer_bytes(lm: PreTrainedConfig, policy: str, hardware: Hardware, keys: float = 1.0) -> float:
    """Bytes that a layer keeps of a token for its backward: its input (full), that with what attention saves and the MLP's input
    (mlp), with gate and up projection too (elementwise), or all that autograd saves of Hugging Face's modules (none: each norm's
    input in float32, scaled input and output; four tensors of the MLP). Args: keys: of a token, > 1 where prompts are shared."""
    item, heads = 2 if hardware.dtype == "bfloat16" else 4, lm.num_attention_heads
    inner = getattr(lm, "intermediate_size", None) or 4 * lm.hidden_size
    head_size = getattr(lm, "head_dim", None) or lm.hidden_size // heads
    query, key = item * heads * head_size, item * (getattr(lm, "num_key_value_heads", None) or heads) * head_size
    attention = 2 * query + 2 * keys * key + 4 * heads      # query, output; key, value; float32 log-sum-exp
    mlp = 2 * item * lm.hidden_size + attention
    return {"full": item * lm.hidden_size, "mlp": mlp, "elementwise": mlp + 2 * item * inner,
            "none": 2 * (4 + 2 * item) * lm.hidden_size + attention + query * (hardware.attention == "sdpa") + 4 * item * inner}[policy]


def step_memory(lm: PreTrainedConfig, parameters: int, *, ranks: int, tokens: int, hardware: Hardware, zero: Mapping[str, object],
                scored: int | None = None, keys: float = 1.0) -> dict[str, int]:
    """Estimated bytes that a rank's first step takes beside what a sharded model holds already: moments and the update's gradient
    (unless offloaded), weights gathered from other ranks, what layers keep and, where it takes more than the head, the last one's
    backward, the head. Args: tokens, scored (default all), keys a token: of the fullest micro-batch. zero: `zero_optimization`."""
    item, share = 2 if hardware.dtype == "bfloat16" else 4, parameters // ranks
    keeps, mlp, gated, all_of_it = (layer_bytes(lm, name, hardware, keys) for name in (policy_of(hardware), "mlp", "elementwise", "none"))
    layer = tokens * (all_of_it - keeps + gated - mlp + 2 * item * lm.hidden_size)          # with four tensors' gradients
    chunk, weight = min((tokens if scored is None else scored) * lm.vocab_size, HEAD_CHUNK), lm.vocab_size * lm.hidden_size
    logits = max(8 * chunk, (4 + item % 4) * (chunk + weight))      # forward, backward; bfloat16 is held beside float32
    head = logits + tokens * lm.hidden_size * (4 + 3 * item)        # with the last norm and its output's scored rows
    return {"states": 4 * share if "offload_optimizer" in zero else 8 * share + 4 * min(share, int(zero.get("sub_group_size", 1e9))),
            "gathered": item * min(parameters, int(zero.get("stage3_max_live_parameters", 1e9))) * (ranks > 1 or "offload_param" in zero),
            "activations": int(tokens * lm.num_hidden_layers * keeps + max(0, layer - head)), "head": head}


def require_budget(tokens: Sequence[int], ids: Sequence[str], budget_tokens: int) -> None:
    """Raises: ConfigError naming the longest example where a micro-batch can't hold it."""
    longest = max(range(len(tokens)), key=lambda i: tokens[i])
    if tokens[longest] > budget_tokens:
        raise ConfigError(f"hardware.tokens_per_micro_batch: at least {tokens[longest]} is wanted, which the longest example "
                          f"({ids[longest]}) takes, got {budget_tokens}")


def describe(plan: Plan, ranks: int) -> str:
    """The plan as one line for the log."""
    micro_batches = sum(len(step.ranks[0]) for step in plan.steps)
    examples = len(plan.steps[0].examples())
    return (f"plan: {len(plan.steps)} steps, {examples} examples in the first, {plan.tokens} tokens in all; {ranks} ranks, "
            f"{micro_batches / len(plan.steps):.1f} micro-batches a step {plan.filled:.1%} full; "
            f"the dearest rank has {plan.imbalance:.3f} x the mean work")
