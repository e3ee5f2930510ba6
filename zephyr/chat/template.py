"""Here a row's turns become a checked conversation, and a conversation becomes the text that the tokenizer reads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]

HANDBOOK_TEMPLATE = (
    "{% for message in messages %}\n"
    "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
    "{% endfor %}")
"""The template of Zephyr-7B, byte for byte (alignment-handbook, `chat_template` of the zephyr recipes). It writes no BOS."""

ZEPHYR_TEMPLATE = "{% if messages[0]['role'] != 'system' %}\n{{ '<|system|>\n' + eos_token }}\n{% endif %}\n" + HANDBOOK_TEMPLATE
"""The same with the empty system turn that the handbook's code puts in front of a conversation without one: whoever chats by
the exported template continues the ids of training. Rendered by transformers:
`<|system|>\\n</s>\\n<|user|>\\nU1</s>\\n<|assistant|>\\nA1</s>\\n`, or ending in `<|assistant|>\\n` for an answer."""


CLOCK = "strftime_now"                              # what transformers calls it in a template
STOPPED = re.compile(r"\{# the clock stands at (\d{4}-\d\d-\d\d) #\}.*\n")
DIRECTIVES = [f"%{dash}{letter}" for dash in ("", "-") for letter in "aAbBcdDeFHIjmMpSTuUwWxXyYZ"] + ["%%"]


class PairTexts(NamedTuple):
    """A preference row as it was read: the turns up to the user's last, and two answers to them."""
    prompt: Messages
    chosen: str
    rejected: str


def check_messages(messages: object, field: str = "messages", *, last: str | None = None) -> Messages:
    """The turns as plain dicts of role and content; other keys of a turn are left out.

    Wanted: at most one system turn, first; then user and assistant in turn, the user first; no empty user or assistant turn; the last
    of the role `last`, if given. Raises: ValueError naming field, turn, what was found and what was wanted."""
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise ValueError(f"`{field}` is {_shown(messages)}, wanted a list of messages")
    if not messages:
        raise ValueError(f"`{field}` is an empty list, wanted at least one message")
    turns = [_check_turn(turn, f"{field}[{i}]") for i, turn in enumerate(messages)]
    first = 1 if turns[0]["role"] == "system" else 0
    if first == len(turns):
        raise ValueError(f"`{field}` holds a system turn only, wanted a user turn after it")
    for i, turn in enumerate(turns[first:]):
        wanted = "user" if i % 2 == 0 else "assistant"
        if turn["role"] != wanted:
            raise ValueError(f"`{field}[{first + i}].role` is {turn['role']!r}, wanted {wanted!r}: "
                             "at most one system turn, then user and assistant in turn, the user first")
        if not turn["content"].strip():
            raise ValueError(f"`{field}[{first + i}].content` is empty ({turn['content']!r:.60}), wanted the {wanted}'s words")
    if last not in (None, turns[-1]["role"]):
        found = "a user" if last == "assistant" else "an assistant"
        raise ValueError(f"`{field}` ends with {found} turn, wanted the {last}'s last")
    return turns


def check_pair(pair: Mapping[str, object]) -> PairTexts:
    """The prompt turns and both answers of a preference row, whatever its shape.

    Shapes: `chosen` and `rejected` are strings, or lists of messages that end with the assistant's; such a list holds
    the whole conversation (then the prompt turns of both must be equal, and agree with `prompt`), or the answer alone.
    `prompt` is a string, or a list of messages that ends with the user's; it may be missing where the lists hold it.
    Raises: ValueError naming the field, what was found and what was wanted; also for two equal answers."""
    prompt = pair.get("prompt")
    if prompt is not None:
        prompt = check_messages([{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt, "prompt", last="user")
    chosen_prompt, chosen = _side(pair, "chosen", prompt)
    rejected_prompt, rejected = _side(pair, "rejected", prompt)
    if chosen_prompt != rejected_prompt:
        raise ValueError("the turns before the last of `chosen` and `rejected` differ, wanted answers to one prompt")
    if chosen == rejected:
        raise ValueError(f"`chosen` and `rejected` are equal ({_shown(chosen)}), wanted two different answers")
    return PairTexts(chosen_prompt, chosen, rejected)


def render(tokenizer: PreTrainedTokenizerBase, messages: Messages, template: str, *, answer: bool) -> str:
    """The text of a conversation; `answer`: ending where the assistant's next turn begins.

    Raises: ValueError where the template refuses the conversation or is no valid jinja."""
    from jinja2.exceptions import TemplateError
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=answer)
    except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the chat template refuses the conversation: {error or type(error).__name__}") from error


def stop_clock(template: str, day: date) -> str:
    """The template with its clock, if it has one, at the beginning of a day: its first line says so and takes the clock's place.

    A template that writes today's date would write other ids when a run goes on tomorrow."""
    if CLOCK not in template or STOPPED.search(template):
        return template
    stands = "".join(f".replace({json.dumps(name)}, {json.dumps(day.strftime(name))})" for name in DIRECTIVES if name in template)
    return (f"{{# the clock stands at {day.isoformat()} #}}{{% macro {CLOCK}(format) %}}{{{{ format{stands} }}}}{{% endmacro %}}\n"
            + template)


def clock_of(template: str) -> date | None:
    """The day at which the template's clock stands; None where it has none, or it runs."""
    found = STOPPED.search(template)
    return found and date.fromisoformat(found[1])


def start_clock(template: str) -> str:
    """The template as it was before `stop_clock`."""
    return STOPPED.sub("", template, count=1)


def _check_turn(turn: object, field: str) -> dict[str, str]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"`{field}` is {_shown(turn)}, wanted a message with `role` and `content`")
    for key in ("role", "content"):
        if not isinstance(turn.get(key), str):
            found = f"is {_shown(turn[key])}" if key in turn else "is missing"
            raise ValueError(f"`{field}.{key}` {found}, wanted a string")
    if turn["role"] not in ("system", "user", "assistant"):
        raise ValueError(f"`{field}.role` is {turn['role']!r:.60}, wanted one of system, user, assistant")
    return {"role": turn["role"], "content": turn["content"]}


def _side(pair: Mapping[str, object], field: str, prompt: Messages | None) -> tuple[Messages, str]:
    """Prompt turns and answer of one side; `prompt`: what the row's own `prompt` holds."""
    side = pair.get(field)
    if side is None:
        raise ValueError(f"`{field}` is {'null' if field in pair else 'missing'}, wanted a string or a list of messages")
    if isinstance(side, str):
        if prompt is None:
            raise ValueError(f"`prompt` is missing, wanted one beside `{field}`, which is a string")
        if not side.strip():
            raise ValueError(f"`{field}` is empty ({side!r:.60}), wanted an answer")
        return prompt, side
    match side:
        case [{"role": "assistant"}] if prompt:             # the answer alone
            side = [*prompt, *side]
    turns = check_messages(side, field, last="assistant")
    # A string agrees with any user turn (UltraFeedback's `prompt` is the first), a list only with all turns.
    if prompt and not (prompt[0] in turns if isinstance(pair["prompt"], str) else prompt == turns[:-1]):
        raise ValueError(f"`prompt` ({_shown(prompt[-1]['content'])}) is no user turn of `{field}`, wanted the same prompt in both")
    return turns[:-1], turns[-1]["content"]


def _shown(value: object) -> str:
    """A value short enough for one line of an error."""
    text = repr(value).replace("\n", " ")
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
