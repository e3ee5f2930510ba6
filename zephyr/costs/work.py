"""Token counts, a model's shape and a device's rates become predicted memory and time, by part."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.model.export import SHARD_BYTES
from zephyr.model.load import DTYPES
from zephyr.model.memory import inner_size, step_memory
from zephyr.model.policy import MODEL_CONFIG_ERRORS
from zephyr.packing import Plan
from zephyr.training import shards
from zephyr.training.flops import pair_flops, text_flops

Config = DPOConfig | SFTConfig
Settings = Mapping[str, object]  # the DeepSpeed JSON
Lengths = Sequence[tuple[int, ...]]  # pairs: (prompt, chosen, rejected); texts: (tokens, targets)
Checkpointing = Literal[True, False, "mlp"]  # hardware.activation_checkpointing
HIDDEN = 0.15  # of the shorter of computation and communication: what the longer does not hide
OPTIMIZER_BYTES = 30  # that AdamW reads and writes for a parameter
MEMORY_EFFICIENCY = 0.6  # of a device's memory rate, in the optimizer
# By name: the pairs of the data set, and mean and log-deviation of its prompts' and responses'
# token counts before truncation.
PROFILES = {
    "ultrafeedback": ((185, 1.1), (320, 0.75), 61135),
    "hh": ((140, 0.8), (60, 0.75), 160800),
    "tldr": ((352, 0.4), (33, 0.35), 92858),
}


class Device(NamedTuple):
    """One accelerator."""

    memory: float  # bytes
    peak: float  # dense bfloat16 FLOP/s
    efficiency: float  # the share of the peak that training reaches
    memory_rate: float  # bytes/s from and to its memory
    node: float  # bytes/s between ranks of a node
    across: float  # bytes/s between nodes


# Memory, peak and memory rate: data sheets. Efficiency: estimated from published measurements
# (MosaicML llm-foundry, 7B on 8 GPUs: 64 % on A100, 46 % on H100, communication included).
# Interconnect: estimates of what all-gathers reach, by NVLink in a node, by InfiniBand across.
DEVICES = {
    "a100-40": Device(42.3e9, 312e12, 0.60, 1.56e12, 230e9, 160e9),
    "a100-80": Device(85.0e9, 312e12, 0.60, 2.04e12, 230e9, 160e9),
    "h100": Device(85.0e9, 989.4e12, 0.55, 3.35e12, 340e9, 330e9),
    "h200": Device(149.6e9, 989.4e12, 0.55, 4.8e12, 340e9, 330e9),
}


class Model(NamedTuple):
    """A model's shape."""

    config: PreTrainedConfig
    parameters: int
    num_layer_parameters: int  # of all layers together, without embedding and head


class Work(NamedTuple):
    """What each example takes; all lists have one entry an example."""

    tokens: list[int]  # in a packed row
    scored: list[int]  # tokens that reach the head
    keys: list[int]  # of its attention
    forward: list[float]  # floating-point operations of one forward


Times = TypedDict("Times", {"compute": float, "comm": float, "optimiser": float, "step s": float})


