"""Models of the hub are fetched by one rank a node, before anything of them is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zephyr.config import DPOConfig, SFTConfig
from zephyr.model.load import asks_hub, describe_files, find_model_lacks

if TYPE_CHECKING:
    from zephyr.training.engine import Engine


def fetch_models(engine: Engine, config: DPOConfig | SFTConfig) -> None:
    """Fetch the run's models where they are hub ids, and compare the nodes' files of the policy's.

    The first rank of each node asks the hub, for as long as it takes; the others wait, and then ask
    its cache only. Later calls of `local_folder` ask neither.
    Raises: on every rank the BadInput of any: the hub does not give a model, it can't be trained
        here, or a node has another commit or config.json."""

    def check() -> None:
        for lack in find_model_lacks(config):
            raise lack

    if asks_hub(config):  # other models were checked before the process group started
        engine.local_rank0_first(check)
    engine.require_same(f"model: {config.model}", describe_files(config.model))
