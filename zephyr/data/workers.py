"""Here raw rows become encoded examples, a chunk at a time, in as many processes as there are workers."""

import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from zephyr import chat
from zephyr.chat import EncodedPair, EncodedText
from zephyr.data.rows import check_row, preference, row_id, sft_row
from zephyr.data.sources import RawRow

CHUNK = 256  # rows that a process encodes at a time


class Options(NamedTuple):
    """What decides the ids of a row, beside the tokenizer. `max_prompt_tokens` is None for SFT rows."""
    max_tokens: int
    max_prompt_tokens: int | None
    truncation: str
    targets: str
    template: str
    on_bad_row: str


class Encoded(NamedTuple):
    """An example, where its row stands, how many tokens of each side were cut off, and by how much the chosen answer scored higher
    (None: no scores)."""
    place: str
    example: EncodedPair | EncodedText
    lost: tuple[int, ...]
    preference: float | None


class Chunk(NamedTuple):
    """What became of some rows. `skipped`: bad rows, (place, why); `dropped`: good rows of which truncation left nothing to learn."""
    encoded: list[Encoded]
    skipped: list[tuple[str, str]]
    dropped: int


def encoded_chunks(rows: Iterator[RawRow], tokenizer: PreTrainedTokenizerBase, options: Options, workers: int) -> Iterator[Chunk]:
    """The chunks in the order of the rows, from this process where there are few rows or one worker, else from `workers` forks.

    Forks, as `datasets` uses them: they hold the tokenizer without being sent it, and need no main module to import."""
    chunks = iter(lambda: list(islice(rows, CHUNK)), [])
    first = list(islice(chunks, 2))
    if workers < 2 or len(first) < 2:
        yield from (_encode_chunk(tokenizer, options, chunk) for chunk in chain(first, chunks))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (tokenizer, options)) as pool:
        waiting: deque[Future[Chunk]] = deque()
        for chunk in chain(first, chunks):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


_worker: list[tuple[PreTrainedTokenizerBase, Options]] = []  # of a forked process: what it encodes with


def _start_worker(tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this fork only: its processes are the parallelism
    _worker.append((tokenizer, options))


def _work(rows: list[RawRow]) -> Chunk:
    return _encode_chunk(*_worker[0], rows)


def _encode_chunk(tokenizer: PreTrainedTokenizerBase, options: Options, rows: list[RawRow]) -> Chunk:
    encoded, skipped, dropped = [], [], 0
    for row in rows:
        try:
            item = _encode_row(tokenizer, options, row)
        except ValueError as error:
            skipped.append((row.place, str(error)))
            if options.on_bad_row == "error":
                break
            continue
        example = item.example
        if any(example.is_target) if isinstance(example, EncodedText) else example.chosen_ids != example.rejected_ids:
            encoded.append(item)
        else:
            dropped += 1
    return Chunk(encoded, skipped, dropped)


def _encode_row(tokenizer: PreTrainedTokenizerBase, options: Options, row: RawRow) -> Encoded:
    """Raises: ValueError saying what is wrong with the row."""
    fields = check_row(row.value)
    id = row_id(fields, row.default_id)
    if options.max_prompt_tokens is not None:
        whole = chat.tokenize_pair(tokenizer, {**fields, "id": id}, template=options.template)
        pair = chat.truncate_pair(whole, max_tokens=options.max_tokens, max_prompt_tokens=options.max_prompt_tokens,
                                  truncation=options.truncation, bos_id=chat.kept_bos(tokenizer, options.template))
        lost = tuple(len(before) - len(after) for before, after in zip(whole[1:], pair[1:]))
        return Encoded(row.place, pair, lost, preference(fields))
    shape = sft_row(fields)
    if isinstance(shape, str):
        text = chat.encode_text(tokenizer, shape, max_tokens=sys.maxsize, id=id)
    else:
        text = chat.encode_messages(tokenizer, shape, max_tokens=sys.maxsize, targets=options.targets, template=options.template, id=id)
    room = options.max_tokens
    cut = EncodedText(id, text.ids[:room], text.is_target[:room])
    return Encoded(row.place, cut, (max(len(text.ids) - room, 0),), None)
