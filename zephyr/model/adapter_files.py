"""A folder in peft's format becomes updates of a base model's matrices, and the other way round.

An adapter's folder holds `adapter_config.json` and `adapter_model.safetensors`. The matrix of each
layer that it changes is W + scale * B A (Hu et al. 2021, LoRA, arXiv:2106.09685), where scale is
alpha / r, or alpha / sqrt(r) under rslora. What else peft can put into such a folder is refused by
name. No pickle is read, and the package peft is not needed here.

Shape letters:
    I  inputs of a linear layer
    O  outputs
    R  rank
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from zephyr.config import Adapter, BadInput

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft's names, before those of the decoder
# Keys of adapter_config.json that are read, and those that do not change what the adapter computes.
READ = {"peft_type", "r", "lora_alpha", "use_rslora", "base_model_name_or_path", "task_type"}
WITHOUT_EFFECT = {
    *("auto_mapping", "peft_version", "revision", "inference_mode", "lora_dropout"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("init_lora_weights", "megatron_core", "qalora_group_size", "ensure_weight_tying"),
    *("eva_config", "corda_config", "lora_ga_config", "loftq_config"),
}


class AdapterFolder(NamedTuple):
    """An adapter in peft's format, its tensors not read yet."""

    folder: Path
    base: str  # folder or hub id of the model that it changes, as written
    scale: float
    matrices: Mapping[str, tuple[str, str]]  # weight of the base -> names of A and B in the file


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in peft's format, and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> AdapterFolder:
    """The adapter in a folder.

    Raises:
        BadInput: a file is missing or broken, or the adapter is more than W + scale * B A; names
            the key or the tensor.
    """
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        base, rank, alpha = (
            settings[key] for key in ("base_model_name_or_path", "r", "lora_alpha")
        )
        scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    except (AttributeError, ArithmeticError, KeyError, OSError, TypeError, ValueError) as error:
        raise BadInput(
            f"adapter {folder}: {CONFIG} has no r, lora_alpha and base_model_name_or_path that can "
            f"be read: {error!r}"
        ) from None
    require_plain_lora(folder, settings)
    return AdapterFolder(folder, base, scale, matrix_names(folder))


def require_plain_lora(folder: Path, settings: Mapping[str, object]) -> None:
    """Raises: BadInput: the adapter is of another kind, or has a part that is not read here."""
    if settings.get("peft_type") != "LORA":
        raise BadInput(
            f"adapter {folder}: peft_type is {settings.get('peft_type')!r}, expected LORA"
        )
    if not isinstance(settings["base_model_name_or_path"], str):
        raise BadInput(
            f"adapter {folder}: base_model_name_or_path is "
            f"{settings['base_model_name_or_path']!r}, expected the folder or hub id of its base"
        )
    for key, value in settings.items():
        if key in READ | WITHOUT_EFFECT or not value or (key == "bias" and value == "none"):
            continue
        raise BadInput(
            f"adapter {folder}: {key}={value!r:.80} is not read here, expected plain LoRA: merge "
            "it with peft's merge_and_unload() and name the merged model"
        )


def matrix_names(folder: Path) -> dict[str, tuple[str, str]]:
    """Weight of the base -> names of A and B in the adapter's file.

    Raises:
        BadInput: the file is missing or broken, or holds a tensor that is not A or B of a layer.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise BadInput(f"adapter {folder}: {WEIGHTS} is missing; pickles (.bin) are not read")
    try:
        with safe_open(path, framework="pt") as tensors:
            names = set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(f"adapter {folder}: {WEIGHTS} is broken: {error}") from None
    found = {}
    for name in sorted(names):
        module, _, matrix = name.removeprefix(PREFIX).rpartition(".lora_")
        pair = tuple(f"{PREFIX}{module}.lora_{letter}.weight" for letter in "AB")
        if matrix not in ("A.weight", "B.weight") or not names.issuperset(pair):
            raise BadInput(
                f"adapter {folder}: tensor {name} of {WEIGHTS} is not lora_A or lora_B of a linear "
                "layer that has both"
            )
        found[f"{module}.weight"] = (pair[0], pair[1])
    return found


def require_matrices(adapter: AdapterFolder, shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that an adapter fits its base.

    Args:
        shapes: of the base's weights, by name.

    Raises:
        BadInput: it changes a weight that the base does not have, or has matrices of other shapes.
    """
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as tensors:
        for weight, pair in adapter.matrices.items():
            a_RI, b_OR = (tensors.get_slice(name).get_shape() for name in pair)
            expected = list(shapes.get(weight, ()))
            if len(expected) != 2 or [b_OR[0], a_RI[1]] != expected or a_RI[0] != b_OR[1]:
                raise BadInput(
                    f"adapter {adapter.folder}: its matrices for {weight} have shapes {a_RI} and "
                    f"{b_OR}, which do not make an update of {expected or 'no weight of the base'}"
                )


def merged(weight_OI: Tensor, name: str, adapters: Sequence[AdapterFolder]) -> Tensor:
    """A weight of the base with the updates of adapters, in its own dtype.

    Each update is computed and added in float32; the sum is rounded once.
    """
    changing = [adapter for adapter in adapters if name in adapter.matrices]
    if not changing:
        return weight_OI
    total_OI = weight_OI.float()
    for adapter in changing:
        with safe_open(adapter.folder / WEIGHTS, framework="pt") as tensors:
            a_RI, b_OR = (tensors.get_tensor(part) for part in adapter.matrices[name])
        total_OI = add_update(total_OI, a_RI, b_OR, adapter.scale)
    return total_OI.to(weight_OI.dtype)


def add_update(weight_OI: Tensor, a_RI: Tensor, b_OR: Tensor, scale: float) -> Tensor:
    """W + scale * B A in float32."""
    return torch.addmm(weight_OI.float(), b_OR.float(), a_RI.float(), alpha=scale)


def adapter_digest(adapter: AdapterFolder) -> str:
    """SHA-256 of what an adapter computes: its scale and tensors."""
    digest = hashlib.sha256(f"{adapter.scale!r}".encode())
    with safe_open(adapter.folder / WEIGHTS, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            tensor = tensors.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    adapter: Adapter,
    targets: Sequence[str],
    base: str,
) -> None:
    """Write an adapter's files, which `PeftModel.from_pretrained(BASE, FOLDER)` reads.

    Args:
        folder: an empty one.
        tensors: A and B by their names in the decoder, such as `layers.0.q_proj.lora_A.weight`.
        targets: ends of the names of the layers that have an adapter.
        base: folder or hub id of the model that was trained.
    """
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.r,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }
    (folder / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    named = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in tensors.items()}
    (folder / WEIGHTS).touch()  # with the mode of a new file, which safetensors would not give it
    mode = (folder / WEIGHTS).stat().st_mode
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(mode)
