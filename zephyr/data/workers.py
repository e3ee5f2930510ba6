"""Rows become ids, a chunk at a time, in several processes (`_encode_row` encodes one row)."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

from zephyr import chat
from zephyr.chat import EncodedPair, EncodedText
from zephyr.data.keys import select
from zephyr.data.ratings import Tie, pair_margins
from zephyr.data.refusals import suspicious_texts
from zephyr.data.rows import Row, check_row, row_id
from zephyr.data.shapes import pair_row, sft_conversation
from zephyr.data.sources import RawRow
from zephyr.data.text_digests import conversation_digest, prompt_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_ROWS = 256  # rows that a process encodes at a time
CHUNK_BYTES = 2**26  # a chunk of longer rows ends once they take this much
WORKER_BYTES = 2**32  # a worker may allocate this beyond its fork: stops templates that explode
MAX_KEY_CHARS = 80  # of a key in the report
NO_WEIGHT = "weight 0"
NO_TARGET = "no target: each of the assistant's turns is marked as not trained"


class Options(NamedTuple):
    """What decides the ids of a row, beside the tokenizer.

    max_prompt_tokens: None for SFT rows. encoding: of pairs, as `chat.encode_pair`. joined: texts
    are for `windows.joined_windows`: not cut, an EOS behind each, and its first token a target."""

    max_tokens: int
    max_prompt_tokens: int | None
    truncation: str
    targets: str
    template: str
    on_bad_row: str
    columns: tuple[tuple[str, str | None], ...] = ()
    encoding: str = "zephyr"
    joined: bool = False


class Encoded(NamedTuple):
    """An encoded row.

    place: where the row stands. truncated_tokens: tokens cut off from each side. prompt_digest:
    `text_digests.prompt_digest`. text_digests: `conversation_digest` of a text, or of a pair's
    prompt, chosen and rejected. margins: by how much each rating prefers the chosen answer. unread:
    keys that nothing reads. found: fields of `data.columns` that the row has. suspicions: warnings
    about its texts. has_targets: whether a text had a target before it was cut. entry: of the
    `RawRow`."""

    place: str
    example: EncodedPair | EncodedText
    truncated_tokens: tuple[int, ...]
    prompt_digest: bytes
    text_digests: tuple[bytes, ...]
    margins: tuple[float, ...] = ()
    unread: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    suspicions: tuple[str, ...] = ()
    has_targets: bool = True
    entry: int = 0


class Chunk(NamedTuple):
    """The outcome of some rows. skipped: bad rows, (place, reason). dropped: reason -> good rows
    that teach nothing."""

    encoded: list[Encoded]
    skipped: list[tuple[str, str]]
    dropped: Counter[str]


def empty_after_truncation(options: Options) -> str:
    """The reason that the report gives for a row that only truncation made useless."""
    if options.max_prompt_tokens is None:
        return "no target left after the cut"
    return "both sides equal once encoded and cut"


def encoded_chunks(
    rows: Iterator[RawRow], tokenizer: PreTrainedTokenizerBase, options: Options, workers: int
) -> Generator[Chunk, None, None]:
    """The chunks, in the order of the rows.

    Encodes in this process if there is one worker or at most one chunk, else in `workers` forks (as
    `datasets` does): a fork has the tokenizer without pickling it, and needs no main module to
    import."""
    chunks = _chunks(rows)
    first = list(islice(chunks, 2))
    if workers < 2 or len(first) < 2:
        for chunk in chain(first, chunks):
            yield _encode_chunk(tokenizer, options, chunk)
        return
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), _start_worker, (tokenizer, options)
    ) as pool:
        waiting: deque[Future[Chunk]] = deque()
        for chunk in chain(first, chunks):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        for future in waiting:
            yield future.result()


def _chunks(rows: Iterator[RawRow]) -> Iterator[list[RawRow]]:
    """`CHUNK_ROWS` rows at a time, fewer if they are long."""
    chunk: list[RawRow] = []
    bytes_left = CHUNK_BYTES
    for row in rows:
        chunk.append(row)
        bytes_left -= _size(row.value)
        if len(chunk) == CHUNK_ROWS or bytes_left <= 0:
            yield chunk
            chunk, bytes_left = [], CHUNK_BYTES
    if chunk:
        yield chunk


def _size(value: object) -> int:
    """The bytes of an undecoded line; of a decoded row about the bytes of its texts."""
    if isinstance(value, (bytes, str)):
        return len(value)
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    return 8 + sum(map(_size, inner))


# in a forked process: what it encodes with, set once by `_start_worker`
_worker: list[tuple[PreTrainedTokenizerBase, Options]] = []


def _start_worker(tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    gc.freeze()  # what is garbage here may own threads of the parent, as process groups do
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # in this fork only: the forks are the threads
    chat.limit_memory(WORKER_BYTES)
    _worker.append((tokenizer, options))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this fork soon after its rank: it would wait for rows forever, because each fork holds
    the pipe open for the others."""
    while os.getppid() == parent:
        time.sleep(5)
    os._exit(1)


def _work(rows: list[RawRow]) -> Chunk:
    return _encode_chunk(*_worker[0], rows)


