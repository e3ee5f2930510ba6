"""A trained policy becomes the results of its run: the export with its model card, and the page."""

from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zephyr.config import DPOConfig, SFTConfig
from zephyr.model.export import export
from zephyr.model.load import local_folder
from zephyr.model.packing_check import original_rope_length
from zephyr.report.card import card
from zephyr.report.page import write_report
from zephyr.training.engine import Engine


def finish_run(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    identity: Mapping[str, str],
) -> None:
    """Write `model/` and `report.html` of the run folder. A collective.

    Logs a warning for each thing that the export could not keep.
    Args: identity: what the trajectory depends on, by name, for the card.
    """
    run_dir = Path(config.run.dir)
    notes = export(
        run_dir / "model",
        engine.full_parameters(),
        engine.parameter_bytes(),
        engine.policy.lm.config,
        tokenizer,
        engine.on_rank0(lambda: card(config, identity)),
        writes=engine.rank == 0,
        source=local_folder(config.model),
        notes=rope_warnings(engine),
    )
    for note in notes:
        engine.warn(note)
    engine.on_rank0(lambda: write_report(run_dir, engine.warn))
    engine.barrier()


def rope_warnings(engine: Engine) -> list[str]:
    """Warn of a model whose rotary frequencies grow with the sequence, if it was trained on longer
    sequences than in pretraining."""
    longest = engine.policy.max_sequence_tokens
    start = original_rope_length(engine.policy.lm.config.to_dict())
    if longest is None or start is None or longest <= start:
        return []
    return [
        f"Every sequence was trained with the rotary frequencies of one of {longest} tokens. "
        "transformers uses the frequencies of each sequence's own length, so it computes other "
        f"log-probs than training did for sequences of up to {start} tokens."
    ]
