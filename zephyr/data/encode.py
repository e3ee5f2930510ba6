"""Sources become encoded examples: `load_pairs`, `load_texts`, and `load_splits` for a run.

The walk of a row, each step in a module of its own: `__init__.py` lists them."""

from __future__ import annotations

import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar, cast

import pyarrow as pa
from pyarrow.ipc import RecordBatchStreamWriter

from zephyr import chat
from zephyr.chat import EncodedPair
from zephyr.config import BadInput, Data, DataSource, read_source
from zephyr.data.keys import nearest_column
from zephyr.data.report import (
    PAIR_SIDES,
    TEXT_SIDES,
    Report,
    Tally,
    finish_report,
    format_counts,
    report_warnings,
)
from zephyr.data.sources import RawRow, Source, count_rows, open_each
from zephyr.data.store import (
    PAIR_SCHEMA,
    TEXT_SCHEMA,
    Pairs,
    Texts,
    cached_table,
    content_digest,
    encoding_digest,
    example_batch,
    open_entry,
)
from zephyr.data.workers import Chunk, Encoded, Options, empty_after_truncation, encoded_chunks
from zephyr.progress import Bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zephyr.training.engine import Engine

T = TypeVar("T", Pairs, Texts)
ENCODING_MODULES = (
    "encode",
    "folders",
    "keys",
    "pair_shapes",
    "pairwise",
    "parquet",
    "ratings",
    "refusals",
    "report",
    "rows",
    "sft_shapes",
    "shapes",
    "sources",
    "store",
    "text_digests",
    "workers",
)  # modules of this folder that decide what an example is: their text is part of the cache's key


