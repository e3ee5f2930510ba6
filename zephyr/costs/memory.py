"""A plan and a model's shape become the bytes that a rank takes of its GPU and of its host."""

from zephyr.config import BadInput
from zephyr.costs.work import Config, Model, Settings, Work
from zephyr.model.adapter import kept_numbers
from zephyr.model.export import SHARD_BYTES
from zephyr.model.load import DTYPES
from zephyr.model.memory import step_memory, zero_size
from zephyr.model.nf4 import WEIGHT_BYTES
from zephyr.packing import Plan
from zephyr.training import shards
from zephyr.training.deepspeed_settings import hpz_ranks, section_of
from zephyr.training.optimizers import MOMENTS

RANKS_PER_NODE = 8  # at most
SUM_BYTES = {"float32": 4, "bfloat16": 2}  # hardware.gradient_dtype


def is_offloaded(settings: Settings, what: str) -> bool:
    """Whether `offload_optimizer` or `offload_param` is on.

    Raises: BadInput: to a device other than the CPU.
    """
    found = section_of(section_of(settings, "zero_optimization"), what)
    device = found.get("device", "none")
    if device not in ("none", "cpu"):
        raise BadInput(
            f"hardware.deepspeed: {what} to {device} has no prediction; set its device to cpu"
        )
    return device == "cpu"


def is_pinned(settings: Settings, what: str) -> bool:
    """Whether what is offloaded is kept in pinned memory."""
    return bool(
        section_of(section_of(settings, "zero_optimization"), what).get("pin_memory", False)
    )


def predict_memory(
    model: Model,
    ranks: int,
    device: str,
    plan: Plan,
    work: Work,
    config: Config,
    settings: Settings,
    gradient_dtype: str = "float32",
) -> dict[str, int]:
    """Bytes of a rank by part, and their `peak`.

    The peak is in a micro-batch, or in the update, which needs a gradient in float32.
    Args: device: cuda or cpu. gradient_dtype: in which gradients of micro-batches are summed.
    Returns: states, gathered, activations, head, update, buckets, peak; `save`: bytes gathered at
    a time while the model is saved; `save_host`: bytes of the machine's memory then; `host`: bytes
    of the machine's memory while training, of all ranks of a node, beside each process.
    """
    micro_batches = (micro for step in plan.steps for rank in step.ranks for micro in rank)
    fullest = max(micro_batches, key=lambda micro: sum(work.tokens[i] for i in micro))
    tokens, scored, keys = (
        sum(column[i] for i in fullest) for column in (work.tokens, work.scored, work.keys)
    )
    zero = section_of(settings, "zero_optimization")
    item, share = DTYPES[config.hardware.dtype].itemsize, model.trained // ranks
    rank = config.adapter.r if config.adapter else 0
    parts = step_memory(
        model.config,
        model.shared,
        ranks=ranks,
        tokens=tokens,
        scored=scored,
        keys=keys / tokens,
        hardware=config.hardware,
        zero=zero,
        device=device,
        gradient_dtype=gradient_dtype,
        adapters=model.adapters,
        adapters_keep=kept_numbers(model.adapted, rank, config.hardware.activation_checkpointing),
        moments=len(MOMENTS[config.optim.optimizer]),
    )
    on_device = not is_offloaded(settings, "offload_optimizer")
    state = 4 * (1 + len(MOMENTS[config.optim.optimizer]))  # bytes of weights and moments
    held = (state + SUM_BYTES[gradient_dtype]) if on_device else 0
    weights = item * (model.shared // ranks)
    on_host = is_offloaded(settings, "offload_param")
    if (group := min(hpz_ranks(settings), ranks)) > 1:  # the second copy of hpZ
        weights += item * (model.shared // group)
    states = share * held + weights * (not on_host) + int(WEIGHT_BYTES * model.quantized)
    update = parts["update"] if on_device else 0
    buckets = item * zero_size(zero, "reduce_bucket_size", 5e8)
    in_micro_batch = parts["gathered"] + parts["activations"] + parts["head"]
    lm = model.config
    return {
        "states": states,
        "gathered": parts["gathered"],
        "activations": parts["activations"],
        "head": parts["head"],
        "update": update,
        "buckets": buckets,
        "peak": states + buckets + max(update, in_micro_batch),
        "save": item * lm.vocab_size * lm.hidden_size,
        "save_host": max(
            min(state * share, shards.FILE_BYTES), min(item * model.parameters, SHARD_BYTES)
        ),
        "host": min(ranks, RANKS_PER_NODE)
        * host_bytes(share, weights, settings, gradient_dtype, state),
    }


def host_bytes(
    share: int, weights: int, settings: Settings, gradient_dtype: str, state: int = 12
) -> int:
    """Bytes of the host's memory that a rank's offloaded states take.

    In `offload_optimizer`: weights, moments and the gradient of the update in float32, and
    the sums of gradients. In `offload_param`: the weights in the model's dtype. torch rounds each
    pinned block up to a power of two (the gradient of the update has a block for each sub-group).
    Args: share: trained parameters of a rank. weights: bytes of all its parameters in the model's
    dtype. state: bytes a parameter of float32 weights and moments.
    """
    total = 0
    zero = section_of(settings, "zero_optimization")
    if is_offloaded(settings, "offload_optimizer"):
        group = min(share, zero_size(zero, "sub_group_size"))
        blocks = [4 * group] * (share // group) + [4 * (share % group)]
        blocks.append(SUM_BYTES[gradient_dtype] * share)
        pinned = is_pinned(settings, "offload_optimizer")
        total += state * share + sum(map(round_up, blocks) if pinned else blocks)
    if is_offloaded(settings, "offload_param"):
        pinned = is_pinned(settings, "offload_param")
        total += round_up(weights) if pinned else weights
    return total


def round_up(size: int) -> int:
    """The next power of two; 0 for 0."""
    return 1 << (size - 1).bit_length() if size else 0
