"""What the training of a round would refuse when it starts is refused before the first answers are
sampled and paid for."""

from __future__ import annotations

from zephyr.config import BadInput, DPOConfig, SFTConfig, source_paths
from zephyr.data.sources import open_sources
from zephyr.rounds.config import RoundsConfig
from zephyr.teacher.prompts import read_prompts
from zephyr.teacher.spec import open_teacher
from zephyr.training.deepspeed_settings import deepspeed_settings, gradient_dtype, read_deepspeed


def require_files(config: RoundsConfig, training: DPOConfig | SFTConfig) -> None:
    """Check the files of a training that the rounds do not make: `data.eval`, `samples.prompts` and
    the JSON of DeepSpeed. Loads no model and does not import torch.

    Args: training: the config of train.config, resolved.
    Raises: BadInput naming train.config and the key.
    """
    key = ""
    try:
        key = "data.eval: "
        open_sources(source_paths(training.data.eval))
        key = "samples.prompts: "
        list(read_prompts(training.samples.prompts))
        key = ""  # of DeepSpeed's: they name it themselves
        require_deepspeed(training, config.train.processes)
    except BadInput as error:
        raise BadInput(f"train.config {config.train.config}: {key}{error}") from None


def require_deepspeed(training: DPOConfig | SFTConfig, ranks: int) -> None:
    """Raises: ConfigError where DeepSpeed's JSON can't be read, or contradicts the config."""
    hardware = training.hardware
    settings = read_deepspeed(hardware.deepspeed)
    gradients = gradient_dtype(hardware, settings, ranks=ranks, micro_batches=None)
    deepspeed_settings(
        settings,
        hardware=hardware,
        optim=training.optim,
        gradients_in=gradients.dtype,
        ranks=ranks,
    )


def require_trainable(config: RoundsConfig, training: DPOConfig | SFTConfig) -> None:
    """Check that this machine can train the first model with this config: kernels, packages, the
    model's files, and the judge of `samples`. Imports torch; loads no model.

    Args: training: the config of train.config, resolved.
    Raises: BadInput naming train.config.
    """
    from zephyr.model.load import require_runnable

    try:
        require_runnable(training)
        if training.samples.prompts and training.samples.judge is not None:
            open_teacher(training.samples.judge)
    except BadInput as error:
        raise BadInput(f"train.config {config.train.config}: {error}") from None
