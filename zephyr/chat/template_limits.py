"""A chat template renders two short turns in a process of its own, before it may render any row.

A template is a program: one that doubles a text in a loop fills the memory, and one that counts in
nested loops does not end. jinja limits neither.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr.chat.messages import Messages
from zephyr.chat.template import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What every template can write.
TURNS: Messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
# The most that two short turns may take: thousands of times what they need.
MEMORY_BYTES = 2**30
SECONDS = 60


def check_template_limits(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Check what rendering two short turns takes.

    A template that refuses these turns passes: every row is rendered and judged by itself.

    Raises:
        ValueError: where it takes more than `MEMORY_BYTES` or `SECONDS`, or multiplies text.
    """
    # fork: the tokenizer need not be sent, and no main module is imported.
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_render, args=(writer, tokenizer, template), daemon=True)
    process.start()
    writer.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        raise ValueError(
            f"the chat template took over {SECONDS} s to render two short turns, expected one that "
            "ends"
        )
    code = process.exitcode
    if code == 0:
        fault = reader.recv()
    else:
        fault = f"the chat template ended its process (exit code {code})"
    reader.close()
    if fault:
        raise ValueError(fault)


def _render(writer: Connection, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """In the child process: send what is wrong, or an empty text."""
    gc.freeze()  # what is garbage here may own threads of the parent, as process groups do
    limit_memory(MEMORY_BYTES)
    fault = ""
    for turns, answer in ((TURNS, False), (TURNS[:1], True)):
        try:
            render(tokenizer, turns, template, answer=answer)
        except ValueError as error:
            if isinstance(error.__cause__, MemoryError):
                fault = (
                    f"the chat template takes over {MEMORY_BYTES >> 20} MiB to render two short "
                    "turns: it multiplies text"
                )
            elif error.__cause__ is None:  # the length of what was rendered
                fault = str(error)
    writer.send(fault)
    writer.close()
    os._exit(0)  # what the parent has open must not be closed here


def limit_memory(more: int) -> None:
    """Let this process take `more` bytes beyond what it has now; then MemoryError is raised.

    Only on Linux; does nothing elsewhere.
    """
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        return
    size = int(statm.read_text().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    soft = size + more if hard == resource.RLIM_INFINITY else min(size + more, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
