"""A model folder, a hub id or a run folder becomes what `score` needs to know of it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zephyr.config import NOT_YAML, BadInput, ConfigError, DPOConfig, SFTConfig, load, read_yaml
from zephyr.data.template import TEMPLATE_FILE
from zephyr.model.attention import unavailable_reason
from zephyr.model.load import DTYPES

BUDGET_TOKENS = {"cuda": 16384, "cpu": 2048}  # of a micro-batch, where nothing else is asked for


class Settings(NamedTuple):
    """How a model is scored; the fields are the config keys of these names."""

    model: str
    tokenizer: str
    chat_template: str
    eos_token: str | None
    beta: float
    max_tokens: int
    max_prompt_tokens: int
    dtype: str
    attention: str
    tokens_per_micro_batch: int | None  # None: BUDGET_TOKENS, or more if the longest pair needs it
    columns: Mapping[str, str | None]  # `data.columns`
    reference: str | None  # that of a run, not used unless asked for

    @property
    def device(self) -> str:
        return device()


def device() -> str:
    """Where models are scored: the first GPU, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_settings(model: str, given: Mapping[str, Any]) -> Settings:
    """The settings of a model.

    Args:
        model: a model folder or hub id, or the folder of a run, whose exported model it then is.
        given: settings by name that replace the defaults; None stands for one that is not given.
            The defaults are those of the run, for a run folder: with them, the log-probs are those
            of its ledger.

    Raises:
        BadInput: the run has no exported model, or a setting can't be used on this machine.
    """
    settings = default_settings(model)
    settings = settings._replace(
        **{name: value for name, value in given.items() if value is not None}
    )
    if not 0 < settings.beta < float("inf"):
        raise BadInput(f"beta: expected a number above 0, got {settings.beta}")
    reason = unavailable_reason(settings.attention, DTYPES[settings.dtype], device())
    if reason:
        raise BadInput(f"attention: {reason}")
    return settings


def default_settings(model: str) -> Settings:
    """Those of a run for a run folder, else the defaults of the config keys; dtype and attention
    are then those that every model runs with on this device."""
    on_gpu = device() == "cuda"
    defaults = Settings(
        model=model,
        tokenizer=model,
        chat_template="auto",
        eos_token=None,
        beta=DPOConfig.beta,
        max_tokens=1024,
        max_prompt_tokens=512,
        dtype="bfloat16" if on_gpu else "float32",
        attention="torch_varlen" if on_gpu else "sdpa",
        tokens_per_micro_batch=None,
        columns={},
        reference=None,
    )
    run = Path(model)
    if not (run / "config.yaml").is_file() or (run / "config.json").is_file():
        return defaults
    config = read_run_config(run / "config.yaml")
    exported = run / "model"
    if not exported.is_dir():
        raise BadInput(f"{run} is a run without {exported}: it has not finished")
    template = run / TEMPLATE_FILE
    settings = defaults._replace(
        model=str(exported),
        tokenizer=str(exported),
        chat_template=str(template) if template.is_file() else config.chat_template,
        eos_token=config.eos_token,
        dtype=config.hardware.dtype,
        attention=config.hardware.attention,
    )
    if isinstance(config, DPOConfig):
        settings = settings._replace(
            beta=config.beta,
            max_tokens=config.data.max_tokens,
            max_prompt_tokens=config.data.max_prompt_tokens,
            tokens_per_micro_batch=config.hardware.tokens_per_micro_batch,
            columns=config.data.columns or {},
            reference=config.model,
        )
    return settings


def read_run_config(path: Path) -> DPOConfig | SFTConfig:
    """The config of a run of either script. Raises: ConfigError naming the file."""
    try:
        tree = read_yaml(path)
    except (OSError, *NOT_YAML) as error:
        raise ConfigError(f"config {path}: {error}") from None
    is_dpo = isinstance(tree, dict) and "beta" in tree
    return load(DPOConfig, str(path)) if is_dpo else load(SFTConfig, str(path))
