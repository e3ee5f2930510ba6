"""A run's tokenizer gets its chat template, which is logged and kept in the run folder.

A template that writes today's date is frozen at the day on which the run began."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr.chat import EncodedPair, EncodedText, freeze_date, frozen_date
from zephyr.config import BadInput, C, DPOConfig, SFTConfig, to_yaml
from zephyr.data.tokenizer import (
    has_foreign_template,
    prepare_tokenizer,
    read_tokenizer,
    require_vocabulary,
    resolve_chat_template,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zephyr.training.engine import Engine
    from zephyr.training.folder import RunFolder

TEMPLATE_FILE = "chat_template.jinja"  # in the run folder: the template of the training
MAX_LOGGED_CHARS = 1000  # characters of the first prompt in the log


def load_run_tokenizer(engine: Engine, config: C) -> tuple[C, PreTrainedTokenizerBase]:
    """The config with its `chat_template` resolved (no `auto`), and the run's tokenizer.

    A date in the template is that on which the run began; a resumed run reads it in the run folder.
    Logs the choice, and a warning if Zephyr's template replaces another one.
    Raises: on every rank, BadInput as `tokenizer.load_tokenizer`, and if the model has no embedding
        for one of the tokenizer's ids."""

    def load() -> tuple[PreTrainedTokenizerBase, str, bool]:
        tokenizer = read_tokenizer(config.tokenizer or config.model)
        chosen = resolve_chat_template(tokenizer, config.chat_template)
        foreign = has_foreign_template(tokenizer)
        prepare_tokenizer(tokenizer, chosen, config.eos_token)
        require_vocabulary(tokenizer, config.model)
        return tokenizer, chosen, foreign

    tokenizer, chosen, foreign = engine.local_rank0_first(load)
    day = engine.on_rank0(lambda: template_date(Path(config.run.dir) / TEMPLATE_FILE))
    tokenizer.chat_template = freeze_date(tokenizer.chat_template, day)
    reason = ""
    if config.chat_template == "auto":
        reason = ", the model's own" if chosen == "model" else ", since the model has none"
    frozen = f"; its date is frozen at {day}" if frozen_date(tokenizer.chat_template) else ""
    engine.log(
        f"chat_template: {chosen}{reason}; an answer ends with {tokenizer.eos_token!r}{frozen}"
    )
    if chosen == "zephyr" and foreign:
        engine.warn(
            "chat_template: zephyr replaces the model's own chat template, with which the "
            "model was trained; chat_template: model keeps that one"
        )
    return replace(config, chat_template=chosen), tokenizer


def save_chat_template(
    folder: RunFolder, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the resolved config and the template to the run folder. Raises: BadInput if the disk
    refuses."""
    folder.write_file("config.yaml", to_yaml(config).encode("utf-8"))
    folder.write_file(TEMPLATE_FILE, str(tokenizer.chat_template).encode("utf-8"))


def template_date(kept: Path) -> date:
    """The date in the template that a run has kept; today if it has kept none."""
    try:
        frozen = frozen_date(kept.read_text(encoding="utf-8")) if kept.is_file() else None
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{kept} can't be read: {error}; it holds the run's template, and its date"
        ) from None
    return frozen or date.today()


def describe_first_prompt(
    tokenizer: PreTrainedTokenizerBase, example: EncodedPair | EncodedText
) -> str:
    """A log line that shows the first example's prompt as the model reads it, with special tokens;
    of plain text, the whole text."""
    if isinstance(example, EncodedPair):
        ids = example.prompt_ids
    else:
        answer = example.is_target.index(True) if True in example.is_target else 0
        ids = example.ids[:answer] if answer > 1 else example.ids
    text = repr(tokenizer.decode(ids))
    if len(text) > MAX_LOGGED_CHARS:
        text = f"{text[: MAX_LOGGED_CHARS - 100]} ... {text[-100:]}"
    return f"the first prompt: {text}"
