"""A Hugging Face folder or hub id becomes a policy: a module that maps a packed batch to token
log-probs.

T scored tokens. Weights come from safetensors alone, one tensor at a time: under ZeRO-3 no rank
ever holds all. No remote code is run."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import ContextManager

import torch
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.initialization import no_init_weights

from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig
from zephyr.model import attention as kernels
from zephyr.model.packing_check import require_packable
from zephyr.model.policy import MODEL_CONFIG_ERRORS, Policy, build, fix_rope, learned_positions

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Config keys with the one value implemented: what changes logits behind the output layer, which the
# head would have to repeat, and dropout, which a shared prompt can't have twice alike.
INACTIVE_VALUES = {
    "final_logit_softcapping": None,
    "attention_dropout": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "hidden_dropout": 0.0,
    "residual_dropout": 0.0,
    "embedding_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout": 0.0,
}
WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")  # dtypes of weights, as safetensors calls them
WriteTensor = Callable[[nn.Parameter, Callable[[], Tensor]], None]


def load_policy(
    path: str | Path,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    activation_checkpointing: bool | str = False,
    max_tokens: int | None = None,
    init: ContextManager[object] | None = None,
    write: WriteTensor | None = None,
) -> Policy:
    """The model in a Hugging Face folder (or the snapshot of a hub id) as a Policy.

    Args: attention: flash_attn, torch_varlen or sdpa. max_tokens: of the longest sequence to come.
    It matters to models whose rotary frequencies grow with the sequence (longrope, dynamic NTK):
    all rows get those of `max_tokens`. None leaves them as transformers has them, and longer
    sequences than these models were pretrained on can't be packed. init, write: how parameters are
    made and filled, given by the training engine under ZeRO-3; default: whole, on CPU. Raises:
    BadInput naming the folder and what is missing (config, safetensors, tensor or shape), or why
    its packed log-probs would not be right."""
    folder = local_folder(path)
    config = read_config(folder)
    require_supported(folder, config)
    with init or nullcontext(), no_init_weights():
        try:
            lm = build(config, kernels.register_kernel(attention), dtype)
        except MODEL_CONFIG_ERRORS as error:
            raise BadInput(
                f"model {path}: its config.json makes no model here: {type(error).__name__}: {error}"
            ) from error
    longest, positions = fix_rope(lm, max_tokens), learned_positions(lm)
    if positions is not None and (max_tokens or 0) > positions:
        raise BadInput(
            f"model {path}: {config.model_type} has learned {positions} positions, sequences of up to {max_tokens} tokens are "
            f"to come; data.max_tokens of at most {positions} is wanted"
        )
    load_weights(lm, folder, write or (lambda parameter, read: parameter.data.copy_(read())))
    checkpoint_activations(lm, activation_checkpointing)
    return Policy(lm, positions if longest is None else longest)


def require_supported(folder: Path, config: PreTrainedConfig) -> None:
    """Raises: BadInput where packed log-probs of this decoder can't be shown to be right, with the
    reason."""
    try:
        require_packable(config)
    except ValueError as error:
        raise BadInput(f"model {folder}: {config.model_type} is not supported: {error}") from None


def checkpoint_activations(lm: PreTrainedModel, what: bool | str) -> None:
    """Let the backward compute again what it needs of a layer: all (True), or its norms and its
    MLP, the widest part, alone ("mlp").

    Raises: ConfigError where the layers have no MLP of that name."""
    if what is True:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    elif what == "mlp":
        parts = {
            name: module
            for name, module in lm.base_model.named_modules()
            if name.endswith((".mlp", "norm"))
        }
        if not any(name.endswith(".mlp") for name in parts):
            raise ConfigError(
                f"hardware.activation_checkpointing: {type(lm).__name__} has no layers with an mlp; true or false is wanted"
            )
        for module in parts.values():
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def require_runnable(config: DPOConfig | SFTConfig) -> None:
    """What is known to fail before anything loads: kernel, folder, config, weight files. Raises:
    BadInput."""
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    reason = kernels.unavailable_reason(
        config.hardware.attention, DTYPES[config.hardware.dtype], "cuda" if use_cuda else "cpu"
    )
    if reason:
        raise ConfigError(f"hardware.attention: {reason}")
    if (
        os.environ.get("LOCAL_RANK", "0") == "0"
    ):  # a hub id is fetched once a machine; the other ranks find it cached
        folder = local_folder(config.model)
        require_supported(folder, read_config(folder))
        weight_files(folder)


def local_folder(path: str | Path) -> Path:
    """The folder itself, or a hub id's snapshot of config, tokenizer and safetensors. Raises:
    BadInput."""
    if os.path.isdir(path):
        return Path(path)
    if str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise BadInput(f"model {path}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                str(path), allow_patterns=["*.json", "model*.safetensors", "tokenizer*", "*.jinja"]
            )
        )
    except (HFValidationError, OSError) as error:  # the hub's other errors are OSErrors
        raise BadInput(
            f"model {path}: no such folder, and the hub did not give it: {error}"
        ) from None


def read_config(folder: Path) -> PreTrainedConfig:
    """The model's config, checked for what the packed forward does not implement. Raises:
    BadInput."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"model {folder}: config.json is missing")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (*MODEL_CONFIG_ERRORS, OSError, RecursionError) as error:
        raise BadInput(
            f"model {folder}: config.json is not one of a known decoder: {error}"
        ) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise BadInput(
            f"model {folder}: config.json is of model_type {config.model_type}, which is no decoder"
        )
    if quantised := getattr(config, "quantization_config", None):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise BadInput(
            f"model {folder}: its weights are quantised ({how or 'quantization_config'}), wanted plain ones in "
            f"{' or '.join(DTYPES)}: save it dequantised, without quantization_config in config.json"
        )
    for key, idle in INACTIVE_VALUES.items():
        if (found := getattr(config, key, None)) not in (idle, None):
            raise BadInput(
                f"model {folder}: {key}={found} is not implemented here; {idle} is wanted"
            )
    return config


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it: `model.safetensors`, or else exactly what
    its index names.

    Other safetensors files of the folder are named in a warning. Raises: BadInput where there are
    no weights, or a file is broken, missing, or without a tensor that the index says it holds."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    source = whole if whole.is_file() else index
    if not source.is_file():
        others = [path.name for path in sorted(folder.glob("*.safetensors"))]
        raise BadInput(
            f"model {folder}: neither {whole.name} nor {index.name}; weights in other formats (pickles) or under other "
            f"names are not read" + f" ({', '.join(others[:3])})" * bool(others)
        )
    files = read_index(index) if source == index else dict.fromkeys(tensor_names(whole), whole)
    unread = sorted(
        {path.name for path in folder.glob("*.safetensors")}
        - {path.name for path in files.values()}
    )
    if unread:
        warnings.warn(
            f"model {folder}: {', '.join(unread)} not read: the weights are those of {source.name}",
            stacklevel=2,
        )
    return files


