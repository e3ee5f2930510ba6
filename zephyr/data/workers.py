"""Here raw rows become encoded examples, a chunk at a time, in as many processes as there are
workers."""

import multiprocessing
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from zephyr import chat
from zephyr.chat import EncodedPair, EncodedText
from zephyr.data.ratings import Tie
from zephyr.data.rows import check_row, row_id
from zephyr.data.shapes import pair_row, select, sft_conversation, suspicious_texts
from zephyr.data.sources import RawRow
from zephyr.data.text_digests import conversation_digest, prompt_digest

CHUNK_ROWS = 256  # rows that a process encodes at a time
CHUNK_BYTES = 2**26  # but no more once they take this much
WORKER_BYTES = (
    2**32
    # memory that it may take beyond what it was forked with: a template that multiplies text asks for
    # more
)


NO_TARGET = "no target: each of the assistant's turns is marked as not trained"


class Options(NamedTuple):
    """What decides the ids of a row, beside the tokenizer. `max_prompt_tokens` is None for SFT
    rows."""

    max_tokens: int
    max_prompt_tokens: int | None
    truncation: str
    targets: str
    template: str
    on_bad_row: str
    columns: tuple[tuple[str, str | None], ...] = ()


class Encoded(NamedTuple):
    """An example, where its row stands, how many tokens of each side were cut off, and by how much
    the chosen answer is rated higher, by each rating. prompt_digest, text_digests: digests of its words
    (`text_digests.prompt_digest`; of a text, of a pair's prompt and both answers). targets: whether a text had any
    before it was cut. unread: keys that nothing reads; found: names of `columns` that the row has;
    suspicions: what may be no turn."""

    place: str
    example: EncodedPair | EncodedText
    truncated_tokens: tuple[int, ...]
    prompt_digest: bytes
    text_digests: tuple[bytes, ...]
    margins: tuple[float, ...] = ()
    unread: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()
    targets: bool = True


class Chunk(NamedTuple):
    """What became of some rows. `skipped`: bad rows, (place, why); `dropped`: good rows that teach
    nothing, counted by why."""

    encoded: list[Encoded]
    skipped: list[tuple[str, str]]
    dropped: Counter[str]


def empty_after_truncation(options: Options) -> str:
    """Why truncation alone drops a row."""
    return (
        "no target left after the cut"
        if options.max_prompt_tokens is None
        else "both sides equal once encoded and cut"
    )


def encoded_chunks(
    rows: Iterator[RawRow], tokenizer: PreTrainedTokenizerBase, options: Options, workers: int
) -> Iterator[Chunk]:
    """The chunks in the order of the rows, from this process where there are few rows or one
    worker, else from `workers` forks.

    Forks, as `datasets` uses them: they hold the tokenizer without being sent it, and need no main
    module to import."""
    chunks = _chunks(rows)
    first = list(islice(chunks, 2))
    if workers < 2 or len(first) < 2:
        yield from (_encode_chunk(tokenizer, options, chunk) for chunk in chain(first, chunks))
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _start_worker, (tokenizer, options)
    ) as pool:
        waiting: deque[Future[Chunk]] = deque()
        for chunk in chain(first, chunks):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        yield from (future.result() for future in waiting)


def _chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """`CHUNK_ROWS` rows at a time; fewer where they are long."""
    chunk: list[RawRow] = []
    room = CHUNK_BYTES
    for row in rows:
        chunk.append(row)
        room -= _size(row.value)
        if len(chunk) == CHUNK_ROWS or room <= 0:
            yield chunk
            chunk, room = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _size(value: object) -> int:
    """The bytes of an undecoded line; else about what the value's texts take."""
    if isinstance(value, (bytes, str)):
        return len(value)
    inner = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    )
    return 8 + sum(map(_size, inner))


_worker: list[
    tuple[PreTrainedTokenizerBase, Options]
] = []  # of a forked process: what it encodes with


def _start_worker(tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # of this fork only: its processes are the parallelism
    )
    chat.limit_memory(WORKER_BYTES)
    _worker.append((tokenizer, options))


def _work(rows: list[RawRow]) -> Chunk:
    return _encode_chunk(*_worker[0], rows)


