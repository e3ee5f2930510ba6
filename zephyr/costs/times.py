"""A plan, a model's shape and a device's rates become the seconds of a step, by component.

Every component is work over a rate: operations or bytes, counted from the model's shape, over what
kernels of that kind reach. No factor is fitted to the time of a whole step. The rates were read
from the kernels of two 7B steps on one H200 (tests/benchmarks/results/profile_step_7B_*.txt), and
are taken to be the same shares of other devices' peaks.

Shape letters:
    E  examples
    M  micro-batches of all steps
    R  ranks
    C  components
"""

import time
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedConfig

from zephyr.config import Hardware
from zephyr.costs.collectives import (
    collective_seconds,
    micro_batch_collectives,
    network_rate,
)
from zephyr.costs.memory import RANKS_PER_NODE, SUM_BYTES, is_offloaded
from zephyr.costs.work import Config, Model, Settings, Work
from zephyr.model.load import DTYPES
from zephyr.model.logprobs import CHUNK_ELEMENTS
from zephyr.model.memory import inner_size, key_copies, query_and_key_sizes
from zephyr.model.nf4 import WEIGHT_BYTES
from zephyr.packing import Plan
from zephyr.training.deepspeed_settings import section_of
from zephyr.training.devices import Device

Array = NDArray[np.float64]

# The share of the memory's rate that elementwise kernels, copies and AdamW reach together: 1.15 and
# 1.24 s of them in the two profiles, for 3.2 and 3.4 TB by the counts below.
MEMORY_EFFICIENCY = 0.57
# Operations/s of the flash kernel inside torch on long segments, and the length at which it reaches
# half: 128 and 121 TFLOP/s in forward and backward at UltraFeedback's lengths on an H200. It does
# not use what Hopper has more than Ampere, so that its rate ends there. Share: estimated.
FLASH_SHARE, FLASH_MOST, FLASH_HALF_LENGTH = 0.36, 195e12, 400
CPU_FLASH_SHARE = 0.45  # of the rate of products, whatever the length (tests/benchmarks)
# Forwards' worth of operations in the backward of attention: it computes the weights again.
ATTENTION_BACKWARD = 2.5
# Bytes of one logit, in float32, that the head reads and writes in the forward and the backward.
LOGIT_BYTES = (28, 32)
# Bytes a parameter of the update, counted in DeepSpeed's ZeRO-3: sums to a flat float32 gradient
# 8, norm in float64 20, clip 8, torch's fused AdamW 28, weights to the model's dtype 6.
# RMSprop's kernels, which are not fused, 52; and the norm of its update 40.
UPDATE_BYTES = {"adamw": 70, "rmsprop": 134}
# on the host: clip, optimizer, weights to the model's dtype
HOST_UPDATE_BYTES = {"adamw": 42, "rmsprop": 106}
# of `update_ratio`, where a record is written: update again, two norms
RATIO_BYTES = {"adamw": 44, "rmsprop": 4}
# Bytes/s that AdamW reaches on a machine's memory, all its ranks together. An estimate: 0.36 s for
# 1e9 parameters; DeepSpeed's CPU-Adam took 0.25 s (Ren et al. 2021, arXiv:2101.06840, Table 4).
HOST_RATE = 120e9
# Seconds of the host for one operation on the device: Python, autograd, launch. The profiles show
# 21 to 35 us, which the profiler itself makes longer.
LAUNCH_SECONDS = 15e-6
# Seconds of the host in DeepSpeed's hooks for a layer, forward or backward: measured in a process
# on a CPU, with hooks at 13 modules of a layer and at the layer.
HOOK_SECONDS = {"module": 6e-3, "layer": 0.9e-3}
# Operations of a layer that are launched, forward and backward: elementwise ones as counted below,
# products, attention.
LAUNCHES = {"none": (50, 80), "liger": (24, 40), "triton": (24, 40)}
HIDDEN = 0.15  # of the shorter of computation and communication: what the longer does not hide
# Columns of E, R and M arrays
DEVICE_PARTS = ("products", "attention", "elementwise", "head")
# All parts of a step, in the order of the page
COMPONENTS = (*DEVICE_PARTS, "copies", "update", "update ratio", "host", "communication")


