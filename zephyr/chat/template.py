"""A conversation becomes the text that the tokenizer reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from zephyr.chat.messages import Messages, Tool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HANDBOOK_TEMPLATE = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
"""The template of Zephyr-7B, byte for byte (alignment-handbook, `chat_template` of the zephyr
recipes). It writes no BOS."""

ZEPHYR_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}\n{{ '<|system|>\n' + eos_token }}\n{% endif %}\n"
    + HANDBOOK_TEMPLATE
)
"""The same, with the empty system turn that the handbook's code puts in front of a conversation
without one, so that a chat by the exported template continues the ids of training. As transformers
renders it:

    <|system|>\\n</s>\\n<|user|>\\nU1</s>\\n<|assistant|>\\nA1</s>\\n

and a prompt for an answer ends in `<|assistant|>\\n`."""

CLOCK = "strftime_now"  # the name that transformers gives the clock in a template
FROZEN_DATE = re.compile(r"\{# the clock stands at (\d{4}-\d\d-\d\d) #\}.*\n")
LETTERS = "aAbBcdDeFHIjmMpSTuUwWxXyYZ"
DIRECTIVES = [f"%{dash}{letter}" for dash in ("", "-") for letter in LETTERS] + ["%%"]
# The most that a template may write: characters of its own, and copies of what it is given.
MAX_RENDERED_CHARS = 2**17
MAX_RENDERED_RATIO = 8


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template of the tokenizer; of several, the one named `default`."""
    own = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = own.get("default")
    assert own is None or isinstance(own, str)
    return own


def template_of(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """The template that is given, else the tokenizer's own, else Zephyr's."""
    return template or own_template(tokenizer) or ZEPHYR_TEMPLATE


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template: str,
    *,
    answer: bool,
    tools: Sequence[Tool] | None = None,
) -> str:
    """The text of a conversation.

    Args:
        answer: whether the text ends where the assistant's next turn begins.
        tools: what the assistant may call.
    Raises:
        ValueError: where the template refuses the conversation, is no valid jinja, or writes over
            `MAX_RENDERED_CHARS` characters plus `MAX_RENDERED_RATIO` times what it was given: one
            that multiplies text would fill the memory, row by row.
    """
    from jinja2.exceptions import TemplateError

    # A template is a program, which may raise any of these.
    refusals = (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        SyntaxError,
        TypeError,
        ValueError,
        RecursionError,
    )
    try:
        limit = MAX_RENDERED_CHARS + MAX_RENDERED_RATIO * len(f"{messages}{tools}")
        text = tokenizer.apply_chat_template(
            messages,  # type: ignore[arg-type]  # declared as dict[str, str], takes any values
            tools=tools,  # type: ignore[arg-type]  # declared as a list, takes any sequence
            chat_template=template,
            tokenize=False,
            add_generation_prompt=answer,
        )
    except refusals as error:
        raise ValueError(
            f"the chat template refuses the conversation: {str(error) or type(error).__name__}"
        ) from error
    assert isinstance(text, str)
    if len(text) > limit:
        raise ValueError(
            f"the chat template makes {len(text)} characters of the conversation, expected at most "
            f"{limit}: it multiplies text"
        )
    return text


def freeze_date(template: str, day: date) -> str:
    """The template with its clock, if it has one, stopped at the beginning of a day.

    A new first line names the day and defines a macro in place of the clock. Otherwise a template
    that writes today's date would write other ids when a run is resumed tomorrow.
    """
    if CLOCK not in template or FROZEN_DATE.search(template):
        return template
    replaced = "".join(
        f".replace({json.dumps(name)}, {json.dumps(day.strftime(name))})"
        for name in DIRECTIVES
        if name in template
    )
    comment = f"{{# the clock stands at {day.isoformat()} #}}"
    macro = f"{{% macro {CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}"
    return f"{comment}{macro}\n{template}"


def frozen_date(template: str) -> date | None:
    """The day at which `freeze_date` stopped the clock; None where it did not."""
    found = FROZEN_DATE.search(template)
    return date.fromisoformat(found[1]) if found else None


def unfreeze_date(template: str) -> str:
    """The template as it was before `freeze_date`."""
    return FROZEN_DATE.sub("", template, count=1)
