"""DeepSpeed's JSON and the YAML become the settings that DeepSpeed gets."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import zephyr
from zephyr.config import ConfigError, Hardware, Optim, SFTOptim

Json = dict[str, object]

# DeepSpeed's keys that are an error in the JSON, each with the YAML key that decides instead
DECIDED_BY_YAML = {
    "train_batch_size": "optim.pairs_per_step",
    "train_micro_batch_size_per_gpu": "hardware.tokens_per_micro_batch",
    "gradient_accumulation_steps": "hardware.tokens_per_micro_batch",
    "optimizer": "optim",
    "scheduler": "optim.schedule",
    "gradient_clipping": "optim.grad_clip",
    "bf16": "hardware.dtype",
    "fp16": "hardware.dtype",
    "amp": "hardware.dtype",
    "activation_checkpointing": "hardware.activation_checkpointing",
}
# Keys of `zero_optimization` that make DeepSpeed gather more than one module's weights at once.
LEAF_KEYS = ("leaf_module", "stage3_module_granularity_threshold")
# Keys of `zero_optimization` that quantise what ranks exchange.
INEXACT_KEYS = (
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
)
# The names of dtypes that DeepSpeed takes in its JSON, each with ours.
DTYPE_NAMES = {
    **dict.fromkeys(("fp32", "float32", "float", "torch.float32"), "float32"),
    **dict.fromkeys(("bf16", "bfloat16", "torch.bfloat16"), "bfloat16"),
}


class GradientDtype(NamedTuple):
    """In which dtype a rank sums the gradients of its micro-batches, and why."""

    dtype: str  # float32 or bfloat16
    reason: str


def read_deepspeed(path: str) -> Json:
    """Read the DeepSpeed JSON of `hardware.deepspeed`.

    A relative path is looked up in the working folder, then beside the package.
    Raises: ConfigError where the file is absent, is not JSON, is not ZeRO-3, or sets what the YAML
    decides.
    """
    places = (Path(path), Path(zephyr.__file__).parents[1] / path)
    found = next((place for place in places if os.path.isfile(place)), None)
    if found is None:
        raise ConfigError(f"hardware.deepspeed: no such file: {path}")
    try:
        settings: Json = json.loads(found.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"hardware.deepspeed: {path} is not JSON: {error}") from None
    zero = settings.get("zero_optimization") if isinstance(settings, dict) else None
    if not isinstance(zero, dict) or zero.get("stage") != 3:
        raise ConfigError(
            f"hardware.deepspeed: {path}: zero_optimization.stage 3 is wanted, got {zero!r}"
        )
    dtypes = settings.get("data_types", {})
    if not isinstance(dtypes, dict):
        raise ConfigError(
            f"hardware.deepspeed: {path}: data_types: a mapping with grad_accum_dtype is wanted, "
            f"got {dtypes!r}"
        )
    for key, owner in DECIDED_BY_YAML.items():
        if key in settings:
            raise ConfigError(
                f"hardware.deepspeed: {path} sets {key}; the YAML's {owner} decides that: remove it"
            )
    return settings


def require_exact(settings: Mapping[str, object], path: str, ranks: int) -> None:
    """Check the parts of ZeRO++ and MiCS that the JSON asks for.

    Hierarchical partitioning (hpZ) keeps a second copy of the weights in the model's own dtype: the
    weights that a backward gathers are the same to the bit.

    Args: ranks: of the run; 1 where it is not known.
    Raises: ConfigError: quantised communication, MiCS, or groups that do not divide the ranks.
    """
    zero = section_of(settings, "zero_optimization")
    for key in INEXACT_KEYS:
        if zero.get(key):
            raise ConfigError(
                f"hardware.deepspeed: {path} sets zero_optimization.{key}: it rounds what ranks "
                "exchange to 8 or 4 bits, and the run would depend on the number of ranks; remove "
                "it (zero_hpz_partition_size is exact)"
            )
    shards = zero.get("mics_shard_size", -1)
    if isinstance(shards, int) and shards > 0:
        raise ConfigError(
            f"hardware.deepspeed: {path} sets zero_optimization.mics_shard_size: MiCS makes "
            "parameters and checkpoints of another kind, which are not read here; remove it"
        )
    size = hpz_ranks(settings)
    if size < 1 or (ranks > size and ranks % size):
        raise ConfigError(
            f"hardware.deepspeed: {path}: zero_optimization.zero_hpz_partition_size: expected the "
            f"GPUs of a node, a divisor of the {ranks} ranks, got {zero['zero_hpz_partition_size']}"
        )


def hpz_ranks(settings: Mapping[str, object]) -> int:
    """`zero_hpz_partition_size`: ranks that together hold a second copy of all weights; 1: none.

    0 for a value that is no integer.
    """
    size = section_of(settings, "zero_optimization").get("zero_hpz_partition_size", 1)
    return size if type(size) is int else 0


def section_of(settings: Mapping[str, object], name: str) -> Json:
    """A nested part of the settings; empty where it is absent or no mapping."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def gradient_dtype(
    hardware: Hardware, settings: Mapping[str, object], *, ranks: int, micro_batches: int | None
) -> GradientDtype:
    """The dtype in which each rank sums the gradients of its micro-batches.

    With one micro-batch a step nothing is summed: the gradient is bfloat16, as the backward pass
    made it and the ranks averaged it, and a sum in float32 holds the same values.

    Args:
        hardware: of the config.
        settings: DeepSpeed's JSON.
        ranks: of the run.
        micro_batches: the most of a step on one rank; None: not known.

    Raises:
        ConfigError: JSON and YAML name different dtypes, or one is not possible.
    """
    key, path = "data_types.grad_accum_dtype", hardware.deepspeed
    named = section_of(settings, "data_types").get("grad_accum_dtype")
    of_json = None if named is None else DTYPE_NAMES.get(str(named))
    if named is not None and of_json is None:
        raise ConfigError(
            f"hardware.deepspeed: {path}: {key}: fp32 or bf16 is wanted, got {named!r}"
        )
    of_yaml = None if hardware.gradient_dtype == "auto" else hardware.gradient_dtype
    if of_yaml and of_json and of_yaml != of_json:
        raise ConfigError(
            f"hardware.gradient_dtype: {of_yaml}, but {path} sets {key}: {named}; remove that line"
        )
    asked = of_yaml or of_json
    if asked == "bfloat16" and hardware.dtype != "bfloat16":
        source = "hardware.gradient_dtype" if of_yaml else f"hardware.deepspeed: {path}: {key}"
        raise ConfigError(f"{source}: bfloat16 needs hardware.dtype bfloat16, got {hardware.dtype}")
    if asked:
        return GradientDtype(asked, "hardware.gradient_dtype" if of_yaml else f"{path} sets {key}")
    return automatic_gradient_dtype(hardware, settings, ranks, micro_batches)


