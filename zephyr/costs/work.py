"""Token counts, a model's shape and a device's rates become predicted memory and time, part by
part."""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from zephyr.config import BadInput, DPOConfig, SFTConfig
from zephyr.model.export import SHARD_BYTES
from zephyr.model.load import DTYPES, MODEL_CONFIG_ERRORS
from zephyr.model.memory import inner_size, step_memory
from zephyr.packing import Plan
from zephyr.training import shards
from zephyr.training.flops import pair_flops, text_flops

Config = DPOConfig | SFTConfig
Settings = Mapping[str, object]  # DeepSpeed's JSON
Lengths = Sequence[
    tuple[int, ...]
]  # of pairs (prompt, chosen, rejected), of texts (tokens, targets)
# Mean and log-deviation of prompts and of responses before they are cut, and pairs of the data set
PROFILES = {
    "ultrafeedback": ((185, 1.1), (320, 0.75), 61135),
    "hh": ((140, 0.8), (60, 0.75), 160800),
    "tldr": ((352, 0.4), (33, 0.35), 92858),
}


class Device(NamedTuple):
    """One accelerator: bytes, dense FLOP/s and what of it training reaches, bytes/s to its memory,
    in a node, across nodes."""

    memory: float
    peak: float
    efficiency: float
    memory_rate: float
    node: float
    across: float


# Memory, peak and memory rate: data sheets. Efficiency: an estimate by what is published (MosaicML
# llm-foundry, 7B on 8 GPUs: 64 % on A100, 46 % on H100, communication included). Interconnect:
# estimates of what all-gathers reach by NVLink in a node, InfiniBand across.
DEVICES = {
    "a100-40": Device(42.3e9, 312e12, 0.60, 1.56e12, 230e9, 160e9),
    "a100-80": Device(85.0e9, 312e12, 0.60, 2.04e12, 230e9, 160e9),
    "h100": Device(85.0e9, 989.4e12, 0.55, 3.35e12, 340e9, 330e9),
    "h200": Device(149.6e9, 989.4e12, 0.55, 4.8e12, 340e9, 330e9),
}


class Model(NamedTuple):
    """A model's shape, all its parameters and those of its layers."""

    config: PreTrainedConfig
    parameters: int
    num_layer_parameters: int


class Work(NamedTuple):
    """Of each example: tokens in a packed row, scored tokens, keys of its attention, and one
    forward's operations."""

    tokens: list[int]
    scored: list[int]
    keys: list[int]
    forward: list[float]


def read_model(path: str, shape: str | None) -> Model:
    """The model of a folder's (or hub id's) config.json, or of a model type's default one, counted
    without weights. Raises: BadInput."""
    try:
        config = (
            AutoConfig.for_model(shape)
            if shape
            else AutoConfig.from_pretrained(path, trust_remote_code=False)
        )
        with torch.device("meta"):
            lm = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (*MODEL_CONFIG_ERRORS, OSError) as error:
        raise BadInput(
            f"model {path}: a folder with a config.json is wanted, or --shape (mistral: that of Mistral-7B); {error}"
        ) from None
    sizes = {name: parameter.numel() for name, parameter in lm.named_parameters()}
    outside = sum(
        size for name, size in sizes.items() if "embed_tokens" in name or "lm_head" in name
    )
    return Model(config, sum(sizes.values()), sum(sizes.values()) - outside)


def profile_lengths(profile: str, config: Config) -> Lengths:
    """Lognormal lengths, cut as the config says, by what is published of a data set; ultrachat: of
    texts, all of them targets."""
    data = config.data
    if isinstance(config, SFTConfig):
        drawn = (
            np.random.default_rng(0)
            .lognormal(np.log(1060), 0.62, data.limit or 207865)
            .clip(16, data.max_tokens)
            .astype(int)
            .tolist()
        )
        return [(n, n - 1) for n in drawn]
    return pair_lengths(
        profile, data.limit or PROFILES[profile][2], 0, data.max_prompt_tokens, data.max_tokens
    )


