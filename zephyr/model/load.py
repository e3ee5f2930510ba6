"""A Hugging Face folder or hub id becomes a policy: it maps a packed batch to token log-probs.

Weights are read only from safetensors, one tensor at a time: under ZeRO-3 no rank ever holds all of
them. No remote code is run. What can't be loaded right is refused with the reason, never repaired.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.initialization import no_init_weights

from zephyr.config import Adapter, BadInput, ConfigError, DPOConfig, SFTConfig, is_first_of_node
from zephyr.model import adapter as lora
from zephyr.model import attention as kernels
from zephyr.model import fused as fused_kernels
from zephyr.model.adapter import WriteTensor
from zephyr.model.adapter_files import (
    AdapterFolder,
    adapter_digest,
    is_adapter,
    merged,
    read_adapter,
    require_matrices,
)
from zephyr.model.packing_check import require_packable
from zephyr.model.policy import MODEL_CONFIG_ERRORS, Policy, build, fix_rope, learned_positions
from zephyr.model.recompute import checkpoint_activations
from zephyr.progress import library_bars

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Config keys with the only value implemented. Soft-capping changes logits behind the output layer,
# which LogProbHead would have to repeat; dropout would differ between both uses of a shared prompt.
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
# Keys of config.json that change no log-prob.
NOT_OF_THE_DECODER = frozenset(
    "_name_or_path architectures bos_token_id dtype eos_token_id pad_token_id torch_dtype "
    "transformers_version use_cache".split()
)
WEIGHT_DTYPES = ("BF16", "F16", "F32", "F64")  # as safetensors names them


def load_policy(
    path: str | Path,
    *,
    attention: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    activation_checkpointing: bool | str = False,
    fused: str = "none",
    max_tokens: int | None = None,
    adapter: Adapter | None = None,
    seed: int = 0,
    init: AbstractContextManager[object] | None = None,
    write: WriteTensor | None = None,
) -> Policy:
    """Load a Hugging Face folder, or the snapshot of a hub id, as a Policy.

    A folder of an adapter (peft's format) is loaded merged into its base.

    Args:
        path: folder or hub id (owner/name).
        attention: flash_attn, torch_varlen or sdpa (`zephyr.model.attention.KERNELS`).
        dtype: of the parameters.
        activation_checkpointing: as `hardware.activation_checkpointing`: True, False, "mlp" or
            "elementwise".
        fused: as `hardware.fused`: none, liger or triton (`zephyr.model.fused`).
        max_tokens: of the longest sequence to come. It matters to models whose rotary frequencies
            depend on the length of the row (longrope, dynamic NTK): all rows get those of
            `max_tokens`. None leaves the frequencies as transformers has them, and sequences longer
            than those of pretraining can't be packed.
        init: context in which parameters are made. The training engine gives `zero.Init`; default:
            whole, on the CPU.
        write: fills one parameter. The training engine fills this rank's shard; default: whole.

    Raises:
        BadInput: config, safetensors or a tensor is missing or has another shape, or packed
            log-probs of this decoder would not be right; names the folder and the reason.
    """
    folder, adapters = base_folder(local_folder(path))
    config = read_config(folder)
    require_supported(folder, config)
    with init or nullcontext(), no_init_weights():
        try:
            lm = build(config, kernels.register_kernel(attention), dtype)
        except MODEL_CONFIG_ERRORS as error:
            raise BadInput(
                f"model {path}: no model can be made of its config.json: "
                f"{type(error).__name__}: {error}"
            ) from error
        if adapter is not None:
            lora.attach(lm, adapter, dtype)
    longest, positions = fix_rope(lm, max_tokens), learned_positions(lm)
    if positions is not None and (max_tokens or 0) > positions:
        raise BadInput(
            f"model {path}: {config.model_type} has {positions} learned positions, and sequences "
            f"have up to {max_tokens} tokens; set data.max_tokens to at most {positions}"
        )
    load_weights(lm, folder, write or fill_parameter, adapters)
    lora.fill(lm, seed, write or fill_parameter)
    fused_kernels.fuse(lm, fused)
    checkpoint_activations(lm, activation_checkpointing)
    quantize = "none" if adapter is None else adapter.quantize
    return Policy(lm, positions if longest is None else longest, quantize)


def replace_weights(lm: PreTrainedModel, path: str | Path, write: WriteTensor) -> None:
    """Fill a decoder that is loaded already with the weights of another folder. Adapters beside its
    layers stay as they are.

    Args:
        path: folder or hub id, as of `load_policy`.
        write: fills one parameter.

    Raises:
        BadInput: the folder holds no model, or one of another architecture.
    """
    folder, adapters = base_folder(local_folder(path))
    require_same_decoder(lm.config, read_config(folder), folder)
    load_weights(lm, folder, write, adapters)


def require_same_decoder(own: PreTrainedConfig, other: PreTrainedConfig, folder: Path) -> None:
    """Raises: BadInput: a key that decides what a decoder computes differs; names it."""
    ours, theirs = own.to_dict(), other.to_dict()
    for key in sorted({*ours, *theirs} - NOT_OF_THE_DECODER):
        if ours.get(key) != theirs.get(key):
            raise BadInput(
                f"model {folder}: its config.json has {key} {theirs.get(key)!r}, the policy's has "
                f"{ours.get(key)!r}, expected one architecture"
            )


def fill_parameter(parameter: nn.Parameter, read: Callable[[], Tensor]) -> None:
    """Fill a whole parameter with the tensor that `read` returns."""
    parameter.data.copy_(read())


def require_supported(folder: Path, config: PreTrainedConfig) -> None:
    """Check that packed log-probs of this decoder are right (`zephyr.model.packing_check`).

    Raises:
        BadInput: they are not, or can't be shown to be; gives the reason.
    """
    try:
        require_packable(config)
    except ValueError as error:
        raise BadInput(f"model {folder}: {config.model_type} is not supported: {error}") from None


def require_runnable(config: DPOConfig | SFTConfig) -> None:
    """Check the kernels, the model's folder, its config and its weight files before anything loads.

    Raises:
        BadInput: the run would fail; gives the reason.
    """
    for lack in find_lacks(config):
        raise lack


def find_lacks(config: DPOConfig | SFTConfig, *, dry_run: bool = False) -> Iterator[BadInput]:
    """What this machine lacks for a run: kernels, libraries, weight files.

    Args:
        dry_run: a model of the hub is not fetched: it lacks no weights.

    Raises:
        BadInput: a model's folder or config would fail the run on any machine.
    """
    hardware = config.hardware
    use_cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR", "cuda") == "cuda"
    device = "cuda" if use_cuda else "cpu"
    reason = kernels.unavailable_reason(hardware.attention, DTYPES[hardware.dtype], device)
    if reason:
        yield ConfigError(f"hardware.attention: {reason}")
    reason = fused_kernels.unavailable_reason(hardware.fused, device)
    if reason:
        yield ConfigError(f"hardware.fused: {reason}")
    reason = lora.unavailable_reason(config.adapter)
    if reason:
        yield ConfigError(reason)
    # Ranks that must wait for a download do so in `zephyr.data.fetch`, in a process group.
    alone = dry_run or os.environ.get("WORLD_SIZE", "1") == "1"
    if is_first_of_node() and (alone or not asks_hub(config)):
        yield from find_model_lacks(config, dry_run=dry_run)


def asks_hub(config: DPOConfig | SFTConfig) -> bool:
    """Whether a model is a hub id, or may lead to one: an adapter names its base."""
    models = [config.model]
    if isinstance(config, DPOConfig) and config.reference.model is not None:
        models.append(config.reference.model)
    return any(is_hub_id(model) or is_adapter(Path(model)) for model in models)


def is_hub_id(path: str | Path) -> bool:
    """Whether this is no folder here and has the form of a hub id, owner/name."""
    text = str(path)
    return not os.path.isdir(path) and not text.startswith((".", "/", "~")) and text.count("/") == 1


def find_model_lacks(config: DPOConfig | SFTConfig, *, dry_run: bool = False) -> Iterator[BadInput]:
    """As `find_lacks`, of the models only, which are fetched where they are hub ids."""
    folder, _ = base_folder(local_folder(config.model, weights=not dry_run))
    lm_config = read_config(folder)
    require_supported(folder, lm_config)
    fused_kernels.require_served(lm_config, config.hardware.fused)
    models = {config.model: folder}
    if isinstance(config, DPOConfig) and config.reference.model is not None:
        reference = config.reference.model
        models[reference], _ = base_folder(local_folder(reference, weights=not dry_run))
        require_same_decoder(lm_config, read_config(models[reference]), models[reference])
    for model, folder in models.items():
        if os.path.isdir(model) or not dry_run:
            yield from missing_weights(folder)


def missing_weights(folder: Path) -> Iterator[BadInput]:
    """The error of `weight_files`, if there is one."""
    try:
        weight_files(folder)
    except BadInput as error:
        yield error


def local_folder(path: str | Path, *, weights: bool = True) -> Path:
    """The folder itself, or a hub id's snapshot of config, tokenizer and safetensors.

    Args:
        weights: False: of a hub id, no safetensors are fetched.

    Raises:
        BadInput: there is no such folder, and the hub gives none.
    """
    if os.path.isdir(path):
        return Path(path)
    if not is_hub_id(path):
        raise BadInput(
            f"model {path}: no such folder, and not a hub id (owner/name); where another run makes "
            "it, that run comes first, or model=FOLDER names another"
        )
    return hub_snapshot(str(path), weights)


# (hub id, whether with weights) -> its snapshot: a process asks the hub once, and sees one commit
_snapshots: dict[tuple[str, bool], Path] = {}


def hub_snapshot(repo: str, weights: bool) -> Path:
    """The snapshot of a hub id, which the hub is asked for once.

    Raises: BadInput: the hub does not give it.
    """
    known = _snapshots.get((repo, True)) or _snapshots.get((repo, weights))
    if known is not None:
        return known
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "tokenizer*", "*.jinja"]
    if weights:
        patterns += ["model*.safetensors", "adapter_model.safetensors"]
    try:
        with library_bars():
            folder = Path(snapshot_download(repo, allow_patterns=patterns))
    except Exception as error:  # of the hub, or of httpx: which package that is differs by version
        raise BadInput(
            f"model {repo}: no such folder, and the hub did not give it: "
            f"{str(error) or type(error).__name__}"
        ) from None
    _snapshots[repo, weights] = folder
    return folder


def describe_files(path: str | Path) -> str:
    """Which files of a model this node has: the commit of a hub id, and a digest of the config."""
    folder, _ = base_folder(local_folder(path))
    config = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]
    commit = f"commit {folder.name}, " if is_hub_id(path) else ""
    return f"{commit}config.json with SHA-256 {config}..."


def base_folder(folder: Path) -> tuple[Path, list[AdapterFolder]]:
    """The folder of the model below an adapter, and the adapters to merge into it, in order.

    A folder of a whole model is its own base.

    Raises:
        BadInput: an adapter is not one that can be merged here, or its base is not found.
    """
    adapters: list[AdapterFolder] = []
    while is_adapter(folder):
        adapters.insert(0, read_adapter(folder))
        if folder in [adapter.folder for adapter in adapters[1:]]:
            raise BadInput(f"adapter {folder}: base_model_name_or_path leads back to it")
        base = Path(adapters[0].base)
        beside = folder / base
        folder = beside if beside.is_dir() else local_folder(adapters[0].base)
    return folder, adapters


def read_config(folder: Path) -> PreTrainedConfig:
    """The model's config, checked for what the packed forward does not implement.

    That of an adapter is its base's.

    Raises:
        BadInput: config.json is missing, broken, not a decoder's, quantised, or has a value that is
            not implemented (INACTIVE_VALUES).
    """
    folder, _ = base_folder(folder)
    if not (folder / "config.json").is_file():
        raise BadInput(f"model {folder}: config.json is missing")
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (*MODEL_CONFIG_ERRORS, OSError, RecursionError) as error:
        raise BadInput(
            f"model {folder}: config.json is not one of a known decoder: {error}"
        ) from None
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder:
        raise BadInput(
            f"model {folder}: config.json has model_type {config.model_type}, which is not a "
            "decoder"
        )
    quantised = getattr(config, "quantization_config", None)
    if quantised:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise BadInput(
            f"model {folder}: its weights are quantised ({how or 'quantization_config'}), expected "
            f"{' or '.join(DTYPES)}: save it dequantised, without quantization_config in "
            "config.json"
        )
    for key, inactive in INACTIVE_VALUES.items():
        found = getattr(config, key, None)
        if found not in (inactive, None):
            raise BadInput(
                f"model {folder}: {key}={found} is not implemented here, expected {inactive}"
            )
    return config


def weight_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> the safetensors file that holds it.

    The files are `model.safetensors`, or else those that its index names. A warning names other
    safetensors files of the folder.

    Raises:
        BadInput: there are no weights, or a file is missing, broken, or holds other tensors than
            the index says.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    source = whole if whole.is_file() else index
    if not source.is_file():
        others = [path.name for path in sorted(folder.glob("*.safetensors"))]
        found = f" ({', '.join(others[:3])})" if others else ""
        raise BadInput(
            f"model {folder}: neither {whole.name} nor {index.name}; weights in other formats "
            f"(pickles) or under other names are not read{found}"
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
    """Tensor name -> file, as `model.safetensors.index.json` says.

    Raises:
        BadInput: the index is broken, or a file holds other tensors than it says.
    """
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
            f"model {folder}: {index.name} names files of another folder, expected those beside it"
        )
    for path in sorted(set(files.values())):
        if not path.is_file():
            raise BadInput(f"model {folder}: {path.name} is missing, which {index.name} names")
        expected = {name for name, file in files.items() if file == path}
        found = set(tensor_names(path))
        if expected != found:
            raise BadInput(
                f"model {folder}: {path.name} is not the file of {index.name}: missing "
                f"{sorted(expected - found)[:3]}, left over {sorted(found - expected)[:3]}"
            )
    return files


def tensor_names(path: Path) -> list[str]:
    """Names of the tensors in a safetensors file. Raises: BadInput: the file is broken."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return [*tensors.keys()]
    except (SafetensorError, OSError) as error:
        raise BadInput(f"model {path.parent}: {path.name} is broken: {error}") from None


def load_weights(
    lm: PreTrainedModel,
    folder: Path,
    write: WriteTensor,
    adapters: Sequence[AdapterFolder] = (),
) -> None:
    """Fill every parameter from its file, one at a time, and quantised matrices.

    All checks come before the first write, which is a collective: an error leaves no rank waiting.

    Args:
        adapters: to merge into the weights.

    Raises:
        BadInput: a tensor is missing, left over, of another shape or dtype; names it.
    """
    files = weight_files(folder)
    # A tied output layer appears once, under the embedding's name. New adapters are in no file.
    parameters = base_parameters(lm.named_parameters())
    everywhere = base_parameters(lm.named_parameters(remove_duplicate=False))
    tied = set(everywhere) - set(parameters)
    quantized = lora.quantized_layers(lm)
    require_tensors(lm, folder, files, {*parameters, *quantized}, tied)
    shapes = {name: [*getattr(p, "ds_shape", p.shape)] for name, p in parameters.items()}
    shapes |= {name: [layer.out_features, layer.in_features] for name, layer in quantized.items()}
    for name, shape in shapes.items():
        require_shape_and_dtype(folder, files[name], name, shape)
    for adapter in adapters:
        require_matrices(adapter, shapes)
    require_tied(lm, folder, files, sorted(tied & set(files)))
    for name, parameter in parameters.items():
        write(parameter, partial(read_merged, files[name], name, adapters))
    for name, layer in quantized.items():
        try:
            layer.quantize(read_merged(files[name], name, adapters))
        except ValueError as error:
            raise BadInput(f"model {folder}: {name} can't be quantised: {error}") from None


def base_parameters(named: Iterable[tuple[str, nn.Parameter]]) -> dict[str, nn.Parameter]:
    """Those of a decoder's parameters that its files hold, by the names that they have there."""
    return {lora.plain_name(name): p for name, p in named if not lora.is_of_adapter(name)}


def require_tensors(
    lm: PreTrainedModel, folder: Path, files: dict[str, Path], expected: set[str], tied: set[str]
) -> None:
    """Raises: BadInput: a tensor of the model is not in the files, or the files hold others."""
    # Old checkpoints hold rotary frequencies, which are computed here.
    frequencies = {name for name in files if name.endswith("rotary_emb.inv_freq")}
    missing = sorted(expected - set(files))
    left_over = sorted(set(files) - expected - tied - frequencies)
    if not missing and not left_over:
        return
    if needs_conversion(lm, left_over):
        raise BadInput(
            f"model {folder}: {lm.config.model_type} is not supported: transformers renames or "
            f"merges its weights as it loads them ({left_over[0]}), which is not done here"
        )
    raise BadInput(
        f"model {folder}: the weights are not those of {type(lm).__name__}: "
        f"missing {missing[:3]}, left over {left_over[:3]}"
    )


def require_shape_and_dtype(folder: Path, path: Path, name: str, shape: Sequence[int]) -> None:
    """Raises: BadInput: a tensor in a file has another shape than the model's, or is quantised."""
    with safe_open(path, framework="pt") as tensors:
        stored = tensors.get_slice(name)
        found, dtype = stored.get_shape(), stored.get_dtype()
    if found != list(shape):
        raise BadInput(
            f"model {folder}: tensor {name} has shape {found}, expected {list(shape)} by "
            "config.json"
        )
    if dtype not in WEIGHT_DTYPES:
        raise BadInput(
            f"model {folder}: tensor {name} is stored as {dtype}, expected one of "
            f"{', '.join(WEIGHT_DTYPES)}: quantised weights mean nothing without their scales"
        )


def require_tied(
    lm: PreTrainedModel, folder: Path, files: dict[str, Path], tied: list[str]
) -> None:
    """Check that a tensor which the config ties to another equals it in the files.

    Args:
        tied: names of such tensors that the files hold.

    Raises:
        BadInput: the two differ, so that one would be lost.
    """
    first_of = {id(p): name for name, p in base_parameters(lm.named_parameters()).items()}
    everywhere = base_parameters(lm.named_parameters(remove_duplicate=False))
    for name, parameter in everywhere.items():
        if name not in tied:
            continue
        first = first_of[id(parameter)]
        if not torch.equal(read_tensor(files[name], name), read_tensor(files[first], first)):
            raise BadInput(
                f"model {folder}: {name} differs from {first}, to which config.json ties it "
                "(tie_word_embeddings: true), expected equal tensors; tie_word_embeddings: false "
                "keeps both"
            )


def needs_conversion(lm: PreTrainedModel, names: list[str]) -> bool:
    """Whether transformers' own loader would rename one of these tensors."""
    mapping = get_model_conversion_mapping(lm)
    return any(
        transform.rename_source_key(name) != (name, None) for name in names for transform in mapping
    )


def read_tensor(path: Path, name: str) -> Tensor:
    """One tensor of a safetensors file, on the CPU."""
    with safe_open(path, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(name)
    return tensor


def read_merged(path: Path, name: str, adapters: Sequence[AdapterFolder]) -> Tensor:
    """One tensor of a safetensors file with the updates of adapters, on the CPU."""
    return merged(read_tensor(path, name), name, adapters)


def digest(path: str | Path) -> str:
    """SHA-256 of what a model computes, for any sharding of the weights into files.

    It covers the config, and the name, dtype, shape and bytes of every tensor; of an adapter's
    folder those of its base, and the adapter's scale and tensors.
    """
    folder, adapters = base_folder(local_folder(path))
    files = weight_files(folder)

    def tensor_digest(name: str) -> str:
        tensor = read_tensor(files[name], name)
        head = f"{name} {tensor.dtype} {list(tensor.shape)}".encode()
        content = tensor.contiguous().view(torch.uint8).numpy().data
        return hashlib.sha256(head + hashlib.sha256(content).digest()).hexdigest()

    config = json.loads((folder / "config.json").read_text())
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
        config.pop(key, None)
    with ThreadPoolExecutor() as threads:  # hashing releases Python's lock
        parts = [json.dumps(config, sort_keys=True), *threads.map(tensor_digest, sorted(files))]
    parts += map(adapter_digest, adapters)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