def automatic_gradient_dtype(
    hardware: Hardware, settings: Mapping[str, object], ranks: int, micro_batches: int | None
) -> GradientDtype:
    """bfloat16 where a sum in float32 would hold the same values, else float32."""
    reduced = settings.get("communication_data_type")
    if hardware.dtype != "bfloat16":
        return GradientDtype("float32", f"hardware.dtype is {hardware.dtype}")
    if micro_batches is None:
        return GradientDtype("float32", "the number of micro-batches is not known")
    if micro_batches > 1:
        return GradientDtype(
            "float32", f"a step has up to {micro_batches} micro-batches on each rank"
        )
    if ranks > 1 and reduced is not None and DTYPE_NAMES.get(str(reduced)) != "bfloat16":
        return GradientDtype("float32", f"ranks average gradients in {reduced}")
    return GradientDtype("bfloat16", "a step has one micro-batch on each rank, nothing is summed")


def deepspeed_settings(
    settings: Mapping[str, object],
    *,
    hardware: Hardware,
    optim: Optim | SFTOptim,
    gradients_in: str,
    ranks: int,
) -> Json:
    """The JSON, completed by what the YAML decides.

    Clipping and accumulation dtype are always written: DeepSpeed's defaults are 1.0 and the model's
    dtype. One rank has nothing to scatter: without `reduce_scatter`, DeepSpeed takes gradients from
    the bucket as they are, and does not copy the bucket first. Its throughput timer, which prints
    nothing here, would wait for the device before each forward.

    Args:
        settings: DeepSpeed's JSON.
        gradients_in: float32 or bfloat16.

    Raises:
        ConfigError: the JSON gathers larger parts than `hardware.gather: module`, or as
            `require_exact`.
    """
    require_exact(settings, hardware.deepspeed, ranks)
    zero = section_of(settings, "zero_optimization")
    larger = [key for key in LEAF_KEYS if key in zero]
    if larger and hardware.gather == "module":
        raise ConfigError(
            f"hardware.gather: module, but {hardware.deepspeed} sets zero_optimization."
            f"{larger[0]}, which gathers more at once; remove that line, or set hardware.gather to "
            "layer"
        )
    if ranks == 1:
        zero = {**zero, "reduce_scatter": False}
    short = {"float32": "fp32", "bfloat16": "bf16"}[gradients_in]
    return {
        "timers": {"throughput": {"enabled": False}},
        **settings,
        "zero_optimization": zero,
        "data_types": {**section_of(settings, "data_types"), "grad_accum_dtype": short},
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optim.grad_clip,
        "steps_per_print": 10**9,
        "bf16": {"enabled": hardware.dtype == "bfloat16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def slow_settings(settings: Mapping[str, object], *, ranks: int, device: str) -> list[str]:
    """Warnings about settings of the JSON that cost time on this machine.

    Args: device: cuda or cpu.
    """
    overlap = section_of(settings, "zero_optimization").get("overlap_comm")
    if device == "cuda" and ranks == 1 and overlap is False:
        return [
            "zero_optimization.overlap_comm is false: with one rank on a GPU, DeepSpeed then waits "
            "for all work of the device each time it fetches weights; set it to true"
        ]
    return []
