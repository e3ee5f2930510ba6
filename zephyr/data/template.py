"""Here a run's tokenizer gets its chat template: chosen, with its clock stopped, told in the log
and kept in the run folder."""

from dataclasses import replace
from datetime import date
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zephyr.chat import EncodedPair, EncodedText, freeze_date, frozen_date
from zephyr.config import BadInput, C, DPOConfig, SFTConfig, to_yaml
from zephyr.data.tokenizer import (
    has_foreign_template,
    prepare_tokenizer,
    read_tokenizer,
    require_vocabulary,
    resolve_chat_template,
)
from zephyr.training.engine import Engine
from zephyr.training.folder import RunFolder

TEMPLATE_FILE = "chat_template.jinja"  # in the run folder: the template that was trained with
MAX_LOGGED_CHARS = 1000  # characters of the first prompt in the log


def load_run_tokenizer(engine: Engine, config: C) -> tuple[C, PreTrainedTokenizerBase]:
    """The tokenizer of a run, and the config with `chat_template` as it came out: `auto` is `model`
    or `zephyr`.

    A clock in the template stands at the day on which the run began, which a resume reads in the
    run folder. The choice is told, with a warning where Zephyr's template takes the place of
    another. Raises: BadInput, on every rank, also where the model has no embedding for one of its
    ids."""

    def load() -> tuple[PreTrainedTokenizerBase, str, bool]:
        tokenizer = read_tokenizer(config.tokenizer or config.model)
        chosen, foreign = (
            resolve_chat_template(tokenizer, config.chat_template),
            has_foreign_template(tokenizer),
        )
        prepare_tokenizer(tokenizer, chosen, config.eos_token)
        require_vocabulary(tokenizer, config.model)
        return tokenizer, chosen, foreign

    tokenizer, chosen, foreign = engine.local_rank0_first(load)
    day = engine.on_rank0(lambda: template_date(Path(config.run.dir) / TEMPLATE_FILE))
    tokenizer.chat_template = freeze_date(tokenizer.chat_template, day)
    why = (
        ""
        if config.chat_template != "auto"
        else (", the model's own" if chosen == "model" else ", since the model has none")
    )
    clock = f"; its clock stands at {day}" if frozen_date(tokenizer.chat_template) else ""
    engine.log(f"chat_template: {chosen}{why}; an answer ends with {tokenizer.eos_token!r}{clock}")
    if chosen == "zephyr" and foreign:
        engine.log(
            "warning: chat_template: zephyr takes the place of the model's own chat template, which it was trained with; "
            "chat_template: model keeps that one"
        )
    return replace(config, chat_template=chosen), tokenizer


def save_chat_template(
    folder: RunFolder, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Keep the resolved config and the template in the run folder. Raises: BadInput where the disk
    refuses."""
    folder.write_file("config.yaml", to_yaml(config).encode("utf-8"))
    folder.write_file(TEMPLATE_FILE, tokenizer.chat_template.encode("utf-8"))


def template_date(kept: Path) -> date:
    """The day that a run's template was kept with, today where there is none."""
    try:
        return (kept.is_file() and frozen_date(kept.read_text(encoding="utf-8"))) or date.today()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{kept} can't be read: {error}; it holds the template of the run, and its day"
        ) from None


def describe_first_prompt(
    tokenizer: PreTrainedTokenizerBase, example: EncodedPair | EncodedText
) -> str:
    """A line that shows what the first example's answer is read after, special tokens included; of
    plain text, its beginning."""
    if isinstance(example, EncodedPair):
        ids = example.prompt_ids
    else:
        answer = example.is_target.index(True) if True in example.is_target else 0
        ids = example.ids[: answer if answer > 1 else None]
    text = repr(tokenizer.decode(ids))
    return f"the first prompt: {text if len(text) <= MAX_LOGGED_CHARS else text[: MAX_LOGGED_CHARS - 100] + ' ... ' + text[-100:]}"