def section(settings: Settings, name: str) -> Mapping[str, object]:
    """A section of the DeepSpeed JSON; {} where it is absent."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def require_model_folder(path: str) -> None:
    """Check that the name of a model that can only be a path exists.

    Raises: BadInput where it does not; without this check the hub refuses the name in its words.
    """
    is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_path and not os.path.exists(path):
        raise BadInput(f"model {path}: no such folder")


def read_model(path: str, shape: str | None) -> Model:
    """Count the parameters of a model without its weights.

    Args: path: folder or hub id, whose config.json is read. shape: a model type, whose default
    sizes replace the config.json.
    Raises: BadInput where there is no such config or transformers refuses it.
    """
    if not shape:
        require_model_folder(path)
    try:
        config = (
            AutoConfig.for_model(shape)
            if shape
            else AutoConfig.from_pretrained(path, trust_remote_code=False)
        )
        with torch.device("meta"):
            # transformers does not annotate from_config
            lm = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, trust_remote_code=False
            )
    except (*MODEL_CONFIG_ERRORS, OSError) as error:
        raise BadInput(
            f"model {path}: a folder with a config.json is wanted, or --shape (mistral: that of "
            f"Mistral-7B); {error}"
        ) from None
    sizes = {name: parameter.numel() for name, parameter in lm.named_parameters()}
    outside = sum(
        size for name, size in sizes.items() if "embed_tokens" in name or "lm_head" in name
    )
    return Model(config, sum(sizes.values()), sum(sizes.values()) - outside)


def profile_lengths(profile: str, config: Config) -> Lengths:
    """Draw lognormal token counts of a published data set, cut as the config says.

    Args: profile: one of PROFILES for pairs; for texts it is always UltraChat, where every token is
    a target.
    """
    data = config.data
    if isinstance(config, SFTConfig):
        random = np.random.default_rng(0)
        drawn = random.lognormal(np.log(1060), 0.62, data.limit or 207865)
        tokens = drawn.clip(16, data.max_tokens).astype(int).tolist()
        return [(n, n - 1) for n in tokens]
    pairs = data.limit or PROFILES[profile][2]
    return pair_lengths(profile, pairs, 0, data.max_prompt_tokens, data.max_tokens)


def pair_lengths(
    profile: str, pairs: int, seed: int, most_prompt: int, most: int, scale: float = 1.0
) -> list[tuple[int, int, int]]:
    """Draw (prompt, chosen, rejected) token counts of pairs, then cut them as truncation does.

    Args: most_prompt, most: tokens of a prompt, and of a prompt with a response. scale: factor on
    all counts before they are cut.
    """
    prompts, responses, _ = PROFILES[profile]
    z = np.random.default_rng(seed).standard_normal((3, pairs))
    z[2] = 0.6 * z[1] + 0.8 * z[2]  # the two responses of a pair: a correlation of 0.6
    prompt, chosen, rejected = (
        mean * scale * np.exp(deviation * x - deviation**2 / 2)
        for (mean, deviation), x in zip((prompts, responses, responses), z)
    )
    prompt = prompt.clip(2, most_prompt).astype(int)
    sides = [side.clip(2, most - prompt).astype(int).tolist() for side in (chosen, rejected)]
    return list(zip(prompt.tolist(), *sides))


def example_work(lengths: Lengths, model: Model, config: Config) -> Work:
    """What each example takes of a packed row, of the head, of attention and of the device."""
    lm, layers = model.config, model.num_layer_parameters
    if isinstance(config, SFTConfig):
        tokens = [n for n, _ in lengths]
        targets = [n for _, n in lengths]
        return Work(tokens, targets, tokens, [text_flops(lm, layers, n, t) for n, t in lengths])
    shared = config.hardware.prefix_sharing
    return Work(
        [(2 - shared) * p + c + r for p, c, r in lengths],
        [c + r for _, c, r in lengths],
        [2 * p + c + r for p, c, r in lengths],
        [pair_flops(lm, layers, p, c, r, shared) for p, c, r in lengths],
    )


def executed_flops(work: Work, model: Model, policy: Checkpointing) -> list[float]:
    """Floating-point operations of each example's training step, recomputation included.

    Three forwards of the layers, three and a half of attention and four of the head (whose
    backwards compute the attention weights and the logits again), and what the activation policy
    repeats.
    """
    lm = model.config
    gate_and_up = 2 * lm.num_hidden_layers * lm.hidden_size * inner_size(lm)
    repeated = {False: 0.0, "mlp": gate_and_up / model.num_layer_parameters, True: 1.0}[policy]
    layers, head = 2.0 * model.num_layer_parameters, 2.0 * lm.hidden_size * lm.vocab_size
    return [
        (3 + repeated) * layers * n
        + 4 * head * t
        + (3.5 + (policy is True)) * (forward - layers * n - head * t)
        for n, t, forward in zip(work.tokens, work.scored, work.forward)
    ]


def measure_cpu(dtype: str, ranks: int) -> Device:
    """Measure this machine, and return a rank's share of it.

    The FLOP rate is that of a second of matrix products, of which a model of hidden size 256 was
    measured to reach half. The rates of memory and network are estimates.
    """
    import psutil

    square = torch.randn(768, 768).to(DTYPES[dtype])
    threads = torch.get_num_threads()
    # CPU time, since other processes do not slow it
    start, seconds, flops = time.process_time(), 0.0, 0
    while True:
        seconds = (time.process_time() - start) / threads
        if seconds >= 1:
            break
        square @ square
        flops += 2 * 768**3
    return Device(psutil.virtual_memory().total / ranks, flops / seconds, 0.5, 10e9, 1e9, 1e9)


def most_loaded_rank_flops(plan: Plan, flops: Sequence[float]) -> list[float]:
    """Operations of each micro-batch, step by step, on the rank that the others wait for."""
    return [
        max(sum(flops[i] for i in micro_batch) for micro_batch in of_ranks)
        for step in plan.steps
        for of_ranks in zip(*step.ranks)
    ]


def predict_times(
    micro_batches: Sequence[float],
    steps: int,
    model: Model,
    ranks: int,
    device: Device,
    config: Config,
    settings: Settings,
    training: bool = True,
) -> Times:
    """Seconds of a mean step and of its parts.

    A micro-batch gathers all weights twice and reduces gradients (forward only: gathers once). 15 %
    of the shorter of communication and computation is not hidden behind the other; without
    overlap_comm nothing is.
    Args: micro_batches: operations of the micro-batches of all steps, on the rank that the others
    wait for. training: False for a pass that only computes log-probs.
    """
    item = DTYPES[config.hardware.dtype].itemsize
    moved = item
    if training:
        moved = 2 * item + (4 if settings.get("communication_data_type") == "fp32" else item)
    communication = moved * model.parameters * (ranks - 1) / ranks / network_rate(device, ranks)
    overlaps = section(settings, "zero_optimization").get("overlap_comm", True)
    shown = HIDDEN if overlaps else 1.0
    compute = [flops / device.peak / device.efficiency for flops in micro_batches]
    # AdamW, and for each micro-batch after the first: all gradients are copied to the bucket, and
    # the rank's share is added to what it has
    moves = OPTIMIZER_BYTES / ranks + (len(compute) / steps - 1) * (2 * item + (item + 8) / ranks)
    optimizer = 0.0
    if training:
        optimizer = moves * model.parameters / (MEMORY_EFFICIENCY * device.memory_rate)
    overlapped = sum(max(t, communication) + shown * min(t, communication) for t in compute)
    return {
        "compute": sum(compute) / steps,
        "comm": communication * len(compute) / steps,
        "optimiser": optimizer,
        "step s": overlapped / steps + optimizer,
    }


def network_rate(device: Device, ranks: int) -> float:
    """Bytes/s of a collective: in a node up to 8 ranks, else across nodes, slower past 64 ranks."""
    if ranks <= 8:
        return device.node
    if ranks <= 64:
        return device.across
    return device.across * (0.85 if ranks <= 256 else 0.7)


def predict_memory(
    model: Model,
    ranks: int,
    device: str,
    plan: Plan,
    work: Work,
    config: Config,
    settings: Settings,
) -> dict[str, int]:
    """Bytes of a rank by part, and their `peak`.

    The peak is in a micro-batch, or in the update, which needs a gradient in float32.
    Args: device: cuda or cpu.
    Returns: with the parts of `step_memory`: states, update, buckets, peak; `save`: bytes gathered
    at a time while the model is saved; `save_host`: bytes of the machine's memory then.
    """
    micro_batches = (micro for step in plan.steps for rank in step.ranks for micro in rank)
    fullest = max(micro_batches, key=lambda micro: sum(work.tokens[i] for i in micro))
    tokens, scored, keys = (
        sum(column[i] for i in fullest) for column in (work.tokens, work.scored, work.keys)
    )
    zero = section(settings, "zero_optimization")
    item, share = DTYPES[config.hardware.dtype].itemsize, model.parameters // ranks
    accumulates = section(settings, "data_types").get("grad_accum_dtype", "fp32")
    held = 0
    if "offload_optimizer" not in zero:
        held = 12 + (4 if accumulates == "fp32" else 2)
    parts = step_memory(
        model.config,
        model.parameters,
        ranks=ranks,
        tokens=tokens,
        scored=scored,
        keys=keys / tokens,
        hardware=config.hardware,
        zero=zero,
        device=device,
    )
    update = parts["update"] if held else 0
    states = share * (held + item * ("offload_param" not in zero))
    buckets = item * bucket_size(zero)
    in_micro_batch = parts["gathered"] + parts["activations"] + parts["head"]
    lm = model.config
    return parts | {
        "states": states,
        "update": update,
        "buckets": buckets,
        "peak": states + buckets + max(update, in_micro_batch),
        "save": item * lm.vocab_size * lm.hidden_size,
        "save_host": max(
            min(12 * share, shards.FILE_BYTES), min(item * model.parameters, SHARD_BYTES)
        ),
    }


def bucket_size(zero: Mapping[str, object]) -> int:
    """Elements of a bucket of gradients: `reduce_bucket_size`, else DeepSpeed's default."""
    size = zero.get("reduce_bucket_size", 5e8)
    assert isinstance(size, (int, float, str)), size
    return int(size)
