"""A finished run becomes what it leaves: the exported model with its card, and the page of its folder."""
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zephyr.config import DPOConfig, SFTConfig
from zephyr.model.export import export
from zephyr.model.load import local_folder
from zephyr.report.card import card
from zephyr.report.page import leave_page
from zephyr.training.engine import Engine


def leave(engine: Engine, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase, identity: Mapping[str, str]) -> None:
    """Write `model/` and `report.html` of the run folder; what users of the export must know is told. A collective.

    Args: identity: SHA-256 of model and data, by name, for the card."""
    run = Path(config.run.dir)
    text = engine.on_rank0(lambda: card(config, identity))
    notes = export(run / "model", engine.full_parameters(), engine.parameter_bytes(), engine.policy.lm.config, tokenizer, text,
                   writes=engine.rank == 0, source=local_folder(config.model))
    for note in notes:
        engine.say(f"warning: {note}")
    engine.on_rank0(lambda: leave_page(run, engine.say))
    engine.barrier()
