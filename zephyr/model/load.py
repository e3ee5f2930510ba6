"""A Hugging Face folder or hub id becomes a policy: a module that maps a packed batch to token log-probs.

T scored tokens. Weights come from safetensors alone, one tensor at a time: under ZeRO-3 no rank ever holds all. No remote code is run."""
import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import ContextManager

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from zephyr.config import BadInput, ConfigError, DPOConfig, SFTConfig
from zephyr.model import attention as kernels
from zephyr.model.logprobs import LogProbHead, scored_hidden
from zephyr.packing import PackedBatch

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Config keys with the one value implemented: what changes logits behind the output layer, which the head would have to
# repeat, and dropout, which a shared prompt can't have twice alike.
IDLE = {"final_logit_softcapping": None, "logit_scale": None, "logits_scaling": 1.0, "attention_dropout": 0.0,
        "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "hidden_dropout": 0.0, "dropout": 0.0}
# What transformers raises for a value of the wrong type or size in config.json
REFUSALS = (ArithmeticError, AssertionError, AttributeError, LookupError, StrictDataclassError, TypeError, ValueError)
WriteTensor = Callable[[nn.Parameter, Callable[[], Tensor]], None]


class Policy(nn.Module):
    """A causal language model that scores: `policy(batch)` -> log p of each target token, float32 [T]."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, batch: PackedBatch) -> Tensor:
        # A mask of four dimensions is passed on untouched by transformers; none is computed, `layout` replaces it.
        no_mask = torch.empty(1, 1, 0, 0, device=batch.tokens_N.device)
        hidden_ND = self.lm.base_model(input_ids=batch.tokens_N[None], position_ids=batch.positions_N[None], attention_mask=no_mask,
                                       use_cache=False, layout=batch.layout).last_hidden_state[0]
        return self.lm.get_output_embeddings()(scored_hidden(hidden_ND, batch), batch.targets_T)


def load_policy(path: str | Path, *, attention: str = "sdpa", dtype: torch.dtype = torch.float32,
                activation_checkpointing: bool | str = False, init: ContextManager[object] | None = None,
                write: WriteTensor | None = None) -> Policy:
    """The model in a Hugging Face folder (or the snapshot of a hub id) as a Policy.

    Args: attention: flash_attn, torch_varlen or sdpa. init, write: how parameters are made and filled, given by the training engine
    under ZeRO-3; default: whole, on CPU. Raises: BadInput naming the folder and what is missing: config, safetensors, tensor or shape."""
    folder = local_folder(path)
    config = read_config(folder)
    with init or nullcontext(), no_init_weights():
        try:
            lm = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=kernels.register(attention),
                                                  trust_remote_code=False)
        except REFUSALS as error:
            raise BadInput(f"model {path}: its config.json makes no model here: {type(error).__name__}: {error}") from error
    lm.tie_weights()
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise BadInput(f"model {path}: {type(lm).__name__} has no linear output layer without bias, which is wanted")
    lm.set_output_embeddings(LogProbHead.replacing(head))
    fill(lm, folder, write or (lambda parameter, read: parameter.data.copy_(read())))
    recompute(lm, activation_checkpointing)
    return Policy(lm)


def recompute(lm: PreTrainedModel, what: bool | str) -> None:
    """Let the backward compute again what it needs of a layer: all (True), or its norms and its MLP, the widest part, alone ("mlp").

    Raises: ConfigError where the layers have no MLP of that name."""
    if what is True:
        lm.gradient_checkpointing_enable({"use_reentrant": False})
    elif what == "mlp":
        parts = {name: module for name, module in lm.base_model.named_modules() if name.endswith((".mlp", "norm"))}
        if not any(name.endswith(".mlp") for name in parts):
            raise ConfigError(f"hardware.activation_checkpointing: {type(lm).__name__} has no layers with an mlp; true or false is wanted")
        for module in parts.values():
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def require_runnable(config: DPOConfig | SFTConfig) -> None:
    """What is known to fail before anything loads: kernel, folder, config, weight files. Raises: BadInput."""
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    reason = kernels.why_not(config.hardware.attention, DTYPES[config.hardware.dtype], "cuda" if use_cuda else "cpu")
    if reason:
        raise ConfigError(f"hardware.attention: {reason}")
    if os.environ.get("LOCAL_RANK", "0") == "0":    # a hub id is fetched once a machine; the other ranks find it cached
        folder = local_folder(config.model)
        read_config(folder)
        weight_files(folder)


def local_folder(path: str | Path) -> Path:
    """The folder itself, or a hub id's snapshot of config, tokenizer and safetensors. Raises: BadInput."""
    if os.path.isdir(path):
        return Path(path)
    if str(path).startswith((".", "/", "~")) or str(path).count("/") != 1:
        raise BadInput(f"model {path}: no such folder, and not a hub id (owner/name)")
    from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors", "tokenizer*", "*.jinja"]))
    except (HFValidationError, OSError) as error:       # the hub's other errors are OSErrors
        raise BadInput(f"model {path}: no such folder, and the hub did not give it: {error}") from None


def read_config(folder: Path) -> PreTrainedConfig:
    """The model's config, checked for what the packed forward does not implement. Raises: BadInput."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"model {folder}: config.json is missing")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (*REFUSALS, OSError, RecursionError) as error:
        raise BadInput(f"model {folder}: config.json is not one of a known decoder: {error}") from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise BadInput(f"model {folder}: config.json is of model_type {config.model_type}, which is no decoder")
    for key, idle in IDLE.items():
        if (found := getattr(config, key, None)) not in (idle, None):
            raise BadInput(f"model {folder}: {key}={found} is not implemented here; {idle} is wanted")
    return config


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it. Raises: BadInput where there is none."""
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                files.update(dict.fromkeys(tensors.keys(), path))
        except (SafetensorError, OSError) as error:
            raise BadInput(f"model {folder}: {path.name} is broken: {error}") from None
    if not files:
        raise BadInput(f"model {folder}: no *.safetensors; weights in other formats (pickles) are not read")
    return files


def fill(lm: PreTrainedModel, folder: Path, write: WriteTensor) -> None:
    """Every parameter from its file, one at a time. Raises: BadInput naming a tensor that is missing or left over."""
    files = weight_files(folder)
    wanted = dict(lm.named_parameters())            # a tied output layer appears once, under the embedding's name
    tied = {name for name, _ in lm.named_parameters(remove_duplicate=False)} - set(wanted)
    buffers = {name for name in files if name.endswith("rotary_emb.inv_freq")}     # old checkpoints hold what is computed
    missing, left_over = sorted(set(wanted) - set(files)), sorted(set(files) - set(wanted) - tied - buffers)
    if missing or left_over:
        raise BadInput(f"model {folder}: the weights are not those of {type(lm).__name__}: "
                       f"missing {missing[:3]}, left over {left_over[:3]}")
    for name, parameter in wanted.items():          # all before the first write: an error leaves no rank waiting
        shape = list(getattr(parameter, "ds_shape", parameter.shape))
        with safe_open(files[name], framework="pt") as tensors:
            if (found := tensors.get_slice(name).get_shape()) != shape:
                raise BadInput(f"model {folder}: tensor {name} has shape {found}, the config wants {shape}")
    for name, parameter in wanted.items():
        write(parameter, partial(read_tensor, files[name], name))


def read_tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as tensors:
        return tensors.get_tensor(name)


def digest(path: str | Path) -> str:
    """SHA-256 of what a model computes, however sharded: every tensor's name, dtype, shape, bytes, and the config."""
    folder = local_folder(path)
    files = weight_files(folder)

    def tensor_digest(name: str) -> str:
        tensor = read_tensor(files[name], name)
        head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        return hashlib.sha256(head + hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy()).digest()).hexdigest()

    config = {k: v for k, v in sorted(json.loads((folder / "config.json").read_text()).items())
              if k not in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")}
    with ThreadPoolExecutor() as threads:           # hashing runs outside Python's lock
        parts = [json.dumps(config, sort_keys=True), *threads.map(tensor_digest, sorted(files))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