def load_pairs(
    sources: Sequence[str | DataSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 1024,
    max_prompt_tokens: int = 512,
    truncation: str = "keep_end",
    limit: int | None = None,
    on_bad_row: str = "error",
    columns: Mapping[str, str | None] | None = None,
    encoding: str = "zephyr",
    cache_dir: str | Path | None = None,
    workers: int = 1,
) -> tuple[Pairs, Report]:
    """Encoded preference pairs of all sources, in the order of the rows.

    Args:
        sources: `path-or-hub-id[:split]`, one or more, or `DataSource`s with their own limit, and
            a weight that multiplies those of their rows.
        tokenizer: with its `chat_template` set (`tokenizer.load_tokenizer`).
        max_tokens, max_prompt_tokens, truncation: as `chat.truncate_pair`.
        limit: rows read at most, of all sources together.
        on_bad_row: `error`, or `skip` (bad rows are counted and listed in the report).
        columns: field -> path of its value in the rows (`answers.0`); None leaves the field out.
        encoding: as `chat.encode_pair`.
        cache_dir: where encoded rows are kept, under a digest of data, tokenizer, options and
            code. None: in memory only.
        workers: processes that encode.
    Returns: the pairs, a sequence of `EncodedPair`, and the report of what was cut or left out
        (`report.format_report` prints it).
    Raises: BadInput naming file, line and field for a bad row, source or option, for two rows with
        one id, and if no pair is left."""
    options = Options(
        max_tokens,
        max_prompt_tokens,
        truncation,
        "assistant",
        _template_of(tokenizer),
        on_bad_row,
        _sorted(columns),
        encoding,
    )
    table, report, entry = _load(sources, tokenizer, options, limit, cache_dir, workers)
    return Pairs(table, entry), report


def load_texts(
    sources: Sequence[str | DataSource],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 2048,
    targets: str = "assistant",
    limit: int | None = None,
    on_bad_row: str = "error",
    columns: Mapping[str, str | None] | None = None,
    joined: bool = False,
    cache_dir: str | Path | None = None,
    workers: int = 1,
) -> tuple[Texts, Report]:
    """Encoded SFT rows of all sources, in the order of the rows.

    Args:
        targets: `assistant` or `all` (`chat.encode_messages`). In rows of plain text every token
            is a target.
        joined: the texts are for `windows.joined_windows`: not cut, an EOS behind each.
        Others: as `load_pairs`; a `DataSource` has no other weight than 1.
    Returns: the texts, a sequence of `EncodedText`, and the report.
    Raises: BadInput as `load_pairs`."""
    options = Options(
        max_tokens,
        None,
        "",
        targets,
        _template_of(tokenizer),
        on_bad_row,
        _sorted(columns),
        joined=joined,
    )
    table, report, entry = _load(sources, tokenizer, options, limit, cache_dir, workers)
    return Texts(table, entry), report


def load_splits(
    engine: Engine,
    data: Data,
    encode: Callable[[Sequence[str | DataSource]], tuple[T, Report]],
    pack: Callable[[T, Report, str], tuple[T, Report]] | None = None,
) -> tuple[dict[str, T], dict[str, Report]]:
    """`encode(data.train)`, and `encode(data.eval)` if there is any; logs each report.

    One rank encodes for all ranks that share a cache (`once_a_node`), and the ids of all are
    compared.
    Args: pack: makes other examples of those of a split, whose name it is given.
    Raises: on every rank the BadInput of `encode` and `pack`, and BadInput where a host has other
        ids."""
    rows: dict[str, T] = {}
    encoded: dict[str, T] = {}
    reports: dict[str, Report] = {}
    for split, sources in {"train": data.train, "eval": data.eval}.items():
        if not sources:
            continue
        rows[split], report = once_a_node(engine, partial(encode, sources))
        if split == "eval":
            overlap = count_prompt_overlap(rows["train"], rows["eval"])
            report["also_in_train"], report["begins_in_train"] = overlap
        encoded[split] = rows[split]
        if pack:
            packed = partial(pack, rows[split], report, split)
            encoded[split], report = once_a_node(engine, packed)
        engine.require_same(
            f"data.{split}: the digest of the token ids", content_digest(encoded[split])
        )
        engine.log(format_counts(report))
        for warning in report_warnings(report):
            engine.warn(warning)
        reports[split] = report
    return encoded, reports


def once_a_node(engine: Engine, make: Callable[[], tuple[T, Report]]) -> tuple[T, Report]:
    """`make()` on the first rank of each node; the other ranks of the node map the entry of the
    cache that it made. Where other nodes share rank 0's cache, they wait and then find its entry.

    Ranks may wait for hours: the time-out of collectives does not count here. Raises: on every rank
    the BadInput of `make`."""
    first = engine.rank == engine.first_of_node
    shared = shares_cache_of_rank0(engine, encoding_resources()["cache_dir"])
    waits = first and shared
    made = engine.on_all_ranks(make if first and not waits else None)
    made = engine.on_all_ranks(make if waits else None) or made
    entries = engine.all_gather(None if made is None else made[0].entry)
    entry = entries[engine.first_of_node]
    read: Callable[[], object] = make if entry is None else partial(open_entry, entry)
    others = engine.on_all_ranks(None if first else read)
    return cast("tuple[T, Report]", made or others)


def shares_cache_of_rank0(engine: Engine, cache_dir: Path) -> bool:
    """Whether this rank is of another node than rank 0 and sees the same cache folder."""
    if engine.num_nodes == 1:
        return False

    def touch() -> str:
        cache_dir.mkdir(parents=True, exist_ok=True)
        file, name = tempfile.mkstemp(prefix=".rank-0-", dir=cache_dir)
        os.close(file)
        return Path(name).name

    name = engine.on_rank0(touch)
    seen = (cache_dir / name).exists()
    engine.barrier()
    engine.on_rank0((cache_dir / name).unlink)
    return seen and engine.first_of_node != 0


class EncodingResources(TypedDict):
    """How rows are encoded; the ids do not depend on it."""

    cache_dir: Path
    workers: int


def encoding_resources() -> EncodingResources:
    """Where encoded rows are kept (`$ZEPHYR_CACHE`, else ~/.cache/zephyr), and how many processes
    encode (one a CPU)."""
    cache = Path(os.environ.get("ZEPHYR_CACHE") or Path.home() / ".cache" / "zephyr")
    return {"cache_dir": cache, "workers": len(os.sched_getaffinity(0))}


def count_prompt_overlap(train: Pairs | Texts, evaluation: Pairs | Texts) -> tuple[int, int]:
    """How many examples of `evaluation` ask what an example of `train` asks.

    Prompts are compared by `text_digests.prompt_digest`; plain text counts as one turn.
    Returns: examples with the same user turns, and examples whose first user turn is the same and
        whose later ones are not."""
    train_prompts = set(train.table["asked"].to_pylist())
    train_first_turns = {_first_turn(prompt) for prompt in train_prompts}
    prompts = evaluation.table["asked"].to_pylist()
    same_prompt = sum(prompt in train_prompts for prompt in prompts)
    same_first_turn = sum(_first_turn(prompt) in train_first_turns for prompt in prompts)
    return same_prompt, same_first_turn - same_prompt


def _first_turn(prompt_digest: bytes) -> bytes:
    return prompt_digest[: len(prompt_digest) // 2]


def _template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise BadInput(
            "the tokenizer has no chat template, expected one set by tokenizer.prepare_tokenizer"
        )
    return template


def _sorted(columns: Mapping[str, str | None] | None) -> tuple[tuple[str, str | None], ...]:
    return tuple(sorted((columns or {}).items()))


def _load(
    specs: Sequence[str | DataSource],
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    limit: int | None,
    cache_dir: str | Path | None,
    workers: int,
) -> tuple[pa.Table, Report, Path | None]:
    _check_options(specs, options, limit)
    _try_options(tokenizer, options)
    entries = [read_source(spec) for spec in specs]
    opened = open_each([entry.path for entry in entries])
    key = _cache_key(tokenizer, options, limit, entries, opened)

    def encode(writer: RecordBatchStreamWriter) -> Report:
        tally = Tally(dropped=Counter({empty_after_truncation(options): 0}))
        rows = _numbered_rows(entries, opened, tally)
        chunks = encoded_chunks(islice(rows, limit), tokenizer, options, workers)
        # closing ends its processes
        with closing(chunks), Bar("encode", _total(entries, opened, limit), "rows") as bar:
            _encode_all(entries, chunks, options, tally, writer, bar)
        names = [source.name for group in opened for source in group]
        return finish_report(entries, names, _sides(options), tally, options)

    schema = TEXT_SCHEMA if options.max_prompt_tokens is None else PAIR_SCHEMA
    entry = None if cache_dir is None else Path(cache_dir) / key
    return (*cached_table(entry, schema, encode), entry)


def _numbered_rows(
    entries: Sequence[DataSource], opened: Sequence[Sequence[Source]], tally: Tally
) -> Iterator[RawRow]:
    """The rows of each entry up to its own limit, counted, with the number of the entry."""
    for number, (entry, group) in enumerate(zip(entries, opened)):
        rows = (row for source in group for row in source.rows())
        for row in islice(rows, entry.limit):
            tally.read[number] += 1
            yield row._replace(entry=number)


def _total(
    entries: Sequence[DataSource], opened: Sequence[Sequence[Source]], limit: int | None
) -> int | None:
    """About how many rows will be read; None if it is not known."""
    counts = [count_rows(group, entry.limit) for entry, group in zip(entries, opened)]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return sum(known) if limit is None else min(limit, sum(known))


def _sides(options: Options) -> tuple[str, ...]:
    return TEXT_SIDES if options.max_prompt_tokens is None else PAIR_SIDES


def _check_options(specs: Sequence[str | DataSource], options: Options, limit: int | None) -> None:
    if options.on_bad_row not in ("error", "skip"):
        raise BadInput(f"on_bad_row is {options.on_bad_row!r}, expected 'error' or 'skip'")
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, expected at least 1 row, or null")
    if isinstance(specs, str) or not specs:
        raise BadInput(f"the data sources are {specs!r}, expected a list of at least one")
    for source in map(read_source, specs):
        if source.limit is not None and source.limit < 1:
            raise BadInput(f"{source.path}: limit is {source.limit}, expected at least 1, or None")
        is_text = options.max_prompt_tokens is None
        if not 0 < source.weight < math.inf or (is_text and source.weight != 1):
            wanted = "1: texts have no weight" if is_text else "a finite number > 0"
            raise BadInput(f"{source.path}: weight is {source.weight}, expected {wanted}")
    for name, _ in options.columns:
        hint = nearest_column(name)
        if hint is not None:
            raise BadInput(f"data.columns.{name}: no field of a row has this name, {hint}")


def _try_options(tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    """Encode a conversation of two letters: limits and templates that fail on every row are
    reported here, before a row is blamed for them."""
    turns: chat.Messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    try:
        if options.max_tokens < 2:
            raise ValueError(f"max_tokens is {options.max_tokens}, expected at least 2")
        chat.encode_messages(tokenizer, turns, targets=options.targets, template=options.template)
        if options.max_prompt_tokens is not None:
            row = {"prompt": "a", "chosen": "b", "rejected": "c"}
            pair = EncodedPair("", [0], [0], [0])
            if options.encoding != "zephyr":
                encoding = options.encoding
                pair = chat.tokenize_pair(
                    tokenizer, row, template=options.template, encoding=encoding
                )
            chat.truncate_pair(
                pair,
                max_tokens=options.max_tokens,
                bos_id=None,
                max_prompt_tokens=options.max_prompt_tokens,
                truncation=options.truncation,
            )
    except ValueError as error:
        raise BadInput(str(error)) from error


def _cache_key(
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    limit: int | None,
    entries: Sequence[DataSource],
    opened: Sequence[Sequence[Source]],
) -> str:
    """The digest of all that decides the examples, each source's limit and weight included."""
    code = [
        *Path(chat.__file__).parent.glob("*.py"),
        *(Path(__file__).with_name(f"{name}.py") for name in ENCODING_MODULES),
    ]
    parts = [repr(options), repr(limit), repr(list(entries))]
    for group in opened:
        for source in group:
            parts += [source.name, source.digest]
    return encoding_digest(tokenizer, code, parts)


def _encode_all(
    entries: Sequence[DataSource],
    chunks: Iterator[Chunk],
    options: Options,
    tally: Tally,
    writer: RecordBatchStreamWriter,
    bar: Bar,
) -> None:
    """Write every example, a batch per chunk, and count it."""
    sides = _sides(options)
    for chunk in chunks:
        rows = len(chunk.encoded) + len(chunk.skipped) + chunk.dropped.total()
        tally.totals["rows"] += rows
        tally.dropped.update(chunk.dropped)
        bad, kept, asked = list(chunk.skipped), [], []
        for item in _weighted(chunk.encoded, entries):
            id = item.example.id
            if id in tally.places:
                reason = (
                    f"`id` {id!r:.60} is also the id of {tally.places[id]}, expected an id that no "
                    "other row has"
                )
                bad.append((item.place, reason))
                continue
            tally.places[id] = item.place
            kept.append(item.example)
            asked.append(item.prompt_digest)
            tally.add(item, sides)
        for place, reason in bad:
            if options.on_bad_row == "error":
                raise BadInput(f"{place}: {reason}")
            tally.skipped.append({"place": place, "reason": reason})
        if kept:
            writer.write_batch(example_batch(kept, asked))
        bar.update(rows)


def _weighted(items: Sequence[Encoded], entries: Sequence[DataSource]) -> Iterator[Encoded]:
    """The items, the weights of pairs multiplied by those of their sources."""
    for item in items:
        if isinstance(item.example, EncodedPair):
            weight = item.example.weight * entries[item.entry].weight
            item = item._replace(example=item.example._replace(weight=weight))
        yield item
