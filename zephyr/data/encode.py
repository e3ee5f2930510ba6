"""Here sources become encoded examples with ids of their own, and a report of what was cut or left
out."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from pyarrow.ipc import RecordBatchStreamWriter
from transformers import PreTrainedTokenizerBase

from zephyr import chat
from zephyr.chat import EncodedPair
from zephyr.config import BadInput, Data
from zephyr.data.shapes import nearest_column
from zephyr.data.sources import Source, open_sources
from zephyr.data.store import (
    PAIR_SCHEMA,
    TEXT_SCHEMA,
    Pairs,
    Report,
    Texts,
    cached_table,
    encoding_digest,
    example_batch,
)
from zephyr.data.workers import Chunk, Encoded, Options, empty_after_truncation, encoded_chunks
from zephyr.training.engine import Engine

T = TypeVar("T")
MAX_EXAMPLES = 5  # places that the report shows of a warning
WEIGHTED = "a weight other than 1"
ENCODING_MODULES = (
    "encode",
    "folders",
    "pairwise",
    "ratings",
    "rows",
    "shapes",
    "sources",
    "store",
    "text_digests",
    "workers",
)  # modules here that decide what an example is


def load_pairs(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 1024,
    max_prompt_tokens: int = 512,
    truncation: str = "keep_end",
    limit: int | None = None,
    on_bad_row: str = "error",
    columns: Mapping[str, str | None] | None = None,
    cache_dir: str | Path | None = None,
    workers: int = 1,
) -> tuple[Pairs, Report]:
    """Encoded preference pairs of all sources, in their order, and the report of what was cut or
    left out.

    Args: sources: `path-or-hub-id[:split]`; tokenizer: with its `chat_template` set
    (`load_tokenizer`); limit: rows read at most, of all sources together; on_bad_row: `error`, or
    `skip` (counted and listed); columns: field -> where the rows have it (`answers.0`), None: the
    field is left out; cache_dir: where encoded rows are kept under a digest of data, tokenizer,
    options and code, None: in memory only; workers: processes that encode. Returns: `Pairs`, a
    sequence of `EncodedPair`, and the report (`format_report` prints it), which JSON can hold.
    Raises: BadInput, naming file, line and field, for a bad row, source or option, two rows of one
    id, or no pair left."""
    options = Options(
        max_tokens,
        max_prompt_tokens,
        truncation,
        "assistant",
        tokenizer.chat_template,
        on_bad_row,
        _sorted(columns),
    )
    table, report = _load(sources, tokenizer, options, limit, cache_dir, workers)
    return Pairs(table), report


def load_texts(
    sources: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int = 2048,
    targets: str = "assistant",
    limit: int | None = None,
    on_bad_row: str = "error",
    columns: Mapping[str, str | None] | None = None,
    cache_dir: str | Path | None = None,
    workers: int = 1,
) -> tuple[Texts, Report]:
    """Encoded SFT rows of all sources, in their order, and the report; arguments and errors as of
    `load_pairs`.

    targets: `assistant` or `all` (`chat.encode_messages`); in rows of plain text every token is a
    target."""
    options = Options(
        max_tokens, None, "", targets, tokenizer.chat_template, on_bad_row, _sorted(columns)
    )
    table, report = _load(sources, tokenizer, options, limit, cache_dir, workers)
    return Texts(table), report


def load_splits(
    engine: Engine, data: Data, encode: Callable[[Sequence[str]], tuple[T, Report]]
) -> tuple[dict[str, T], dict[str, Report]]:
    """What `encode` makes of `data.train`, and of `data.eval` where there is any, the first rank of
    each node first, and the reports.

    Each report is told. Raises: the BadInput of `encode`, on every rank."""
    encoded: dict[str, T] = {}
    reports: dict[str, Report] = {}
    for split, sources in {"train": data.train, "eval": data.eval}.items():
        if sources:
            encoded[split], report = engine.local_rank0_first(lambda: encode(sources))
            require_unweighted(report)
            if split == "eval":
                report = {**report, **count_prompt_overlap(encoded["train"], encoded["eval"])}
            engine.log(format_report(report))
            reports[split] = report
    return encoded, reports


def encoding_resources() -> dict[str, object]:
    """Where encoded rows are kept (`$ZEPHYR_CACHE`, else ~/.cache/zephyr) and how many processes
    make them."""
    cache = Path(os.environ.get("ZEPHYR_CACHE") or Path.home() / ".cache" / "zephyr")
    return {"cache_dir": cache, "workers": len(os.sched_getaffinity(0))}


def format_report(report: Report) -> str:
    """The report in a few lines for the log; of the rows left out, the first five."""
    lines = [
        f"{report['kind']}: {report['examples']:,} of {report['rows_read']:,} rows from {', '.join(report['sources'])}"
    ]
    lines += [
        f"  {side}: {report['tokens'][side]:,} tokens; cut in {cut['rows']:,} rows, {cut['tokens']:,} tokens lost"
        for side, cut in report["cut"].items()
    ]
    lines += [f"  dropped, {why}: {count:,}" for why, count in report["dropped"].items() if count]
    if unread := report["keys_not_read"]:
        lines.append(
            "  keys not read: "
            + ", ".join(f"{key} ({rows:,} rows)" for key, rows in unread.items())
        )
    lines += [
        f"  warning: {what}: {of['rows']:,} rows, the first at {of['first'][0]}"
        for what, of in report["warnings"].items()
    ]
    if inverted := report["inverted"]:
        lines.append(
            f"  warning: the chosen answer is rated below the rejected one: {len(inverted):,} of {report['scored']:,} rows with "
            f"scores, the first at {inverted[0]}"
        )
    if shared := report.get("also_in_train", 0):
        lines.append(
            f"  warning: {shared:,} of {report['examples']:,} have a prompt that is in data.train too: they measure no generalisation"
        )
    if begun := report.get("begins_in_train", 0):
        lines.append(
            f"  warning: {begun:,} of {report['examples']:,} begin with a question that is in data.train too, and go on otherwise"
        )
    if skipped := report["skipped"]:
        lines += [
            f"  bad rows left out: {len(skipped):,}",
            *(f"    {row['place']}: {row['reason']}" for row in skipped[:5]),
        ]
    return "\n".join(lines)


def require_unweighted(report: Report) -> None:
    """Raises: BadInput where a pair has another weight than 1: the table keeps it, and no loss
    reads it yet."""
    if weighted := report.get("weighted"):
        raise BadInput(
            f"{weighted['first'][0]}: `weight` is not 1, in {weighted['rows']} rows; training does not apply weights, wanted 1; "
            "data.columns.weight=null trains all pairs alike"
        )


def count_prompt_overlap(train: Pairs | Texts, evaluation: Pairs | Texts) -> dict[str, int]:
    """How many examples of `evaluation` ask what one in `train` asks (`text_digests.prompt_digest`):
    `also_in_train` in all turns of the user, `begins_in_train` in the first turn alone. Plain text
    is one turn."""
    known = set(train.table["asked"].to_pylist())
    begun = {asked[: len(asked) // 2] for asked in known}
    asked = evaluation.table["asked"].to_pylist()
    whole = sum(words in known for words in asked)
    return {
        "also_in_train": whole,
        "begins_in_train": sum(words[: len(words) // 2] in begun for words in asked) - whole,
    }


def _load(
    specs: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    options: Options,
    limit: int | None,
    cache_dir: str | Path | None,
    workers: int,
) -> tuple[pa.Table, Report]:
    if not isinstance(options.template, str):
        raise BadInput(
            "the tokenizer has no chat template, wanted one set by chat.prepare_tokenizer"
        )
    if options.on_bad_row not in ("error", "skip"):
        raise BadInput(f"on_bad_row is {options.on_bad_row!r}, wanted 'error' or 'skip'")
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, wanted at least 1 row, or null")
    if isinstance(specs, str) or not specs:
        raise BadInput(f"the data sources are {specs!r}, wanted a list of at least one")
    for name, path in options.columns:
        if wanted := nearest_column(name):
            raise BadInput(f"data.columns.{name}: no field of a row is called so, {wanted}")
    _try_options(tokenizer, options)
    sources = open_sources(specs)
    code = [
        *Path(chat.__file__).parent.glob("*.py"),
        *(Path(__file__).with_name(f"{name}.py") for name in ENCODING_MODULES),
    ]
    key = encoding_digest(
        tokenizer,
        code,
        [
            repr(options),
            repr(limit),
            repr(list(specs)),
            *(part for source in sources for part in source[:2]),
        ],
    )

    def encode(writer: RecordBatchStreamWriter) -> Report:
        rows = (row for source in sources for row in source.rows())
        with closing(
            encoded_chunks(islice(rows, limit), tokenizer, options, workers)
        ) as chunks:  # its processes end with it
            return _encode_all(sources, chunks, options, writer)

    schema = TEXT_SCHEMA if options.max_prompt_tokens is None else PAIR_SCHEMA
    return cached_table(None if cache_dir is None else Path(cache_dir) / key, schema, encode)


def _try_options(tokenizer: PreTrainedTokenizerBase, options: Options) -> None:
    """Finds limits and templates that fail on every row before a row is blamed."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        if options.max_tokens < 2:
            raise ValueError(f"max_tokens is {options.max_tokens}, wanted at least 2")
        chat.encode_messages(tokenizer, turns, targets=options.targets, template=options.template)
        if options.max_prompt_tokens is not None:
            chat.truncate_pair(
                EncodedPair("", [0], [0], [0]),
                max_tokens=options.max_tokens,
                bos_id=None,
                max_prompt_tokens=options.max_prompt_tokens,
                truncation=options.truncation,
            )
    except ValueError as error:
        raise BadInput(str(error)) from error


