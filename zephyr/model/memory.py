"""A model's shape and a micro-batch's tokens become the bytes that a step of one rank takes."""

import math
from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedConfig

from zephyr.config import Hardware
from zephyr.model.logprobs import CHUNK_ELEMENTS, KEPT_ELEMENTS


def layer_bytes(lm: PreTrainedConfig, hardware: Hardware, keys: float = 1.0) -> float:
    """Bytes that one layer keeps for its backward, per token.

    Depends on `hardware.activation_checkpointing` and `hardware.fused`
    (`zephyr.model.recompute`). True: only the layer's input. "mlp": that, the inputs and outputs of
    its norms, and what attention saves. "elementwise": the layer's input, and the outputs of its
    attention and of its matrix products but the last. False: all that autograd saves.

    Exact for layers as Mistral's: norms before attention and MLP, a gated MLP, and kernels that
    serve both. Norms behind them keep one more output of hidden size ("elementwise") or more
    (False).

    Args:
        lm: config of the decoder.
        hardware: dtype, attention, activation checkpointing, fused kernels.
        keys: keys a token, > 1 where prompts are shared.
    """
    item, fused = item_bytes(hardware), hardware.fused != "none"
    hidden: int = lm.hidden_size
    query, key = (item * size for size in query_and_key_sizes(lm))
    keys *= key_copies(lm, hardware.sequence_parallel)
    log_sum_exp: int = 4 * lm.num_attention_heads  # float32
    # sdpa copies its output. Rotated queries take the memory of queries.
    outputs = 2 if hardware.attention == "sdpa" else 1
    attention: float = (1 + outputs) * query + 2 * keys * key + log_sum_exp
    norms = 4 * item * hidden  # two: their inputs and outputs
    if hardware.activation_checkpointing is True:
        return item * hidden
    if hardware.activation_checkpointing == "elementwise":
        # The layer's input, the output of attention's last product; of the MLP, gate and up.
        return 2 * item * hidden + 2 * query + 2 * key + log_sum_exp + mlp_bytes(lm, hardware, 2)
    # Fused norms save their input and one float32. Others save the input in float32, and scaled.
    norms += 2 * 4 if fused else 0
    if hardware.activation_checkpointing == "mlp":
        return norms + attention
    if not fused:
        norms += 2 * 4 * hidden
    # Gate, up and their product, and without fusion the activated gate.
    return norms + attention + mlp_bytes(lm, hardware, 3 if fused else 4)


def mlp_bytes(lm: PreTrainedConfig, hardware: Hardware, tensors: int) -> int:
    """Bytes of so many tensors of the MLP's inner size, per token."""
    return tensors * item_bytes(hardware) * inner_size(lm)


def backward_bytes(lm: PreTrainedConfig, hardware: Hardware, keys: float = 1.0) -> float:
    """Bytes that the backward of one layer takes at its peak beside what it keeps, per token.

    What it computes again, and gradients: two of hidden size, and two of the MLP's inner size.
    liger's SwiGLU writes one of these over what it saved.
    """
    keeps = layer_bytes(lm, hardware, keys)
    whole = layer_bytes(lm, replace(hardware, activation_checkpointing=False), keys)
    again = whole - keeps
    if hardware.activation_checkpointing == "mlp":  # a norm's memory is free before the MLP's
        again = mlp_bytes(lm, hardware, 4 if hardware.fused == "none" else 3)
    inner = mlp_bytes(lm, hardware, 1 if hardware.fused == "liger" else 2)
    return again + inner + 2 * item_bytes(hardware) * int(lm.hidden_size)


def item_bytes(hardware: Hardware) -> int:
    """Bytes of one number in the model's dtype."""
    return 2 if hardware.dtype == "bfloat16" else 4


def query_and_key_sizes(lm: PreTrainedConfig) -> tuple[int, int]:
    """Sizes of the queries, and of the keys, of one token in one layer, all heads together."""
    heads: int = lm.num_attention_heads
    key_heads: int = getattr(lm, "num_key_value_heads", None) or heads
    head_size: int = getattr(lm, "head_dim", None) or lm.hidden_size // heads
    return heads * head_size, key_heads * head_size


