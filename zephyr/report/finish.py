"""A trained policy becomes the results of its run: the export with its model card, and the page."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from torch import nn
from transformers import PreTrainedTokenizerBase

from zephyr.analysis.pairs import read_texts
from zephyr.analysis.runs import read_run
from zephyr.analysis.table import pair_table
from zephyr.analysis.visits import read_visits
from zephyr.config import Adapter, BadInput, DPOConfig, SFTConfig
from zephyr.model import adapter as adapters
from zephyr.model.adapter_files import is_adapter, write_adapter
from zephyr.model.export import export, save_tokenizer
from zephyr.model.load import base_folder, local_folder
from zephyr.model.packing_check import original_rope_length
from zephyr.report.card import card
from zephyr.training.curves import Table
from zephyr.training.engine import Engine

WORST_PAIRS = 100  # rows of the table for wandb
WORST_COLUMNS = (
    *("id", "source", "prompt", "chosen", "rejected", "length_difference"),
    *("visit", "rewards/chosen", "rewards/rejected", "rewards/margins", "margin_change"),
    "flip_suspicion",
)


def finish_run(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    identity: Mapping[str, str],
) -> None:
    """Write `model/` and `report.html` of the run folder, and `adapter/` where one was trained. A
    collective.

    Logs a warning for each thing that the export could not keep.
    Args: identity: what the trajectory depends on, by name, for the card.
    """
    run_dir = Path(config.run.dir)
    lm = cast(nn.Module, engine.policy.lm)
    tensors = list(adapters.exported(lm))
    source, _ = base_folder(local_folder(config.model))
    if config.adapter is not None:
        export_adapter(engine, config, config.adapter, tokenizer, identity)
    notes = export(
        run_dir / "model",
        engine.full_tensors(tensors),
        [(tensor.name, tensor.bytes) for tensor in tensors],
        engine.policy.lm.config,
        tokenizer,
        engine.on_rank0(lambda: card(config, identity)),
        writes=engine.rank == 0,
        source=source,
        notes=[*rope_warnings(engine), *quantized_warnings(engine), *adapter_warnings(config)],
    )
    for note in notes:
        engine.warn(note)
    engine.on_rank0(lambda: write_report(run_dir, engine.warn))
    engine.barrier()


def export_adapter(
    engine: Engine,
    config: DPOConfig | SFTConfig,
    adapter: Adapter,
    tokenizer: PreTrainedTokenizerBase,
    identity: Mapping[str, str],
) -> None:
    """Write `adapter/` of the run folder, in peft's format. A collective.

    An export that is killed leaves the folder as it was.
    """
    lm = cast(nn.Module, engine.policy.lm)
    tensors = dict(engine.full_tensors(adapters.adapter_parameters(lm)))

    def write() -> None:
        folder = Path(config.run.dir) / "adapter"
        part = folder.with_name("adapter.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        base = config.model
        if Path(base).is_dir():
            base = str(Path(base).resolve())
        write_adapter(part, tensors, adapter, adapters.target_ends(lm), base)
        save_tokenizer(tokenizer, part)
        text = card(config, identity, adapter=True)
        (part / "README.md").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)

    engine.on_rank0(write)


def adapter_warnings(config: DPOConfig | SFTConfig) -> list[str]:
    """Say which base a new adapter belongs on, if training started from another adapter."""
    if config.adapter is None or not is_adapter(local_folder(config.model)):
        return []
    return [
        f"The new adapter belongs on {config.model} merged into its base. peft does not merge a "
        "chain of adapters: give it the merged model, or take model/, which holds all of them."
    ]


def quantized_warnings(engine: Engine) -> list[str]:
    """Say what the weights of an export are, if the frozen matrices were quantised in training."""
    if engine.policy.quantize == "none":
        return []
    return [
        "The adapters are merged into the dequantised NF4 matrices, with which they were trained. "
        "Merged into the weights from before quantisation, they give another model."
    ]


def write_report(run: Path, log: Callable[[str], None]) -> None:
    """Write the page of a run at its end, or log why there is none.

    A finished run succeeds without its page, so nothing is raised: not for a damaged file, not for
    a machine without Plotly, and not for a mistake of ours.
    """
    try:
        from zephyr.report.page import write_html  # here, because it imports Plotly

        write_html([run], run / "report.html", {"code": 0, "message": "finished"})
    except BadInput as error:
        log(f"no report.html: {error}")
    except Exception as error:
        log(f"no report.html: {type(error).__name__}: {error}; `zephyr report {run}` tries again")


def worst_pairs(run_dir: Path, warn: Callable[[str], None]) -> Table | None:
    """The pairs of a finished run with the lowest margins, the lowest first, at their last visits;
    with their texts where they can be read again. None, and a warning, where there are no visits.
    """
    try:
        run = read_run(run_dir, run_dir.name)
        texts, problems = read_texts(run)
        pairs = pair_table(run, read_visits(run_dir), texts, rows="pair", similarity=False)
    except (BadInput, OSError) as error:
        warn(f"wandb gets no table of the worst pairs: {error}")
        return None
    for problem in problems:
        warn(f"wandb's table of the worst pairs: {problem}")
    worst = pairs.select(list(WORST_COLUMNS)).sort_by("rewards/margins").slice(0, WORST_PAIRS)
    return Table(WORST_COLUMNS, list(zip(*worst.to_pydict().values())))


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