class Traffic(NamedTuple):
    """Bytes of a token in the elementwise operations of one layer."""

    forward: float
    backward: float
    repeated: float  # by the activation policy


class Seconds(NamedTuple):
    """A mean step. `parts` add up to `step`."""

    step: float
    parts: dict[str, float]  # by COMPONENTS, on the rank that the others wait for
    busy: float  # of the device with DEVICE_PARTS, on that rank
    ideal: float  # the same, with the work divided evenly over the ranks
    communication: float  # all of it, hidden or not
    micro_batches: float


def elementwise_traffic(lm: PreTrainedConfig, hardware: Hardware) -> Traffic:
    """Bytes of a token in norms, residual sums, rotary positions and the MLP's product.

    Separate operations: counted on meta tensors of transformers' Mistral layer, exact for any
    shape (a test counts again). Fused: inputs and outputs of each kernel once, and the sums that
    autograd makes of gradients.
    """
    item = DTYPES[hardware.dtype].itemsize
    hidden, inner = lm.hidden_size, inner_size(lm)
    query, key = query_and_key_sizes(lm)
    sums = 6 * item * hidden
    if hardware.fused == "none":
        norms = (72 if item == 2 else 56) * hidden
        norms_backward = (214 if item == 2 else 244) * hidden  # with the sums of gradients
        product, rotary = 5 * item * inner, 10 * item * (query + key)
        backward = norms_backward + item * (9 * inner + 16 * query + 18 * key)
    else:
        norms, product, rotary = 4 * item * hidden, 3 * item * inner, 2 * item * (query + key)
        backward = item * (21 * hidden + 5 * inner + 2 * (query + key))
    forward = norms + sums + product + rotary
    repeated = {
        True: forward,
        "mlp": norms + product,
        "elementwise": norms + product + rotary,
        False: 0,
    }[hardware.activation_checkpointing]
    return Traffic(forward, backward, repeated)


def example_seconds(
    work: Work, model: Model, device: Device, kind: str, config: Config, training: bool
) -> Array:
    """Seconds of each example on the device [E, C], by DEVICE_PARTS.

    Three forwards of the layers, three and a half of attention and four of the head (whose
    backward computes the logits again), and what the activation policy repeats. Not training: one.
    Ranks that compute a row together divide all of it, and exchange heads around attention.
    """
    lm, hardware = model.config, config.hardware
    item = DTYPES[hardware.dtype].itemsize
    tokens, scored, keys = (np.array(column, float) for column in work[:3])
    memory_rate = MEMORY_EFFICIENCY * device.memory_rate
    products_rate = device.peak * device.efficiency
    policy = hardware.activation_checkpointing
    layers, head = 2.0 * model.num_layer_parameters, 2.0 * lm.hidden_size * lm.vocab_size
    adapters, frozen = 2.0 * model.adapters, model.adapters > 0
    # Of frozen matrices `work.forward` holds two thirds (see `forward_flops`).
    of_matrices = (layers * tokens + head * scored) * (2 / 3 if frozen else 1)
    attention = np.array(work.forward) - of_matrices - adapters * tokens
    mlp = 6.0 * lm.num_hidden_layers * lm.hidden_size * inner_size(lm)
    times, repeated_products, repeated_attention = 1.0, 0.0, 0.0
    traffic = elementwise_traffic(lm, hardware)
    moved = traffic.forward
    if training:
        times = 3.0
        repeated_products = {"mlp": mlp, True: layers}.get(policy, 0.0)
        repeated_attention = ATTENTION_BACKWARD + (policy is True)
        moved = sum(traffic)
    products = (times * (layers + adapters) + repeated_products) * tokens / products_rate
    if training and frozen:  # no gradient of a frozen matrix
        products -= layers * tokens / products_rate
    attention_seconds = (
        (1 + repeated_attention) * attention / flash_rate(attention, tokens, lm, device, kind)
    )
    elementwise = lm.num_hidden_layers * moved * tokens
    elementwise += key_bytes(lm, item, tokens, keys) * (1 + training + (policy is True) * training)
    logit_bytes = sum(LOGIT_BYTES) if training else LOGIT_BYTES[0]
    if training and not frozen:  # the weight's gradient is read and written for each chunk of rows
        logit_bytes += 8 * lm.hidden_size * lm.vocab_size / CHUNK_ELEMENTS[kind]
    head_seconds = (4 - frozen if training else 1) * head * scored / products_rate
    head_seconds += logit_bytes * lm.vocab_size * scored / memory_rate
    parts = (products, attention_seconds, elementwise / memory_rate, head_seconds)
    seconds_EC: Array = np.stack(parts, axis=1) / hardware.sequence_parallel
    seconds_EC[:, 1] += tokens * exchange_seconds(lm, hardware, device, training)
    return seconds_EC