@dataclass
class Tally:
    """What has been counted while rows were encoded. first: up to MAX_EXAMPLES places of each warning."""

    totals: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    warned: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    inverted: list[str] = field(default_factory=list)
    preferred: float = 0.0  # by how much the chosen answers are rated higher, all together
    places: dict[str, str] = field(default_factory=dict)  # id -> where the row with that id stands
    seen: set[bytes] = field(default_factory=set)  # digests of ids, and of words

    def warn(self, what: str, place: str) -> None:
        self.warned[what] += 1
        self.first.setdefault(what, []).extend([place] if self.warned[what] <= MAX_EXAMPLES else [])


def _encode_all(
    sources: list[Source],
    chunks: Iterator[Chunk],
    options: Options,
    writer: RecordBatchStreamWriter,
) -> Report:
    """Writes every example, a batch per chunk; the report says what else there was."""
    sides = ("text",) if options.max_prompt_tokens is None else ("prompt", "chosen", "rejected")
    tally = Tally(dropped=Counter({empty_after_truncation(options): 0}))
    for chunk in chunks:
        tally.totals["rows"] += len(chunk.encoded) + len(chunk.skipped) + chunk.dropped.total()
        tally.dropped.update(chunk.dropped)
        bad, kept, asked = list(chunk.skipped), [], []
        for item in chunk.encoded:
            id = item.example.id
            if id in tally.places:
                bad.append(
                    (
                        item.place,
                        f"`id` {id!r:.60} is also the id of {tally.places[id]}, wanted one of its own",
                    )
                )
                continue
            tally.places[id] = item.place
            kept.append(item.example)
            asked.append(item.prompt_digest)
            _count(tally, item, sides)
        for place, reason in bad:
            if options.on_bad_row == "error":
                raise BadInput(f"{place}: {reason}")
            tally.skipped.append({"place": place, "reason": reason})
        if kept:
            writer.write_batch(example_batch(kept, asked))
    return _report([source.name for source in sources], sides, tally, options)


