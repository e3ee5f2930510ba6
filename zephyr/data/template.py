"""Here a run's tokenizer gets its chat template: chosen, with its clock stopped, told in the log
and kept in the run folder."""

from dataclasses import replace
from datetime import date
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from zephyr.chat import EncodedPair, EncodedText, clock_of, stop_clock
from zephyr.config import BadInput, C, DPOConfig, SFTConfig, to_yaml
from zephyr.data.tokenizer import (
    chosen_template,
    foreign_template,
    prepare_tokenizer,
    read_tokenizer,
    require_vocabulary,
)
from zephyr.training.engine import Engine
from zephyr.training.folder import RunFolder

TEMPLATE_FILE = "chat_template.jinja"  # in the run folder: the template that was trained with
SHOWN = 1000  # characters of the first prompt in the log


def run_tokenizer(engine: Engine, config: C) -> tuple[C, PreTrainedTokenizerBase]:
    """The tokenizer of a run, and the config with `chat_template` as it came out: `auto` is `model`
    or `zephyr`.

    A clock in the template stands at the day on which the run began, which a resume reads in the
    run folder. The choice is told, with a warning where Zephyr's template takes the place of
    another. Raises: BadInput, on every rank, also where the model has no embedding for one of its
    ids."""

    def load() -> tuple[PreTrainedTokenizerBase, str, bool]:
        tokenizer = read_tokenizer(config.tokenizer or config.model)
        chosen, foreign = (
            chosen_template(tokenizer, config.chat_template),
            foreign_template(tokenizer),
        )
        prepare_tokenizer(tokenizer, chosen, config.eos_token)
        require_vocabulary(tokenizer, config.model)
        return tokenizer, chosen, foreign

    tokenizer, chosen, foreign = engine.rank0_first(load)
    day = engine.on_rank0(lambda: first_day(Path(config.run.dir) / TEMPLATE_FILE))
    tokenizer.chat_template = stop_clock(tokenizer.chat_template, day)
    why = (
        ""
        if config.chat_template != "auto"
        else (", the model's own" if chosen == "model" else ", since the model has none")
    )
    clock = f"; its clock stands at {day}" if clock_of(tokenizer.chat_template) else ""
    engine.say(f"chat_template: {chosen}{why}; an answer ends with {tokenizer.eos_token!r}{clock}")
    if chosen == "zephyr" and foreign:
        engine.say(
            "warning: chat_template: zephyr takes the place of the model's own chat template, which it was trained with; "
            "chat_template: model keeps that one"
        )
    return replace(config, chat_template=chosen), tokenizer


def keep_chat(
    folder: RunFolder, config: DPOConfig | SFTConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Keep the resolved config and the template in the run folder. Raises: BadInput where the disk
    refuses."""
    folder.keep("config.yaml", to_yaml(config).encode("utf-8"))
    folder.keep(TEMPLATE_FILE, tokenizer.chat_template.encode("utf-8"))


def first_day(kept: Path) -> date:
    """The day that a run's template was kept with, today where there is none."""
    try:
        return (kept.is_file() and clock_of(kept.read_text(encoding="utf-8"))) or date.today()
    except (OSError, ValueError) as error:
        raise BadInput(
            f"{kept} can't be read: {error}; it holds the template of the run, and its day"
        ) from None


def first_prompt(tokenizer: PreTrainedTokenizerBase, example: EncodedPair | EncodedText) -> str:
    """A line that shows what the first example's answer is read after, special tokens included; of
    plain text, its beginning."""
    if isinstance(example, EncodedPair):
        ids = example.prompt_ids
    else:
        answer = example.is_target.index(True) if True in example.is_target else 0
        ids = example.ids[: answer if answer > 1 else None]
    text = repr(tokenizer.decode(ids))
    return f"the first prompt: {text if len(text) <= SHOWN else text[: SHOWN - 100] + ' ... ' + text[-100:]}"