def pair_lengths(
    profile: str, pairs: int, seed: int, most_prompt: int, most: int, scale: float = 1.0
) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) of each pair of a profile, times `scale`, then cut as truncation
    cuts."""
    prompts, responses, _ = PROFILES[profile]
    z = np.random.default_rng(seed).standard_normal((3, pairs))
    z[2] = 0.6 * z[1] + 0.8 * z[2]  # the two responses of a pair: a correlation of 0.6
    prompt, *both = (
        mean * scale * np.exp(deviation * x - deviation**2 / 2)
        for (mean, deviation), x in zip((prompts, responses, responses), z)
    )
    prompt = prompt.clip(2, most_prompt).astype(int)
    return list(
        zip(prompt.tolist(), *(side.clip(2, most - prompt).astype(int).tolist() for side in both))
    )


def example_work(lengths: Lengths, model: Model, config: Config) -> Work:
    """What each example takes of rows, head, attention and machine."""
    lm, layers = model.config, model.num_layer_parameters
    if isinstance(config, SFTConfig):
        tokens, targets = ([*column] for column in zip(*lengths))
        return Work(tokens, targets, tokens, [text_flops(lm, layers, *of) for of in lengths])
    shared = config.hardware.prefix_sharing
    return Work(
        [(2 - shared) * p + c + r for p, c, r in lengths],
        [c + r for _, c, r in lengths],
        [2 * p + c + r for p, c, r in lengths],
        [pair_flops(lm, layers, *of, shared) for of in lengths],
    )


def executed_flops(of: Work, model: Model, policy: bool | str) -> list[float]:
    """Operations of each example's training step: three forwards of the layers, three and a half of
    attention and four of the head, whose backwards compute weights and logits again, and what the
    activation policy repeats."""
    lm = model.config
    gate_and_up = 2 * lm.num_hidden_layers * lm.hidden_size * inner_size(lm)
    repeated = {False: 0.0, "mlp": gate_and_up / model.num_layer_parameters, True: 1.0}[policy]
    layers, head = 2.0 * model.num_layer_parameters, 2.0 * lm.hidden_size * lm.vocab_size
    return [
        (3 + repeated) * layers * n
        + 4 * head * t
        + (3.5 + (policy is True)) * (forward - layers * n - head * t)
        for n, t, forward in zip(of.tokens, of.scored, of.forward)
    ]


def measure_cpu(dtype: str, ranks: int) -> Device:
    """A rank's share of it: the rate of a second of matrix products, half of which a model of
    hidden size 256 was measured to reach; the rates of memory and network are estimates."""
    import psutil

    square, flops, threads, start = (
        torch.randn(768, 768).to(DTYPES[dtype]),
        0,
        torch.get_num_threads(),
        time.process_time(),
    )
    while (
        seconds := (time.process_time() - start) / threads
    ) < 1:  # CPU time: other processes slow nothing of it
        square @ square
        flops += 2 * 768**3
    return Device(psutil.virtual_memory().total / ranks, flops / seconds, 0.5, 10e9, 1e9, 1e9)


def most_loaded_rank_flops(plan: Plan, flops: Sequence[float]) -> list[float]:
    """Operations of each micro-batch on the rank that the others wait for, step by step."""
    return [
        max(sum(flops[i] for i in micro) for micro in of_ranks)
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
) -> dict[str, float]:
    """Seconds of a mean step, and of its parts. A micro-batch gathers all weights twice and reduces
    gradients (forward only: gathers once); 15 % of what is shorter, this or the computation, is not
    hidden behind the other, and nothing is without overlap_comm. Args: micro_batches: of all steps,
    operations on the rank that the others wait for."""
    item = DTYPES[config.hardware.dtype].itemsize
    moved = (
        2 * item + (4 if settings.get("communication_data_type") == "fp32" else item)
        if training
        else item
    )
    # Across nodes of 8 ranks; 15 % less past 64 ranks, 30 % past 256
    rate = (
        device.node
        if ranks <= 8
        else device.across * (1 if ranks <= 64 else 0.85 if ranks <= 256 else 0.7)
    )
    communication = moved * model.parameters * (ranks - 1) / ranks / rate
    shown = 0.15 if settings["zero_optimization"].get("overlap_comm", True) else 1.0
    compute = [flops / device.peak / device.efficiency for flops in micro_batches]
    # Bytes of AdamW, and of each micro-batch after the first: all gradients copied to the bucket,
    # the rank's added to what it has
    moves = 30 / ranks + (len(compute) / steps - 1) * (2 * item + (item + 8) / ranks)
    optimiser = moves * model.parameters / (0.6 * device.memory_rate) if training else 0.0
    return {
        "compute": sum(compute) / steps,
        "comm": communication * len(compute) / steps,
        "optimiser": optimiser,
        "step s": sum(max(t, communication) + shown * min(t, communication) for t in compute)
        / steps
        + optimiser,
    }


def predict_memory(
    model: Model, ranks: int, device: str, plan: Plan, of: Work, config: Config, settings: Settings
) -> dict[str, int]:
    """Bytes of a rank by part, and their peak: in a micro-batch, or in the update, which needs a
    gradient in float32.

    Args: device: cuda or cpu. `save`: gathered at a time while the model is saved; `save_host`: of
    the machine's memory then."""
    micro_batches = (micro for step in plan.steps for rank in step.ranks for micro in rank)
    fullest = max(micro_batches, key=lambda micro: sum(of.tokens[i] for i in micro))
    tokens, scored, keys = (
        sum(column[i] for i in fullest) for column in (of.tokens, of.scored, of.keys)
    )
    zero, item, share = (
        settings["zero_optimization"],
        DTYPES[config.hardware.dtype].itemsize,
        model.parameters // ranks,
    )
    accumulates = settings.get("data_types", {}).get("grad_accum_dtype", "fp32")
    held = 0 if "offload_optimizer" in zero else 12 + {"fp32": 4}.get(accumulates, 2)
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
    update = parts["states"] - 8 * share if held else 0
    found = parts | {
        "states": share * (held + item * ("offload_param" not in zero)),
        "update": update,
        "buckets": item * int(zero.get("reduce_bucket_size", 5e8)),
    }
    peak = (
        found["states"]
        + found["buckets"]
        + max(update, parts["gathered"] + parts["activations"] + parts["head"])
    )
    host = max(min(12 * share, shards.FILE_BYTES), min(item * model.parameters, SHARD_BYTES))
    return found | {
        "peak": peak,
        "save": item * model.config.vocab_size * model.config.hidden_size,
        "save_host": host,
    }
