"""A model's shape and a micro-batch's tokens become the bytes that a rank's step will take."""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedConfig

from zephyr.config import Hardware
from zephyr.model.logprobs import CHUNK_ELEMENTS, KEPT_ELEMENTS


def layer_bytes(lm: PreTrainedConfig, hardware: Hardware, keys: float = 1.0) -> float:
    """Bytes that a layer keeps of a token for its backward under
    `hardware.activation_checkpointing`: its input (true), with inputs and outputs of its norms and
    what attention saves ("mlp"), or all that autograd saves of Hugging Face's modules (false: each
    norm's input in float32, scaled input and output; four tensors of the MLP). Args: keys: of a
    token, > 1 where prompts are shared."""
    item, heads = 2 if hardware.dtype == "bfloat16" else 4, lm.num_attention_heads
    head_size = getattr(lm, "head_dim", None) or lm.hidden_size // heads
    query, key = (
        item * heads * head_size,
        item * (getattr(lm, "num_key_value_heads", None) or heads) * head_size,
    )
    # query, output, which sdpa copies; key, value; float32 log-sum-exp
    attention = (2 + (hardware.attention == "sdpa")) * query + 2 * keys * key + 4 * heads
    return {
        True: item * lm.hidden_size,
        "mlp": 4 * item * lm.hidden_size + attention,
        False: 2 * (4 + 2 * item) * lm.hidden_size + attention + 4 * item * inner_size(lm),
    }[hardware.activation_checkpointing]


def inner_size(lm: PreTrainedConfig) -> int:
    return getattr(lm, "intermediate_size", None) or 4 * lm.hidden_size


def step_memory(
    lm: PreTrainedConfig,
    parameters: int,
    *,
    ranks: int,
    tokens: int,
    hardware: Hardware,
    zero: Mapping[str, object],
    device: str,
    scored: int | None = None,
    keys: float = 1.0,
) -> dict[str, int]:
    """Estimated bytes that a rank's first step takes beside what a sharded model holds already:
    moments and the update's gradient (unless offloaded), weights gathered from other ranks, what
    layers keep and, where it takes more than the head, the last one's backward, the head. Args:
    tokens, scored (default all), keys a token: of the fullest micro-batch. zero:
    `zero_optimization`. device: cuda or cpu."""
    item, share = 2 if hardware.dtype == "bfloat16" else 4, parameters // ranks
    keeps, all_of_it = (
        layer_bytes(lm, of, keys)
        for of in (hardware, replace(hardware, activation_checkpointing=False))
    )
    layer = tokens * (
        all_of_it - keeps + 2 * item * (inner_size(lm) + lm.hidden_size)
    )  # with four tensors' gradients
    logits, weight = (
        (tokens if scored is None else scored) * lm.vocab_size,
        lm.vocab_size * lm.hidden_size,
    )
    chunk = min(logits, CHUNK_ELEMENTS[device])
    kept = 4 * logits if logits <= KEPT_ELEMENTS else 4 * chunk
    widened = (
        4 * chunk if item == 2 and device == "cpu" else 0
    )  # a CPU multiplies bfloat16 tiles in float32
    head = (
        kept
        + (4 + item % 4) * (chunk + weight)
        + widened
        + tokens * lm.hidden_size * (4 + 3 * item)
    )  # last norm and its output's scored rows
    return {
        "states": 4 * share
        if "offload_optimizer" in zero
        else 8 * share + 4 * min(share, int(zero.get("sub_group_size", 1e9))),
        "gathered": item
        * min(parameters, int(zero.get("stage3_max_live_parameters", 1e9)))
        * (ranks > 1 or "offload_param" in zero),
        "activations": int(tokens * lm.num_hidden_layers * keeps + max(0, layer - head)),
        "head": head,
    }