def _encode_chunk(
    tokenizer: PreTrainedTokenizerBase, options: Options, rows: list[RawRow]
) -> Chunk:
    encoded, skipped, dropped = [], [], Counter()
    for row in rows:
        try:
            item = _encode_row(tokenizer, options, row)
        except Tie as tie:
            dropped[f"a tie: {tie}"] += 1
            continue
        except chat.IdenticalAnswers as same:
            dropped[str(same)] += 1
            continue
        except (ValueError, RecursionError) as error:
            reason = (
                "the row is nested too deeply" if isinstance(error, RecursionError) else str(error)
            )
            skipped.append(
                (row.place, reason.encode("utf-8", "backslashreplace").decode())
            )  # it may show half of a surrogate pair
            if options.on_bad_row == "error":
                break
            continue
        example = item.example
        if isinstance(example, EncodedText) and not item.targets:
            dropped[NO_TARGET] += 1
        elif (
            any(example.is_target)
            if isinstance(example, EncodedText)
            else example.chosen_ids != example.rejected_ids
        ):
            encoded.append(item)
        else:
            dropped[empty_after_truncation(options)] += 1
    return Chunk(encoded, skipped, dropped)


def _encode_row(tokenizer: PreTrainedTokenizerBase, options: Options, row: RawRow) -> Encoded:
    """Raises: ValueError saying what is wrong with the row."""
    fields, found, unread = select(check_row(row.value), dict(options.columns))
    id = row_id(fields, row.default_id)
    if options.max_prompt_tokens is not None:
        row_of_pair, keys = pair_row(fields)
        unread += keys
        whole = chat.tokenize_pair(
            tokenizer, {**row_of_pair, "id": id}, template=options.template, left_out=unread
        )
        pair = chat.truncate_pair(
            whole,
            max_tokens=options.max_tokens,
            max_prompt_tokens=options.max_prompt_tokens,
            truncation=options.truncation,
            bos_id=chat.template_bos(tokenizer, options.template),
        )
        lost = tuple(len(before) - len(after) for before, after in zip(whole[1:4], pair[1:4]))
        words = chat.check_pair(row_of_pair)
        said = (
            conversation_digest(words.prompt),
            conversation_digest([words.chosen]),
            conversation_digest([words.rejected]),
        )
        return Encoded(
            row.place,
            pair,
            lost,
            prompt_digest(words.prompt),
            said,
            tuple(row_of_pair.get("margins", ())),
            _names(unread),
            tuple(found),
            _suspicions(row_of_pair),
        )
    shape, keys = sft_conversation(fields)
    unread += keys
    if isinstance(shape, str):
        text, turns = (
            chat.encode_text(tokenizer, shape, max_tokens=sys.maxsize, id=id),
            [{"role": "user", "content": shape}],
        )
    else:
        text = chat.encode_messages(
            tokenizer,
            shape.turns,
            max_tokens=sys.maxsize,
            targets=options.targets,
            template=options.template,
            id=id,
            tools=shape.tools,
            names=shape.names,
            left_out=unread,
        )
        turns = shape.turns
    room = options.max_tokens
    cut = EncodedText(id, text.ids[:room], text.is_target[:room])
    return Encoded(
        row.place,
        cut,
        (max(len(text.ids) - room, 0),),
        prompt_digest(turns),
        (conversation_digest(turns),),
        (),
        _names(unread),
        tuple(found),
        _suspicions({"turns": turns}),
        any(text.is_target),
    )


def _names(keys: list[str]) -> tuple[str, ...]:
    """Each key once, short enough for a report."""
    return tuple(
        dict.fromkeys(str(key)[:80].encode("utf-8", "backslashreplace").decode() for key in keys)
    )


def _suspicions(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Of all texts and turns of a pair's three fields, or of `turns`."""
    said = [fields.get(field) for field in ("prompt", "chosen", "rejected", "turns")]
    turns = chain.from_iterable(
        value if isinstance(value, list) else [{"content": value}] for value in said
    )
    return tuple(
        sorted(
            suspicious_texts(
                turn["content"]
                for turn in turns
                if turn.get("role") != "tool" and "content" in turn
            )
        )
    )
