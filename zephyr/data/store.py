"""Encoded examples lie in an Arrow table: `Pairs`, `Texts`, and the cache of tables on disk.

An entry of the cache is named by a digest of all that made it, and holds a digest of its own bytes:
an entry that a disk or a person changed is encoded again, never trained on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.ipc import RecordBatchStreamWriter

from zephyr.chat import EncodedPair, EncodedText
from zephyr.data.text_digests import NO_DIGEST
from zephyr.training.files import synced_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zephyr.data.report import Report

IDS = pa.list_(pa.int32())
PAIR_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_ids", IDS),
        ("chosen_ids", IDS),
        ("rejected_ids", IDS),
        ("weight", pa.float64()),
        ("asked", pa.binary()),
    ]
)
TEXT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("ids", IDS),
        ("is_target", pa.list_(pa.bool_())),
        ("target_tokens", pa.int64()),
        ("asked", pa.binary()),
    ]
)
ROWS_FILE, REPORT_FILE, DIGEST_FILE = "examples.arrow", "report.json", "sha256"


class Pairs(Sequence[EncodedPair]):
    """Encoded pairs, decoded from the table one at a time.

    ids: of the rows. prompt_tokens, chosen_tokens, rejected_tokens: int64 [len(self)]. weights:
    float64 [len(self)]."""

    def __init__(self, table: pa.Table, entry: Path | None = None) -> None:
        """Args: entry: the folder of the cache that holds the table; None: it is in memory."""
        self.table, self.entry = table, entry
        self.digest: str | None = None  # see `content_digest`
        self.ids: list[str] = table["id"].to_pylist()
        self.prompt_tokens = _lengths(table, "prompt_ids")
        self.chosen_tokens = _lengths(table, "chosen_ids")
        self.rejected_tokens = _lengths(table, "rejected_ids")
        self.weights: npt.NDArray[np.float64] = table["weight"].to_numpy()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> EncodedPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedPair]: ...
    def __getitem__(self, index: int | slice) -> EncodedPair | list[EncodedPair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return EncodedPair(*_values(self.table, EncodedPair._fields, index))


class Texts(Sequence[EncodedText]):
    """Encoded texts, decoded from the table one at a time.

    ids: of the rows. tokens, target_tokens: all tokens of each text, and its targets, int64
    [len(self)]."""

    def __init__(self, table: pa.Table, entry: Path | None = None) -> None:
        """Args: entry: the folder of the cache that holds the table; None: it is in memory."""
        self.table, self.entry = table, entry
        self.digest: str | None = None  # see `content_digest`
        self.ids: list[str] = table["id"].to_pylist()
        self.tokens = _lengths(table, "ids")
        self.target_tokens: npt.NDArray[np.int64] = table["target_tokens"].to_numpy()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> EncodedText: ...
    @overload
    def __getitem__(self, index: slice) -> list[EncodedText]: ...
    def __getitem__(self, index: int | slice) -> EncodedText | list[EncodedText]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return EncodedText(*_values(self.table, EncodedText._fields, index))


def example_batch(
    examples: Sequence[EncodedPair] | Sequence[EncodedText] | Sequence[EncodedPair | EncodedText],
    asked: Sequence[bytes] = (),
) -> pa.RecordBatch:
    """The examples, all of one kind, as rows of `PAIR_SCHEMA` or `TEXT_SCHEMA`.

    asked: `text_digests.prompt_digest` of each, if it is known."""
    columns: list[list[object]] = [list(column) for column in zip(*examples)]
    schema = PAIR_SCHEMA
    if isinstance(examples[0], EncodedText):
        schema = TEXT_SCHEMA
        columns.append([sum(text.is_target) for text in examples if isinstance(text, EncodedText)])
    columns.append(list(asked) or [NO_DIGEST] * len(examples))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema)]
    return pa.record_batch(arrays, schema=schema)


def cached_table(
    entry: Path | None, schema: pa.Schema, fill: Callable[[RecordBatchStreamWriter], Report]
) -> tuple[pa.Table, Report]:
    """The table that `fill` writes and the report that it returns, kept in the folder `entry`.

    An entry that exists is read, `fill` is not called. A new entry is written to a temporary
    folder, synced and renamed: it is whole or absent, and of two processes that make it, one wins.
    A damaged entry is reported on standard error and made again. entry None: in memory only."""
    if entry is None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            report = fill(writer)
        return pa.ipc.open_stream(sink.getvalue()).read_all(), report
    damage = find_damage(entry)
    if damage:
        if os.path.lexists(entry):
            print(
                f"cache of encoded rows: {entry} is damaged ({damage}); the rows are encoded again",
                file=sys.stderr,
            )
        _write_entry(entry, schema, fill)
    return read_entry(entry)


def read_entry(entry: Path) -> tuple[pa.Table, Report]:
    """The table of an entry of the cache, and its report. The table is mapped: all processes of a
    node that read it share its memory."""
    report = json.loads((entry / REPORT_FILE).read_text(encoding="utf-8"))
    return pa.ipc.open_stream(pa.memory_map(str(entry / ROWS_FILE))).read_all(), report


def open_entry(entry: Path) -> tuple[Pairs | Texts, Report]:
    """The examples of an entry that another process of this node has just written or checked."""
    table, report = read_entry(entry)
    kind = Pairs if table.schema.equals(PAIR_SCHEMA) else Texts
    return kind(table, entry), report


def _write_entry(
    entry: Path, schema: pa.Schema, fill: Callable[[RecordBatchStreamWriter], Report]
) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".writing-", dir=entry.parent))
    try:
        with (
            pa.OSFile(str(part / ROWS_FILE), "wb") as file,
            pa.ipc.new_stream(file, schema) as writer,
        ):
            report = fill(writer)
        (part / REPORT_FILE).write_text(
            json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8"
        )
        (part / DIGEST_FILE).write_text(entry_digest(part, entry.name), encoding="ascii")
        publish(part, entry)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def find_damage(entry: Path) -> str | None:
    """What is wrong with an entry of the cache; None if it is as it was written."""
    try:
        same = (entry / DIGEST_FILE).read_bytes().decode("ascii") == entry_digest(entry, entry.name)
    except (OSError, UnicodeDecodeError) as error:
        return str(error)
    return None if same else "its bytes are not those of its digest"


def entry_digest(folder: Path, key: str) -> str:
    """SHA-256 over the entry's key, rows and report; syncs both files to disk."""
    parts = [key, *(synced_digest(folder / name) for name in (ROWS_FILE, REPORT_FILE))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def publish(part: Path, entry: Path) -> None:
    """Rename the new folder to its place, replacing a damaged one. Another process may have been
    first, with the same bytes: its entry stays."""
    sync(part / DIGEST_FILE)
    sync(part)
    try:
        os.rename(part, entry)
    except OSError:
        if not find_damage(entry):
            return
        damaged = part.with_name(f"{part.name}-damaged")
        with contextlib.suppress(FileNotFoundError):  # another process moved it away
            os.rename(entry, damaged)
        if damaged.is_file():
            damaged.unlink()
        shutil.rmtree(damaged, ignore_errors=True)
        os.rename(part, entry)
    sync(entry.parent)


def sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def encoding_digest(
    tokenizer: PreTrainedTokenizerBase, code: Iterable[Path], parts: Iterable[str]
) -> str:
    """SHA-256 over the tokenizer, the code that encodes, the versions of the tokenizing libraries,
    and `parts`."""
    digest = hashlib.sha256()
    if tokenizer.is_fast:
        vocabulary = tokenizer.backend_tokenizer.to_str()
    else:
        vocabulary = json.dumps(
            [type(tokenizer).__qualname__, tokenizer.get_vocab(), repr(tokenizer)], sort_keys=True
        )
    names = [
        vocabulary,
        repr(tokenizer.special_tokens_map),
        version("transformers"),
        version("tokenizers"),
        *(path.read_text(encoding="utf-8") for path in sorted(code)),
        *parts,
    ]
    for name in names:
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
    return digest.hexdigest()


def content_digest(examples: Pairs | Texts) -> str:
    """SHA-256 over all columns but the prompts' digests, in the order of the examples; computed
    once."""
    if examples.digest is None:
        examples.digest = _content_digest(examples)
    return examples.digest


def _content_digest(examples: Pairs | Texts) -> str:
    digest = hashlib.sha256()
    for column in examples.table.drop_columns("asked").columns:
        for chunk in column.chunks:
            if pa.types.is_string(chunk.type):
                digest.update(repr(chunk.to_pylist()).encode("utf-8", "surrogatepass"))
                continue
            if pa.types.is_list(chunk.type):  # lengths, then values, whatever buffers they lie in
                digest.update(pc.list_value_length(chunk).to_numpy().tobytes())
                chunk = chunk.flatten()
            digest.update(chunk.to_numpy(zero_copy_only=False).tobytes())
    return digest.hexdigest()


def _lengths(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    lengths: npt.NDArray[np.int64]
    lengths = pc.cast(pc.list_value_length(table[name]), pa.int64()).to_numpy()
    return lengths


def _values(table: pa.Table, names: Sequence[str], index: int) -> list[Any]:
    """One row's values of the named columns, in the types of `PAIR_SCHEMA` or `TEXT_SCHEMA`."""
    return [table[name][int(index)].as_py() for name in names]