def exchange_seconds(
    lm: PreTrainedConfig, hardware: Hardware, device: Device, training: bool
) -> float:
    """Seconds of a row's token in the all-to-alls of `zephyr.model.sequence`; 0 for whole rows.

    Queries, keys and values, then the output, in each forward, backward and repeated forward. They
    hide behind nothing: attention waits for them.
    """
    ranks = hardware.sequence_parallel
    query, key = query_and_key_sizes(lm)
    sent = 2 * query + 2 * key * key_copies(lm, ranks)  # numbers of a token in a layer
    passes = 1 + training * (1 + (hardware.activation_checkpointing in (True, "elementwise")))
    layers: int = lm.num_hidden_layers
    moved = passes * DTYPES[hardware.dtype].itemsize * layers * sent
    return moved / ranks * (ranks - 1) / ranks / network_rate(device, ranks)


def flash_rate(
    attention: Array, tokens: Array, lm: PreTrainedConfig, device: Device, kind: str
) -> Array:
    """Operations/s of attention for each example [E]: short segments reach less.

    Args: attention: operations of one forward. The length is twice the mean keys of a token.
    """
    if kind == "cpu":
        return np.full_like(tokens, CPU_FLASH_SHARE * device.peak)
    query, _ = query_and_key_sizes(lm)
    length = 2 * attention / (4 * lm.num_hidden_layers * query * tokens)
    most = min(FLASH_SHARE * device.peak, FLASH_MOST)
    rate: Array = most * length / (length + FLASH_HALF_LENGTH)
    return rate


def key_bytes(lm: PreTrainedConfig, item: int, tokens: Array, keys: Array) -> Array:
    """Bytes of one pass in which keys and values of shared prompts are copied [E]."""
    _, width = query_and_key_sizes(lm)
    shared = keys > tokens
    elements = shared * 2 * width * (2 * (keys - tokens) + 2 * keys)
    moved: Array = lm.num_hidden_layers * item * elements
    return moved


def host_seconds(lm: PreTrainedConfig, hardware: Hardware, training: bool) -> tuple[float, float]:
    """Seconds of the host for a micro-batch, and for one layer's forward in it."""
    forward, backward = (LAUNCH_SECONDS * count for count in LAUNCHES[hardware.fused])
    hooks = HOOK_SECONDS[hardware.gather]
    if not training:
        return lm.num_hidden_layers * (forward + hooks), forward + hooks
    repeated = {
        True: forward + hooks,
        "mlp": forward / 2,
        "elementwise": 3 * forward,  # both forwards pass each operation to Python first
        False: 0.0,
    }[hardware.activation_checkpointing]
    return lm.num_hidden_layers * (forward + backward + 2 * hooks + repeated), forward + hooks


