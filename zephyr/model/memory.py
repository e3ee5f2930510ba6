"""A model's shape and a micro-batch's tokens become the bytes that a step of one rank takes."""

from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedConfig

from zephyr.config import Hardware
from zephyr.model.logprobs import CHUNK_ELEMENTS, KEPT_ELEMENTS


def layer_bytes(lm: PreTrainedConfig, hardware: Hardware, keys: float = 1.0) -> float:
    """Bytes that one layer keeps for its backward, per token.

    Depends on `hardware.activation_checkpointing`. True: only the layer's input. "mlp": that, the
    inputs and outputs of its norms, and what attention saves. False: all that autograd saves of
    Hugging Face's modules: of each norm the input in float32, the scaled input and the output; of
    the MLP four tensors.

    Args:
        lm: config of the decoder.
        hardware: dtype, attention, activation checkpointing.
        keys: keys a token, > 1 where prompts are shared.
    """
    item = item_bytes(hardware)
    hidden: int = lm.hidden_size
    heads: int = lm.num_attention_heads
    key_heads = getattr(lm, "num_key_value_heads", None) or heads
    head_size = getattr(lm, "head_dim", None) or hidden // heads
    query = item * heads * head_size
    key = item * key_heads * head_size
    outputs = 2 if hardware.attention == "sdpa" else 1  # sdpa copies its output
    log_sum_exp = 4 * heads  # float32
    attention: float = (1 + outputs) * query + 2 * keys * key + log_sum_exp
    if hardware.activation_checkpointing is True:
        return item * hidden
    if hardware.activation_checkpointing == "mlp":
        return 4 * item * hidden + attention
    return 2 * (4 + 2 * item) * hidden + attention + 4 * item * inner_size(lm)


def item_bytes(hardware: Hardware) -> int:
    """Bytes of one number in the model's dtype."""
    return 2 if hardware.dtype == "bfloat16" else 4


def inner_size(lm: PreTrainedConfig) -> int:
    """Inner size of the decoder's MLP."""
    size: int | None = getattr(lm, "intermediate_size", None)
    return size or 4 * int(lm.hidden_size)


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
    """Estimated bytes of a rank's first step, beside the model shard that it holds already.

    Args:
        lm: config of the decoder.
        parameters: of the whole model.
        ranks: processes that share them (ZeRO-3).
        tokens: of the fullest micro-batch.
        hardware: dtype, attention, activation checkpointing.
        zero: `zero_optimization` of the DeepSpeed JSON.
        device: "cuda" or "cpu".
        scored: tokens of the fullest micro-batch with a log-prob in the loss; default: all.
        keys: keys a token in it, > 1 where prompts are shared.

    Returns:
        states: Adam's moments and the gradient of the update, unless they are offloaded.
        gathered: parameters gathered from other ranks.
        activations: what all layers keep, and the backward of one layer where it takes more than
            the head.
        head: the log-prob head, forward and backward.
    """
    share = parameters // ranks
    head = head_memory(lm, tokens, tokens if scored is None else scored, hardware, device)
    keeps = layer_bytes(lm, hardware, keys)
    whole = layer_bytes(lm, replace(hardware, activation_checkpointing=False), keys)
    # What the backward of a layer computes again, and the gradients of four of its tensors.
    gradients = 2 * item_bytes(hardware) * (inner_size(lm) + lm.hidden_size)
    layer = tokens * (whole - keeps + gradients)
    states = 4 * share
    if "offload_optimizer" not in zero:
        states = 8 * share + 4 * min(share, zero_size(zero, "sub_group_size"))
    gathered = 0
    if ranks > 1 or "offload_param" in zero:
        live = min(parameters, zero_size(zero, "stage3_max_live_parameters"))
        gathered = item_bytes(hardware) * live
    return {
        "states": states,
        "gathered": gathered,
        "activations": int(tokens * lm.num_hidden_layers * keeps + max(0, layer - head)),
        "head": head,
    }


def head_memory(
    lm: PreTrainedConfig, tokens: int, scored: int, hardware: Hardware, device: str
) -> int:
    """Bytes of the log-prob head (`zephyr.model.logprobs`), forward and backward."""
    item = item_bytes(hardware)
    logits = scored * lm.vocab_size
    weight = lm.vocab_size * lm.hidden_size
    chunk = min(logits, CHUNK_ELEMENTS[device])
    kept = 4 * logits if logits <= KEPT_ELEMENTS else 4 * chunk
    # A CPU multiplies bfloat16 tiles in float32.
    widened = 4 * chunk if item == 2 and device == "cpu" else 0
    # The last norm, and the scored rows of its output.
    hidden = tokens * lm.hidden_size * (4 + 3 * item)
    return int(kept + (4 + item % 4) * (chunk + weight) + widened + hidden)


def zero_size(zero: Mapping[str, object], key: str) -> int:
    """A number of parameters from `zero_optimization`; DeepSpeed's default is 1e9."""
    value = zero.get(key, 1e9)
    if not isinstance(value, (int, float, str)):
        raise ValueError(f"zero_optimization.{key} is {value!r}, expected a number")
    return int(value)
