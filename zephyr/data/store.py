"""Here encoded examples lie in an Arrow table, on disk under a digest of all that made them, read
as they are asked for.

Each entry of the cache holds a digest of its own bytes: what a disk or a person changed there is
never trained on."""

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

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow.ipc import RecordBatchStreamWriter
from transformers import PreTrainedTokenizerBase

from zephyr.chat import EncodedPair, EncodedText
from zephyr.data.text_digests import NO_DIGEST
from zephyr.training.files import synced_digest

Report = dict[str, object]
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
    """Encoded pairs; `ids`: of the rows, `*_tokens`: tokens of each pair's side, int64 [len(self)];
    `weights`: float64 [len(self)]."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.ids: list[str] = table["id"].to_pylist()
        self.prompt_tokens: np.ndarray = _lengths(table, "prompt_ids")
        self.chosen_tokens: np.ndarray = _lengths(table, "chosen_ids")
        self.rejected_tokens: np.ndarray = _lengths(table, "rejected_ids")
        self.weights: np.ndarray = table["weight"].to_numpy()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> EncodedPair:
        return EncodedPair(*(self.table[name][int(index)].as_py() for name in EncodedPair._fields))


class Texts(Sequence[EncodedText]):
    """Encoded texts; `ids`: of the rows; `tokens`, `target_tokens`: all tokens of each, and the
    targets, int64 [len(self)]."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.ids: list[str] = table["id"].to_pylist()
        self.tokens: np.ndarray = _lengths(table, "ids")
        self.target_tokens: np.ndarray = table["target_tokens"].to_numpy()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> EncodedText:
        return EncodedText(*(self.table[name][int(index)].as_py() for name in EncodedText._fields))


def example_batch(
    examples: Sequence[EncodedPair | EncodedText], asked: Sequence[bytes] = ()
) -> pa.RecordBatch:
    """The examples, all of one kind, as rows of `PAIR_SCHEMA` or `TEXT_SCHEMA`; asked:
    `text_digests.prompt_digest` of each, if it is known."""
    columns = [list(column) for column in zip(*examples)]
    schema = PAIR_SCHEMA
    if isinstance(examples[0], EncodedText):
        schema = TEXT_SCHEMA
        columns.append([sum(flags) for flags in columns[2]])
    columns.append(list(asked) or [NO_DIGEST] * len(examples))
    return pa.record_batch(
        [pa.array(column, field.type) for column, field in zip(columns, schema)], schema=schema
    )


def cached_table(
    entry: Path | None, schema: pa.Schema, fill: Callable[[RecordBatchStreamWriter], Report]
) -> tuple[pa.Table, Report]:
    """The table and report that `fill` makes; from the folder `entry` where they lie there, else
    kept there, None: in memory.

    An entry appears whole or not at all: it is written aside, synced and renamed. Of two processes
    that make it, one wins. One whose files are not those of its digest is said to be damaged, and
    made again."""
    if entry is None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            report = fill(writer)
        return pa.ipc.open_stream(sink.getvalue()).read_all(), report
    if damage := find_damage(entry):
        if os.path.lexists(entry):
            print(
                f"cache of encoded rows: {entry} is damaged ({damage}); the rows are encoded again",
                file=sys.stderr,
            )
        entry.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".writing-", dir=entry.parent))
        try:
            with (
                pa.OSFile(str(aside / ROWS_FILE), "wb") as file,
                pa.ipc.new_stream(file, schema) as writer,
            ):
                report = fill(writer)
            (aside / REPORT_FILE).write_text(
                json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8"
            )
            (aside / DIGEST_FILE).write_text(entry_digest(aside, entry.name), encoding="ascii")
            publish(aside, entry)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    report = json.loads((entry / REPORT_FILE).read_text(encoding="utf-8"))
    return pa.ipc.open_stream(pa.memory_map(str(entry / ROWS_FILE))).read_all(), report


def find_damage(entry: Path) -> str | None:
    """What is wrong with an entry of the cache; None where it is as it was written."""
    try:
        same = (entry / DIGEST_FILE).read_bytes().decode("ascii") == entry_digest(entry, entry.name)
    except (OSError, UnicodeDecodeError) as error:
        return str(error)
    return None if same else "its bytes are not those of its digest"


def entry_digest(folder: Path, key: str) -> str:
    """SHA-256 over the entry's key, rows and report; both files are then on the disk, not only in
    the system's memory."""
    parts = [key, *(synced_digest(folder / name) for name in (ROWS_FILE, REPORT_FILE))]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def publish(aside: Path, entry: Path) -> None:
    """Rename the new folder to its place, in place of a damaged one; another process may have been
    first, with the same bytes."""
    sync(aside / DIGEST_FILE)
    sync(aside)
    try:
        os.rename(aside, entry)
    except OSError:
        if not find_damage(entry):
            return
        damaged = aside.with_name(f"{aside.name}-damaged")
        with contextlib.suppress(FileNotFoundError):  # another process moved it away
            os.rename(entry, damaged)
        if damaged.is_file():
            damaged.unlink()
        shutil.rmtree(damaged, ignore_errors=True)
        os.rename(aside, entry)
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
    """SHA-256 over the tokenizer, the source files that encode, the tokenizing libraries' versions,
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
    """SHA-256 of all ids and flags of all examples, in their order."""
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


def _lengths(table: pa.Table, name: str) -> np.ndarray:
    return pc.cast(pc.list_value_length(table[name]), pa.int64()).to_numpy()
