"""Here sources become encoded examples with ids of their own, and a report of what was cut or left out."""
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
from pyarrow.ipc import RecordBatchStreamWriter
from transformers import PreTrainedTokenizerBase

from zephyr import chat
from zephyr.chat import EncodedPair
from zephyr.config import BadInput, Data
from zephyr.data.sources import Source, open_sources
from zephyr.data.store import PAIR_SCHEMA, TEXT_SCHEMA, Pairs, Report, Texts, cached_table, digest_of, example_batch
from zephyr.data.workers import Chunk, Options, encoded_chunks
from zephyr.training.engine import Engine

T = TypeVar("T")
OWN_CODE = ("encode", "rows", "sources", "store", "workers")  # modules here that decide what an example is


def load_pairs(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 1024,
               max_prompt_tokens: int = 512, truncation: str = "keep_end", limit: int | None = None, on_bad_row: str = "error",
               cache_dir: str | Path | None = None, workers: int = 1) -> tuple[Pairs, Report]:
    """Encoded preference pairs of all sources, in their order, and the report of what was cut or left out.

    Args: sources: `path-or-hub-id[:split]`; tokenizer: with its `chat_template` set (`load_tokenizer`); limit: rows read at most, of
    all sources together; on_bad_row: `error`, or `skip` (counted and listed); cache_dir: where encoded rows are kept under a digest of
    data, tokenizer, options and code, None: in memory only; workers: processes that encode.
    Returns: `Pairs`, a sequence of `EncodedPair`, and the report (`format_report` prints it), which JSON can hold.
    Raises: BadInput, naming file, line and field, for a bad row, source or option, two rows of one id, or no pair left."""
    options = Options(max_tokens, max_prompt_tokens, truncation, "assistant", tokenizer.chat_template, on_bad_row)
    table, report = _load(sources, tokenizer, options, limit, cache_dir, workers)
    return Pairs(table), report


def load_texts(sources: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int = 2048,
               targets: str = "assistant", limit: int | None = None, on_bad_row: str = "error", cache_dir: str | Path | None = None,
               workers: int = 1) -> tuple[Texts, Report]:
    """Encoded SFT rows of all sources, in their order, and the report; arguments and errors as of `load_pairs`.

    targets: `assistant` or `all` (`chat.encode_messages`); in rows of plain text every token is a target."""
    options = Options(max_tokens, None, "", targets, tokenizer.chat_template, on_bad_row)
    table, report = _load(sources, tokenizer, options, limit, cache_dir, workers)
    return Texts(table), report


def load_splits(engine: Engine, data: Data,
                encode: Callable[[Sequence[str]], tuple[T, Report]]) -> tuple[dict[str, T], dict[str, Report]]:
    """What `encode` makes of `data.train`, and of `data.eval` where there is any, the first rank of
    each node first, and the reports.

    Each report is told. Raises: the BadInput of `encode`, on every rank."""
    encoded: dict[str, T] = {}
    reports: dict[str, Report] = {}
    for split, sources in {"train": data.train, "eval": data.eval}.items():
        if sources:
            encoded[split], reports[split] = engine.rank0_first(lambda: encode(sources))
            engine.say(format_report(reports[split]))
    return encoded, reports


def encoding_resources() -> dict[str, object]:
    """Where encoded rows are kept (`$ZEPHYR_CACHE`, else ~/.cache/zephyr) and how many processes make them."""
    cache = Path(os.environ.get("ZEPHYR_CACHE") or Path.home() / ".cache" / "zephyr")
    return {"cache_dir": cache, "workers": len(os.sched_getaffinity(0))}


def format_report(report: Report) -> str:
    """The report in a few lines for the log; of the rows left out, the first five."""
    lines = [f"{report['kind']}: {report['examples']:,} of {report['rows_read']:,} rows from {', '.join(report['sources'])}"]
    lines += [f"  {side}: {report['tokens'][side]:,} tokens; cut in {cut['rows']:,} rows, {cut['tokens']:,} tokens lost"
              for side, cut in report["cut"].items()]
    lines += [f"  dropped, {why}: {count:,}" for why, count in report["dropped"].items() if count]
    if skipped := report["skipped"]:
        lines += [f"  bad rows left out: {len(skipped):,}", *(f"    {row['place']}: {row['reason']}" for row in skipped[:5])]
    return "\n".join(lines)


