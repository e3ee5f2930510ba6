"""Here a conversation becomes the text that the tokenizer reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING

from zephyr.chat.messages import Messages

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HANDBOOK_TEMPLATE = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}"
)
"""The template of Zephyr-7B, byte for byte (alignment-handbook, `chat_template` of the zephyr recipes). It writes no BOS."""

ZEPHYR_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}\n{{ '<|system|>\n' + eos_token }}\n{% endif %}\n"
    + HANDBOOK_TEMPLATE
)
"""The same with the empty system turn that the handbook's code puts in front of a conversation without one: whoever chats by
the exported template continues the ids of training. Rendered by transformers:
`<|system|>\\n</s>\\n<|user|>\\nU1</s>\\n<|assistant|>\\nA1</s>\\n`, or ending in `<|assistant|>\\n` for an answer."""


CLOCK = "strftime_now"  # what transformers calls it in a template
FROZEN_DATE = re.compile(r"\{# the clock stands at (\d{4}-\d\d-\d\d) #\}.*\n")
DIRECTIVES = [
    f"%{dash}{letter}" for dash in ("", "-") for letter in "aAbBcdDeFHIjmMpSTuUwWxXyYZ"
] + ["%%"]
MAX_RENDERED_CHARS, MAX_RENDERED_RATIO = (
    2**17,
    8,
)  # characters that a template may write of its own, and copies of what it is given


def own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The template that the tokenizer came with; of several, the one named `default`."""
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, Mapping) else own


def template_of(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str:
    """The template that is given, else the tokenizer's own, else Zephyr's."""
    return template or own_template(tokenizer) or ZEPHYR_TEMPLATE


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Messages,
    template: str,
    *,
    answer: bool,
    tools: Sequence[Mapping[str, object]] | None = None,
) -> str:
    """The text of a conversation; `answer`: ending where the assistant's next turn begins; `tools`:
    what it may call.

    Raises: ValueError where the template refuses the conversation or is no valid jinja, or writes
    over `MAX_RENDERED_CHARS` characters and `MAX_RENDERED_RATIO` what it was given: one that multiplies text would
    fill the memory, row by row."""
    from jinja2.exceptions import TemplateError

    try:
        limit = MAX_RENDERED_CHARS + MAX_RENDERED_RATIO * len(f"{messages}{tools}")
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=answer,
        )
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        MemoryError,
        SyntaxError,
        TypeError,
        ValueError,
        RecursionError,
    ) as error:
        raise ValueError(
            f"the chat template refuses the conversation: {str(error) or type(error).__name__}"
        ) from error
    if len(text) > limit:
        raise ValueError(
            f"the chat template makes {len(text)} characters of the conversation, wanted at most {limit}: it multiplies text"
        )
    return text


def freeze_date(template: str, day: date) -> str:
    """The template with its clock, if it has one, at the beginning of a day: its first line says so
    and takes the clock's place.

    A template that writes today's date would write other ids when a run goes on tomorrow."""
    if CLOCK not in template or FROZEN_DATE.search(template):
        return template
    stands = "".join(
        f".replace({json.dumps(name)}, {json.dumps(day.strftime(name))})"
        for name in DIRECTIVES
        if name in template
    )
    return (
        f"{{# the clock stands at {day.isoformat()} #}}{{% macro {CLOCK}(format) %}}{{{{ format{stands} }}}}{{% endmacro %}}\n"
        + template
    )


def frozen_date(template: str) -> date | None:
    """The day at which the template's clock stands; None where it has none, or it runs."""
    found = FROZEN_DATE.search(template)
    return found and date.fromisoformat(found[1])


def unfreeze_date(template: str) -> str:
    """The template as it was before `freeze_date`."""
    return FROZEN_DATE.sub("", template, count=1)