def _encode_chunk(
    tokenizer: PreTrainedTokenizerBase, options: Options, rows: list[RawRow]
) -> Chunk:
    encoded: list[Encoded] = []
    skipped: list[tuple[str, str]] = []
    dropped: Counter[str] = Counter()
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
            skipped.append((row.place, _reason(error)))
            if options.on_bad_row == "error":
                break
            continue
        useless = _why_useless(item, options)
        if useless:
            dropped[useless] += 1
        else:
            encoded.append(item)
    return Chunk(encoded, skipped, dropped)


def _reason(error: ValueError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "the row is nested too deeply"
    # the message may quote half of a surrogate pair, which no file can hold
    return str(error).encode("utf-8", "backslashreplace").decode()


def _why_useless(item: Encoded, options: Options) -> str:
    """The reason to drop an example from which nothing is learned; "" for the others."""
    example = item.example
    if isinstance(example, EncodedPair):
        if example.weight == 0:
            return NO_WEIGHT
        useful = example.chosen_ids != example.rejected_ids
    elif not item.has_targets:
        return NO_TARGET
    else:
        useful = any(example.is_target)
    return "" if useful else empty_after_truncation(options)


def _encode_row(tokenizer: PreTrainedTokenizerBase, options: Options, row: RawRow) -> Encoded:
    """A row as it was read becomes ids: of a pair, or of a text if `max_prompt_tokens` is None.

    Raises: ValueError that says what is wrong with the row; Tie and IdenticalAnswers for a pair
        without a preference."""
    fields, found, unread = select(check_row(row.value), dict(options.columns))
    id = row_id(fields, row.default_id)
    if options.max_prompt_tokens is None:
        encoded = _encode_text(tokenizer, options, fields, id, unread)
    else:
        encoded = _encode_pair(tokenizer, options, options.max_prompt_tokens, fields, id, unread)
    return encoded._replace(place=row.place, found=tuple(found), entry=row.entry)


def _encode_pair(
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    max_prompt_tokens: int,
    fields: Row,
    id: str,
    unread: list[str],
) -> Encoded:
    """unread: keys that `data.columns` set aside; those that nothing reads are added."""
    row, keys = pair_row(fields)
    unread += keys
    whole = chat.tokenize_pair(
        tokenizer,
        {**row, "id": id},
        template=options.template,
        left_out=unread,
        encoding=options.encoding,
    )
    pair = chat.truncate_pair(
        whole,
        max_tokens=options.max_tokens,
        max_prompt_tokens=max_prompt_tokens,
        truncation=options.truncation,
        bos_id=chat.template_bos(tokenizer, options.template),
    )
    texts = chat.check_pair(row)
    return Encoded(
        place="",
        example=pair,
        truncated_tokens=(
            len(whole.prompt_ids) - len(pair.prompt_ids),
            len(whole.chosen_ids) - len(pair.chosen_ids),
            len(whole.rejected_ids) - len(pair.rejected_ids),
        ),
        prompt_digest=prompt_digest(texts.prompt),
        text_digests=(
            conversation_digest(texts.prompt),
            conversation_digest([texts.chosen]),
            conversation_digest([texts.rejected]),
        ),
        margins=pair_margins(row),
        unread=_short_names(unread),
        suspicions=_suspicions(row.get(field) for field in ("prompt", "chosen", "rejected")),
    )


def _encode_text(
    tokenizer: PreTrainedTokenizerBase, options: Options, fields: Row, id: str, unread: list[str]
) -> Encoded:
    """As `_encode_pair`. The whole text is encoded, then cut: the tokens lost are counted."""
    made, keys = sft_conversation(fields)
    unread += keys
    turns: chat.Messages
    if isinstance(made, str):
        turns = [{"role": "user", "content": made}]
        whole = chat.encode_text(tokenizer, made, max_tokens=sys.maxsize, id=id)
    else:
        turns = made.turns
        whole = chat.encode_messages(
            tokenizer,
            turns,
            max_tokens=sys.maxsize,
            targets=options.targets,
            template=options.template,
            id=id,
            tools=made.tools,
            names=made.names,
            left_out=unread,
        )
    limit = options.max_tokens
    if options.joined:
        # Plain text has its EOS already, as there.
        eos_ids = [] if isinstance(made, str) else [tokenizer.eos_token_id]
        flags = [True, *whole.is_target[1:], *[True for _ in eos_ids]]
        whole, limit = EncodedText(id, whole.ids + eos_ids, flags), sys.maxsize
    return Encoded(
        place="",
        example=EncodedText(id, whole.ids[:limit], whole.is_target[:limit]),
        truncated_tokens=(max(len(whole.ids) - limit, 0),),
        prompt_digest=prompt_digest(turns),
        text_digests=(conversation_digest(turns),),
        unread=_short_names(unread),
        suspicions=_suspicions([turns]),
        has_targets=any(whole.is_target),
    )


def _short_names(keys: list[str]) -> tuple[str, ...]:
    """Each key once, cut to `MAX_KEY_CHARS`."""
    names = (str(key)[:MAX_KEY_CHARS].encode("utf-8", "backslashreplace").decode() for key in keys)
    return tuple(dict.fromkeys(names))


def _suspicions(fields: Iterable[object]) -> tuple[str, ...]:
    """Warnings about the texts of fields, each a text or turns; results of tools may hold
    anything."""
    texts: list[object] = []
    for field in fields:
        turns = field if isinstance(field, list) else [{"content": field}]
        texts += [
            turn["content"] for turn in turns if turn.get("role") != "tool" and "content" in turn
        ]
    return tuple(sorted(suspicious_texts(texts)))
