"""Token counts and a model's shape become what each example takes of a step."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from zephyr.config import Adapter, BadInput, DPOConfig, SFTConfig
from zephyr.model import adapter as adapters
from zephyr.model.adapter_files import is_adapter
from zephyr.model.load import base_folder
from zephyr.model.policy import MODEL_CONFIG_ERRORS
from zephyr.training.flops import pair_flops, text_flops

Config = DPOConfig | SFTConfig
Settings = Mapping[str, object]  # the DeepSpeed JSON
Checkpointing = Literal[True, False, "mlp", "elementwise"]  # hardware.activation_checkpointing
Lengths = Sequence[tuple[int, ...]]  # pairs: (prompt, chosen, rejected); texts: (tokens, targets)
# By name: the pairs of the data set, and mean and log-deviation of its prompts' and responses'
# token counts before truncation.
PROFILES = {
    "ultrafeedback": ((185, 1.1), (320, 0.75), 61135),
    "hh": ((140, 0.8), (60, 0.75), 160800),
    "tldr": ((352, 0.4), (33, 0.35), 92858),
}


class Model(NamedTuple):
    """A model's shape."""

    config: PreTrainedConfig
    parameters: int
    num_layer_parameters: int  # of all layers together, without embedding and head
    adapters: int = 0  # parameters of adapters, the only ones trained; 0: all are
    adapted: tuple[int, ...] = ()  # outputs of each layer with an adapter
    quantized: int = 0  # those of the parameters that are kept in 4 bits, whole on every rank

    @property
    def trained(self) -> int:
        """Parameters that the optimizer updates."""
        return self.adapters or self.parameters

    @property
    def shared(self) -> int:
        """Parameters that ZeRO-3 shards over ranks."""
        return self.parameters - self.quantized + self.adapters


class Work(NamedTuple):
    """What each example takes; all lists have one entry an example."""

    tokens: list[int]  # in a packed row
    scored: list[int]  # tokens that reach the head
    keys: list[int]  # of its attention
    forward: list[float]  # floating-point operations of one forward


def require_model_folder(path: str) -> None:
    """Check that the name of a model that can only be a path exists.

    Raises: BadInput where it does not; without this check the hub refuses the name in its words.
    """
    is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_path and not os.path.exists(path):
        raise BadInput(f"model {path}: no such folder; with --shape and --lengths none is needed")


def read_model(path: str, shape: str | None, adapter: Adapter | None = None) -> Model:
    """Count the parameters of a model without its weights.

    Args: path: folder or hub id, whose config.json is read. shape: a model type, whose default
    sizes replace the config.json. adapter: as the config's.
    Raises: BadInput where there is no such config or transformers refuses it.
    """
    if not shape:
        require_model_folder(path)
        if is_adapter(Path(path)):
            path = str(base_folder(Path(path))[0])
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
        if shape:
            wanted = f"--shape {shape}: a model type of transformers is wanted"
        else:
            wanted = f"model {path}: a folder with a config.json is wanted, or --shape"
        raise BadInput(f"{wanted} (mistral: that of Mistral-7B); {error}") from None
    sizes = {name: parameter.numel() for name, parameter in lm.named_parameters()}
    outside = sum(
        size for name, size in sizes.items() if "embed_tokens" in name or "lm_head" in name
    )
    return with_adapters(
        Model(config, sum(sizes.values()), sum(sizes.values()) - outside), lm, adapter
    )


def with_adapters(model: Model, lm: PreTrainedModel, adapter: Adapter | None) -> Model:
    """The model with adapters beside its layers. Raises: ConfigError for a target of no layer."""
    if adapter is None:
        return model
    shapes = adapters.layer_shapes(lm, adapter.targets)
    linear = adapters.layer_shapes(lm, [adapters.ALL_LINEAR])
    return model._replace(
        adapters=sum(adapter.r * (inputs + outputs) for inputs, outputs in shapes),
        adapted=tuple(outputs for _, outputs in shapes),
        quantized=sum(i * o for i, o in linear) if adapter.quantize == "nf4" else 0,
    )


def profile_lengths(profile: str, config: Config) -> Lengths:
    """Draw lognormal token counts of a published data set, cut as the config says.

    Args: profile: one of PROFILES for pairs; for texts it is always UltraChat, where every token is
    a target.
    """
    data = config.data
    if isinstance(config, SFTConfig):
        random = np.random.default_rng(0)
        drawn = random.lognormal(np.log(1060), 0.62, data.limit or 207865)
        if config.data.packing == "constant_length":
            return window_lengths(drawn.astype(int).tolist(), data.max_tokens)
        tokens = drawn.clip(16, data.max_tokens).astype(int).tolist()
        return [(n, n - 1) for n in tokens]
    pairs = data.limit or PROFILES[profile][2]
    return pair_lengths(profile, pairs, 0, data.max_prompt_tokens, data.max_tokens)


def window_lengths(tokens: Sequence[int], window_tokens: int) -> Lengths:
    """Token counts of the windows that texts fill when they are joined (`data.windows`).

    Raises: BadInput where they fill none.
    """
    windows = sum(tokens) // window_tokens
    if not windows:
        raise BadInput(
            f"data.packing: constant_length: {sum(tokens)} tokens fill no window of "
            f"data.max_tokens ({window_tokens})"
        )
    return [(window_tokens, window_tokens - 1)] * windows


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
        flops = [text_flops(lm, layers, n, t, model.adapters) for n, t in lengths]
        return Work(tokens, targets, tokens, flops)
    shared = config.hardware.prefix_sharing
    return Work(
        [(2 - shared) * p + c + r for p, c, r in lengths],
        [c + r for _, c, r in lengths],
        [2 * p + c + r for p, c, r in lengths],
        [pair_flops(lm, layers, p, c, r, shared, model.adapters) for p, c, r in lengths],
    )
