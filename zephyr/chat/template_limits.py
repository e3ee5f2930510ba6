"""Here a chat template renders two short turns in a process of its own, before it may render any
row.

A template is a program: one that doubles a text in a loop fills the memory, one that counts in
nested loops never ends. Inside jinja there is no bound to either."""

from __future__ import annotations

import multiprocessing
import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr.chat.template import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TURNS = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
]  # what every template can write
MEMORY_BYTES, SECONDS = (
    2**30,
    60,
)  # what two short turns may take: thousands of times what they need


def check_template_limits(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Raises: ValueError where rendering two short turns takes more than `MEMORY_BYTES` or
    `SECONDS`, or multiplies text.

    A template that refuses these turns is no fault here: each row is rendered and judged for
    itself."""
    context = multiprocessing.get_context(
        "fork"
    )  # the tokenizer need not be sent, and no main module imported
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_render, args=(writer, tokenizer, template), daemon=True)
    process.start()
    writer.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        raise ValueError(
            f"the chat template took over {SECONDS} s to render two short turns, wanted one that ends"
        )
    code = process.exitcode  # 0 once it has sent what is wrong
    said = reader.recv() if code == 0 else f"the chat template ended its process (exit code {code})"
    reader.close()
    if said:
        raise ValueError(said)


def _render(writer: Connection, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """In the child: sends what is wrong, or an empty text."""
    limit_memory(MEMORY_BYTES)
    said = ""
    for turns, answer in ((TURNS, False), (TURNS[:1], True)):
        try:
            render(tokenizer, turns, template, answer=answer)
        except ValueError as error:
            if isinstance(error.__cause__, MemoryError):
                said = f"the chat template takes over {MEMORY_BYTES >> 20} MiB to render two short turns: it multiplies text"
            elif error.__cause__ is None:  # the length of what was rendered
                said = str(error)
    writer.send(said)
    writer.close()
    os._exit(0)  # nothing of the parent's is to be closed twice


def limit_memory(more: int) -> None:
    """This process may take so many bytes more than it has now, beyond it MemoryError is raised. On
    Linux alone."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return
    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = size + more if hard == resource.RLIM_INFINITY else min(size + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