def _load(specs: Sequence[str], tokenizer: PreTrainedTokenizerBase, options: Options, limit: int | None, cache_dir: str | Path | None,
          workers: int) -> tuple[pa.Table, Report]:
    if not isinstance(options.template, str):
        raise BadInput("the tokenizer has no chat template, wanted one set by chat.prepare_tokenizer")
    if options.on_bad_row not in ("error", "skip"):
        raise BadInput(f"on_bad_row is {options.on_bad_row!r}, wanted 'error' or 'skip'")
    if limit is not None and limit < 1:
        raise BadInput(f"limit is {limit}, wanted at least 1 row, or null")
    if isinstance(specs, str) or not specs:
        raise BadInput(f"the data sources are {specs!r}, wanted a list of at least one")
    _try_options(tokenizer, options)
    sources = open_sources(specs)
    code = [*Path(chat.__file__).parent.glob("*.py"), *(Path(__file__).with_name(f"{name}.py") for name in OWN_CODE)]
    key = digest_of(tokenizer, code, [repr(options), repr(limit), *(part for source in sources for part in source[:2])])

    def encode(writer: RecordBatchStreamWriter) -> Report:
        rows = (row for source in sources for row in source.rows())
        with closing(encoded_chunks(islice(rows, limit), tokenizer, options, workers)) as chunks:       # its processes end with it
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
            chat.truncate_pair(EncodedPair("", [0], [0], [0]), max_tokens=options.max_tokens, bos_id=None,
                               max_prompt_tokens=options.max_prompt_tokens, truncation=options.truncation)
    except ValueError as error:
        raise BadInput(str(error)) from error


def _encode_all(sources: list[Source], chunks: Iterator[Chunk], options: Options, writer: RecordBatchStreamWriter) -> Report:
    """Writes every example, a batch per chunk; the report says what else there was."""
    sides = ("text",) if options.max_prompt_tokens is None else ("prompt", "chosen", "rejected")
    totals: Counter[str] = Counter()
    skipped, inverted = [], []
    places: dict[str, str] = {}  # id -> where the row with that id stands
    for chunk in chunks:
        totals.update(rows=len(chunk.encoded) + len(chunk.skipped) + chunk.dropped, dropped=chunk.dropped)
        bad, kept = list(chunk.skipped), []
        for item in chunk.encoded:
            id = item.example.id
            if id in places:
                bad.append((item.place, f"`id` {id!r:.60} is also the id of {places[id]}, wanted one of its own"))
                continue
            places[id] = item.place
            kept.append(item.example)
            totals["examples"] += 1
            if item.preference is not None:
                totals["scored"] += 1
                inverted += [item.place] if item.preference < 0 else []
            for side, ids, lost in zip(sides, item.example[1:], item.lost):
                totals.update({f"{side} tokens": len(ids), f"{side} rows cut": lost > 0, f"{side} lost": lost})
        for place, reason in bad:
            if options.on_bad_row == "error":
                raise BadInput(f"{place}: {reason}")
            skipped.append({"place": place, "reason": reason})
        if kept:
            writer.write_batch(example_batch(kept))
    return _report([source.name for source in sources], sides, totals, skipped, inverted)


def _report(names: list[str], sides: tuple[str, ...], totals: Counter[str], skipped: list[dict[str, str]], inverted: list[str]) -> Report:
    """What JSON keeps of a load. Raises: BadInput where no example is left, naming the sources."""
    pairs = len(sides) == 3
    why_dropped = "both sides equal once encoded and cut" if pairs else "no target left after the cut"
    if not totals["examples"]:
        first = f"; the first bad row is {skipped[0]['place']}: {skipped[0]['reason']}" if skipped else ""
        raise BadInput(f"no {'pair' if pairs else 'text'} is left of the {totals['rows']} rows of {', '.join(names)}: "
                       f"{len(skipped)} bad, {totals['dropped']} dropped ({why_dropped}){first}")
    return {"kind": "pairs" if pairs else "texts", "sources": names, "rows_read": totals["rows"],
            "examples": totals["examples"], "rows_skipped": len(skipped), "skipped": skipped, "scored": totals["scored"],
            "inverted": inverted, "dropped": {why_dropped: totals["dropped"]}, "tokens": {side: totals[f"{side} tokens"] for side in sides},
            "cut": {side: {"rows": totals[f"{side} rows cut"], "tokens": totals[f"{side} lost"]} for side in sides}}