def copy_bytes(
    parameters: int, ranks: int, item: int, summed: int, settings: Settings, first: bool
) -> float:
    """Bytes that ZeRO-3 copies on the device for the gradients of a micro-batch, and its weights.

    Gradients: into the bucket, interleaved for `reduce_scatter`, divided by the ranks; this rank's
    part converted, then stored or added. Weights: put together after each of two gathers.
    Args: item, summed: bytes of a gradient in the model's dtype, and in the sums.
    """
    scattered = section_of(settings, "zero_optimization").get("reduce_scatter", True)
    whole = 2 * item * (3 if scattered else 2)
    part = (item + summed if item != summed else 0) + (2 if first else 3) * summed
    gathers = 4 * item if ranks > 1 else 0
    return parameters * (whole + gathers + part / ranks)


def communication_seconds(
    model: Model,
    ranks: int,
    device: Device,
    config: Config,
    settings: Settings,
    training: bool,
) -> float:
    """Seconds of collectives and of copies from the host for a micro-batch.

    All weights are gathered twice, and gradients are reduced (forward only: gathered once).
    """
    collectives = micro_batch_collectives(model, ranks, config, settings, training)
    seconds = sum(collective_seconds(one, device) for one in collectives)
    if is_offloaded(settings, "offload_param"):
        item = DTYPES[config.hardware.dtype].itemsize
        seconds += (2 if training else 1) * item * model.shared / ranks / device.host
    return seconds


def offloaded_gradient_seconds(
    model: Model, ranks: int, device: Device, settings: Settings, summed: int, micro_batches: float
) -> float:
    """Seconds of a step in which sums of gradients go to the host's memory and back.

    Each micro-batch after the first reads the sum, adds and writes it; then the float32 gradient.
    """
    if not is_offloaded(settings, "offload_optimizer"):
        return 0.0
    moved = summed * (2 * micro_batches - 1) + 4
    return moved * model.trained / ranks / device.host


def update_seconds(
    model: Model,
    ranks: int,
    device: Device,
    settings: Settings,
    log_every: int,
    optimizer: str = "adamw",
) -> tuple[float, float]:
    """Seconds of the update, and of `update_ratio` in a mean step."""
    share = model.trained / ranks
    update, rate = UPDATE_BYTES[optimizer] * share, MEMORY_EFFICIENCY * device.memory_rate
    if is_offloaded(settings, "offload_optimizer"):
        update = HOST_UPDATE_BYTES[optimizer] * share
        rate = HOST_RATE / min(ranks, RANKS_PER_NODE)
    return update / rate, RATIO_BYTES[optimizer] * share / rate / log_every


def micro_batch_sums(plan: Plan, values_EC: Array) -> Array:
    """The examples' values summed for each micro-batch on each rank [M, R, C]."""
    columns = [
        [of_rank[m] for of_rank in step.ranks]
        for step in plan.steps
        for m in range(len(step.ranks[0]))
    ]
    ranks = len(plan.steps[0].ranks)
    micro_batches = list(chain.from_iterable(columns))
    order = np.fromiter(chain.from_iterable(micro_batches), dtype=np.int64)
    ends = np.cumsum([0, *map(len, micro_batches)])
    sums = np.concatenate([np.zeros((1, values_EC.shape[1])), values_EC[order].cumsum(0)])
    sums_MRC: Array = (sums[ends[1:]] - sums[ends[:-1]]).reshape(-1, ranks, values_EC.shape[1])
    return sums_MRC