def read_index(index: Path) -> dict[str, Path]:
    """What `model.safetensors.index.json` says: tensor name -> file. Raises: BadInput where a file
    does not hold it."""
    folder = index.parent
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {name: folder / file for name, file in names.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BadInput(
            f"model {folder}: {index.name} has no weight_map of tensor names to files: {error!r}"
        ) from None
    if any(path.parent != folder for path in files.values()):
        raise BadInput(
            f"model {folder}: {index.name} names files of another folder; those beside it are wanted"
        )
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise BadInput(f"model {folder}: {path.name} is missing, which {index.name} names")
        wanted = {name for name, file in files.items() if file == path}
        found = set(tensor_names(path))
        if wanted != found:
            raise BadInput(
                f"model {folder}: {path.name} is not the file of {index.name}: missing {sorted(wanted - found)[:3]}, "
                f"left over {sorted(found - wanted)[:3]}"
            )
    return files


def tensor_names(path: Path) -> list[str]:
    try:
        with safe_open(path, framework="pt") as tensors:
            return list(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise BadInput(f"model {path.parent}: {path.name} is broken: {error}") from None


def load_weights(lm: PreTrainedModel, folder: Path, write: WriteTensor) -> None:
    """Every parameter from its file, one at a time. Raises: BadInput naming a tensor that is
    missing or left over."""
    files = weight_files(folder)
    wanted = dict(
        lm.named_parameters()
    )  # a tied output layer appears once, under the embedding's name
    tied = {name for name, _ in lm.named_parameters(remove_duplicate=False)} - set(wanted)
    buffers = {
        name for name in files if name.endswith("rotary_emb.inv_freq")
    }  # old checkpoints hold what is computed
    missing, left_over = (
        sorted(set(wanted) - set(files)),
        sorted(set(files) - set(wanted) - tied - buffers),
    )
    if missing or left_over:
        if needs_conversion(lm, left_over):
            raise BadInput(
                f"model {folder}: {lm.config.model_type} is not supported: transformers renames or merges its weights as it "
                f"loads them ({left_over[0]}), which is not done here"
            )
        raise BadInput(
            f"model {folder}: the weights are not those of {type(lm).__name__}: "
            f"missing {missing[:3]}, left over {left_over[:3]}"
        )
    for (
        name,
        parameter,
    ) in wanted.items():  # all before the first write: an error leaves no rank waiting
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        with safe_open(files[name], framework="pt") as tensors:
            stored = tensors.get_slice(name)
            if (found := stored.get_shape()) != shape:
                raise BadInput(
                    f"model {folder}: tensor {name} has shape {found}, the config wants {shape}"
                )
            if (dtype := stored.get_dtype()) not in WEIGHT_DTYPES:
                raise BadInput(
                    f"model {folder}: tensor {name} is stored as {dtype}, wanted one of {', '.join(WEIGHT_DTYPES)}: quantised weights "
                    "mean nothing without their scales"
                )
    require_tied(lm, folder, files, sorted(tied & set(files)))
    for name, parameter in wanted.items():
        write(parameter, partial(read_tensor, files[name], name))


def require_tied(
    lm: PreTrainedModel, folder: Path, files: dict[str, Path], tied: list[str]
) -> None:
    """A tensor that the config ties to another equals it in the files. Raises: BadInput, where one
    of the two would be lost."""
    first_of = {id(parameter): name for name, parameter in lm.named_parameters()}
    for name, parameter in lm.named_parameters(remove_duplicate=False):
        first = first_of[id(parameter)]
        if name in tied and not torch.equal(
            read_tensor(files[name], name), read_tensor(files[first], first)
        ):
            raise BadInput(
                f"model {folder}: {name} is not {first}, to which config.json ties it (tie_word_embeddings: true), wanted equal "
                "ones; tie_word_embeddings: false keeps both"
            )


def needs_conversion(lm: PreTrainedModel, names: list[str]) -> bool:
    """Whether transformers' own loader would change one of these tensor names on the way into the
    model."""
    mapping = get_model_conversion_mapping(lm)
    return any(
        transform.rename_source_key(name) != (name, None) for name in names for transform in mapping
    )


def read_tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor(name)


def digest(path: str | Path) -> str:
    """SHA-256 of what a model computes, however sharded: every tensor's name, dtype, shape, bytes,
    and the config."""
    folder = local_folder(path)
    files = weight_files(folder)

    def tensor_digest(name: str) -> str:
        tensor = read_tensor(files[name], name)
        head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        return hashlib.sha256(
            head + hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).digest()
        ).hexdigest()

    config = {
        k: v
        for k, v in sorted(json.loads((folder / "config.json").read_text()).items())
        if k not in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")
    }
    with ThreadPoolExecutor() as threads:  # hashing runs outside Python's lock
        parts = [json.dumps(config, sort_keys=True), *threads.map(tensor_digest, sorted(files))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