def _count(tally: Tally, item: Encoded, sides: tuple[str, ...]) -> None:
    """What the report says of an example that is kept."""
    example = item.example
    tally.totals["examples"] += 1
    tally.unread.update(item.unread)
    tally.found.update(item.found)
    if item.margins:
        tally.totals["scored"] += 1
        tally.preferred += sum(item.margins) / len(item.margins)
        tally.inverted += [item.place] if min(item.margins) < 0 else []
    for side, ids, lost in zip(sides, example[1:], item.truncated_tokens):
        tally.totals.update(
            {f"{side} tokens": len(ids), f"{side} rows cut": lost > 0, f"{side} lost": lost}
        )
    for what in item.suspicions:
        tally.warn(what, item.place)
    ids = (
        [example.ids]
        if len(sides) == 1
        else [example.prompt_ids, example.chosen_ids, example.rejected_ids]
    )
    this = {_digest(*ids), b"".join(item.text_digests)}  # equal once cut, or by their words
    if not this.isdisjoint(tally.seen):
        tally.warn("the same example again", item.place)
    if len(sides) == 3 and not {
        _digest(ids[0], ids[2], ids[1]),
        item.text_digests[0] + item.text_digests[2] + item.text_digests[1],
    }.isdisjoint(tally.seen):
        tally.warn("the opposite of an earlier pair, chosen and rejected exchanged", item.place)
    if len(sides) == 3 and example.weight != 1:
        tally.warn(WEIGHTED, item.place)
    tally.seen |= this