def step_seconds(
    plan: Plan,
    work: Work,
    model: Model,
    device: Device,
    kind: str,
    config: Config,
    settings: Settings,
    gradient_dtype: str = "float32",
    training: bool = True,
) -> Seconds:
    """Seconds of a mean step of a plan, by component.

    A micro-batch takes as long as the slower of the host and the device of the most loaded rank.
    15 % of the shorter of that and communication is not hidden behind the other; without
    overlap_comm nothing is. On a CPU, host and device are the same.
    Args: kind: cuda or cpu. settings: those that DeepSpeed gets. gradient_dtype: of the sums.
    training: False for a pass that only computes log-probs.
    """
    rows, steps = len(plan.steps[0].ranks), len(plan.steps)
    ranks = rows * config.hardware.sequence_parallel
    seconds_EC = example_seconds(work, model, device, kind, config, training)
    seconds_MRC = micro_batch_sums(plan, seconds_EC)
    slowest_M = seconds_MRC.sum(-1).argmax(1)
    parts_MC = seconds_MRC[np.arange(len(slowest_M)), slowest_M]
    busy_M = parts_MC.sum(-1)
    host, one_layer = host_seconds(model.config, config.hardware, training)
    copies_M = copies(plan, model, device, config, settings, gradient_dtype) * training
    if kind == "cpu":
        waits_M = np.full_like(busy_M, host)
    else:  # each micro-batch starts with an empty queue
        waits_M = one_layer + np.maximum(0, host - busy_M - copies_M)
    taken_M = busy_M + copies_M + waits_M
    communication = communication_seconds(model, ranks, device, config, settings, training)
    if training:
        summed, per_step = SUM_BYTES[gradient_dtype], len(busy_M) / steps
        communication += (
            offloaded_gradient_seconds(model, ranks, device, settings, summed, per_step) / per_step
        )
    overlaps = section_of(settings, "zero_optimization").get("overlap_comm", True)
    shown = HIDDEN if overlaps else 1.0
    whole_M = np.maximum(taken_M, communication) + shown * np.minimum(taken_M, communication)
    update, ratio = update_seconds(
        model, ranks, device, settings, config.run.log_every, config.optim.optimizer
    )
    parts = dict(zip(DEVICE_PARTS, (parts_MC.sum(0) / steps).tolist())) | {
        "copies": float(copies_M.sum() / steps),
        "update": update * training,
        "update ratio": ratio * training,
        "host": float(waits_M.sum() / steps),
        "communication": float((whole_M - taken_M).sum() / steps),
    }
    return Seconds(
        step=sum(parts.values()),
        parts=parts,
        busy=float(busy_M.sum() / steps),
        ideal=float(seconds_MRC.sum() / rows / steps),
        communication=communication * len(busy_M) / steps,
        micro_batches=len(busy_M) / steps,
    )


def copies(
    plan: Plan,
    model: Model,
    device: Device,
    config: Config,
    settings: Settings,
    gradient_dtype: str,
) -> Array:
    """Seconds of ZeRO-3's copies on the device in each micro-batch [M]."""
    item, summed = DTYPES[config.hardware.dtype].itemsize, SUM_BYTES[gradient_dtype]
    ranks = len(plan.steps[0].ranks) * config.hardware.sequence_parallel
    rate = MEMORY_EFFICIENCY * device.memory_rate
    # Frozen weights are put together after each gather; quantised ones are read and written whole.
    frozen = 4.0 * item * (model.shared - model.trained) * (ranks > 1)
    passes = 2 if config.hardware.activation_checkpointing is False else 3
    frozen += passes * (WEIGHT_BYTES + item) * model.quantized
    later, first = (
        (copy_bytes(model.trained, ranks, item, summed, settings, first) + frozen) / rate
        for first in (False, True)
    )
    return np.array(
        [first if m == 0 else later for step in plan.steps for m in range(len(step.ranks[0]))]
    )


def measure_cpu(dtype: str, ranks: int) -> Device:
    """Measure this machine, and return a rank's share of it.

    The FLOP rate is that of a second of large matrix products. The share of it that a model of
    hidden size 256 reaches, and the rates of memory and network, are estimates.
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
    return Device(psutil.virtual_memory().total / ranks, flops / seconds, 0.7, 20e9, 1e9, 1e9, 10e9)