def key_copies(lm: PreTrainedConfig, ranks: int) -> int:
    """Copies of each key head in attention, where so many ranks compute a row together
    (`zephyr.model.sequence`)."""
    key_heads: int = getattr(lm, "num_key_value_heads", None) or lm.num_attention_heads
    return math.lcm(key_heads, ranks) // key_heads


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
    gradient_dtype: str = "float32",
    adapters: int = 0,
    adapters_keep: int = 0,
    moments: int = 2,
) -> dict[str, int]:
    """Estimated bytes of a rank's first step, beside the model shard that it holds already.

    The shard: parameters, their float32 masters, and summed gradients.

    Args:
        lm: config of the decoder.
        parameters: of the whole model.
        ranks: processes that share them (ZeRO-3).
        tokens: of the fullest micro-batch.
        hardware: dtype, attention, activation checkpointing, fused kernels, and the ranks that
            compute a row together: each holds its share of the tokens.
        zero: `zero_optimization` of the DeepSpeed JSON.
        device: "cuda" or "cpu".
        scored: tokens of the fullest micro-batch with a log-prob in the loss; default: all.
        keys: keys a token in it, > 1 where prompts are shared.
        gradient_dtype: in which gradients are summed over micro-batches: float32 or bfloat16.
        adapters: parameters of adapters, the only ones that are trained; 0: all are.
        adapters_keep: numbers that they keep for the backward of a token.
        moments: vectors of the optimizer's state: 2 of AdamW, 1 of RMSprop.

    Returns:
        moments: the optimizer's, unless they are offloaded; then the gradient of the update.
        update: the gradient of the update of one sub-group of parameters, and the denominator that
            an optimizer of several kernels (RMSprop) makes of it, unless it is offloaded.
        gathered: parameters gathered from other ranks.
        activations: what all layers keep, and the backward of one layer where it takes more than
            the head.
        head: the log-prob head, forward and backward.
    """
    share = (adapters or parameters) // ranks
    scored = tokens if scored is None else scored
    tokens, scored = (-(-count // hardware.sequence_parallel) for count in (tokens, scored))
    head = head_memory(lm, tokens, scored, hardware, device, frozen=adapters > 0)
    # And the gradient of the layer's largest matrix. A frozen matrix has none, but is dequantised
    # where it was quantised.
    matrix = item_bytes(hardware) * inner_size(lm) * lm.hidden_size
    layer = tokens * backward_bytes(lm, hardware, keys) + matrix
    state, update = 4 * share, 0
    if "offload_optimizer" not in zero:
        state = 4 * moments * share
        # Gradients in bfloat16 are joined before they are widened.
        joined = 2 if gradient_dtype == "bfloat16" else 0
        denominator = 4 if moments == 1 else 0
        update = (4 + joined + denominator) * min(share, zero_size(zero, "sub_group_size"))
    gathered = 0
    if ranks > 1 or "offload_param" in zero:
        live = min(parameters, zero_size(zero, "stage3_max_live_parameters"))
        gathered = item_bytes(hardware) * live
    keeps = tokens * lm.num_hidden_layers * layer_bytes(lm, hardware, keys)
    keeps += tokens * item_bytes(hardware) * adapters_keep
    return {
        "moments": state,
        "update": update,
        "gathered": gathered,
        "activations": int(keeps + max(0, layer - head)),
        "head": head,
    }


def step_peak(parts: Mapping[str, int]) -> int:
    """The peak of a step of `step_memory`: the update begins when no activation is left."""
    micro_batch = parts["gathered"] + parts["activations"] + parts["head"]
    return parts["moments"] + max(parts["update"], micro_batch)


def head_memory(
    lm: PreTrainedConfig,
    tokens: int,
    scored: int,
    hardware: Hardware,
    device: str,
    frozen: bool = False,
) -> int:
    """Bytes of the log-prob head (`zephyr.model.logprobs`), forward and backward.

    Args:
        frozen: its weight has no gradient.
    """
    item = item_bytes(hardware)
    logits = scored * lm.vocab_size
    weight = 0 if frozen else lm.vocab_size * lm.hidden_size
    chunk = min(logits, CHUNK_ELEMENTS[device])
    kept = 4 * logits if logits <= KEPT_ELEMENTS else 4 * chunk
    # A CPU multiplies bfloat16 tiles in float32.
    widened = 4 * chunk if item == 2 and device == "cpu" else 0
    # The last norm, and the scored rows of its output.
    wide = 4 if hardware.fused == "none" else 0
    hidden = tokens * lm.hidden_size * (wide + 3 * item)
    return int(kept + (4 + item % 4) * (chunk + weight) + widened + hidden)


def zero_size(zero: Mapping[str, object], key: str, default: float = 1e9) -> int:
    """A number of parameters from `zero_optimization`. Args: default: DeepSpeed's."""
    value = zero.get(key, default)
    if not isinstance(value, (int, float, str)):
        raise ValueError(f"zero_optimization.{key} is {value!r}, expected a number")
    return int(value)