def _digest(*parts: Iterable[int]) -> bytes:
    """128 bits of lists of ids."""
    arrays = [np.asarray(part, np.int32) for part in parts]
    return hashlib.blake2b(
        b"".join(len(ids).to_bytes(8, "little") + ids.tobytes() for ids in arrays), digest_size=16
    ).digest()


def _report(names: list[str], sides: tuple[str, ...], tally: Tally, options: Options) -> Report:
    """What JSON keeps of a load. Raises: BadInput where no example is left, naming the sources, or
    where no row has a column."""
    pairs, totals = len(sides) == 3, tally.totals
    if not totals["examples"]:
        first = (
            f"; the first bad row is {tally.skipped[0]['place']}: {tally.skipped[0]['reason']}"
            if tally.skipped
            else ""
        )
        why = "; ".join(tally.dropped)
        raise BadInput(
            f"no {'pair' if pairs else 'text'} is left of the {totals['rows']} rows of {', '.join(names)}: "
            f"{len(tally.skipped)} bad, {tally.dropped.total()} dropped ({why}){first}"
        )
    for name, path in options.columns:
        if path is not None and not tally.found[name]:
            raise BadInput(
                f"data.columns.{name}: no row of {', '.join(names)} has {path!r}, wanted a field of them, or null"
            )
    warnings = {
        what: {"rows": tally.warned[what], "first": first} for what, first in tally.first.items()
    }
    weighted = warnings.pop(WEIGHTED, None)
    return {
        "kind": "pairs" if pairs else "texts",
        "sources": names,
        "rows_read": totals["rows"],
        "examples": totals["examples"],
        "rows_skipped": len(tally.skipped),
        "skipped": tally.skipped,
        "scored": totals["scored"],
        "inverted": tally.inverted,
        "mean_preference": tally.preferred / totals["scored"] if totals["scored"] else None,
        "weighted": weighted,
        "columns": dict(tally.found),
        "keys_not_read": dict(sorted(tally.unread.items())),
        "warnings": warnings,
        "dropped": dict(tally.dropped),
        "tokens": {side: totals[f"{side} tokens"] for side in sides},
        "cut": {
            side: {"rows": totals[f"{side} rows cut"], "tokens": totals[f"{side} lost"]}
            for side in sides
        },
    }


def _sorted(columns: Mapping[str, str | None] | None) -> tuple[tuple[str, str | None], ...]:
    return tuple(sorted((columns or {}).items()))
