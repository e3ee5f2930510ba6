"""Reads the rows of a parquet file in bounded memory: a few kB can hold gigabytes of values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ArrowException, BufferReader, parquet

from zephyr.config import BadInput

MAX_ROW_BYTES = 2**26  # of a row, unpacked
MAX_VALUES = 2**28  # of a column in a row group: 2^32 equal values take a few bytes in the file
LARGE_GROUP_BYTES = 2**31  # larger row groups are read `PART_ROWS` rows at a time
PART_ROWS = 1000
TEXT_TYPES = ("STRING", "NONE", "JSON", "ENUM")  # logical types of columns read as dictionaries


def parquet_rows(path: Path, data: bytes | None) -> Iterator[object]:
    """The rows of a file, each a dict. data: the file's bytes if they are not those at `path`.

    In memory are at most `MAX_ROW_BYTES` of decoded rows beside the packed row group. Texts are
    read as indices into a dictionary: a file can hold one long text a thousand times.
    Raises: BadInput for a row over `MAX_ROW_BYTES` or a row group over `MAX_VALUES`; OSError for a
        damaged file."""
    try:
        yield from _rows(path, data)
    except ArrowException as error:
        raise OSError(str(error)) from error


def _rows(path: Path, data: bytes | None) -> Iterator[object]:
    schema = parquet.ParquetFile(path if data is None else BufferReader(data)).schema
    columns = [schema.column(i) for i in range(len(schema))]
    texts = [
        column.path
        for column in columns
        if column.physical_type == "BYTE_ARRAY" and column.logical_type.type in TEXT_TYPES
    ]
    table = parquet.ParquetFile(path if data is None else BufferReader(data), read_dictionary=texts)
    rows_before = 0
    for group in range(table.num_row_groups):
        metadata = table.metadata.row_group(group)
        values = [metadata.column(i).num_values for i in range(metadata.num_columns)]
        most_values = max(values, default=0)
        if most_values > MAX_VALUES:
            raise BadInput(
                f"{path}: its row group {group} holds {most_values} values, expected at most "
                f"{MAX_VALUES}; write it in smaller row groups"
            )
        small = metadata.total_byte_size < LARGE_GROUP_BYTES
        batch_rows = metadata.num_rows if small else PART_ROWS
        for batch in table.iter_batches(batch_size=max(batch_rows, 1), row_groups=[group]):
            for part in _parts(batch, path, rows_before):
                yield from part.to_pylist()
            rows_before += len(batch)


def _parts(batch: pa.RecordBatch, path: Path, rows_before: int) -> Iterator[pa.RecordBatch]:
    """The batch in parts of at most `MAX_ROW_BYTES` bytes and `PART_ROWS` rows. rows_before: rows
    of the file before the batch.

    Raises: BadInput naming a row that is over the limit by itself."""
    bytes_R = np.zeros(len(batch), np.int64)
    for column in batch.columns:
        bytes_R = bytes_R + row_bytes(column)
    ends_R = np.cumsum(bytes_R)
    start = 0
    while start < len(batch):
        if bytes_R[start] > MAX_ROW_BYTES:
            raise BadInput(
                f"{path}, row {rows_before + start + 1}: the row holds {bytes_R[start]} bytes, "
                f"expected at most {MAX_ROW_BYTES}; split or remove it"
            )
        last_byte = MAX_ROW_BYTES + ends_R[start] - bytes_R[start]
        end = min(int(np.searchsorted(ends_R, last_byte, side="right")), start + PART_ROWS)
        yield batch.slice(start, end - start)
        start = end


def row_bytes(array: pa.Array) -> npt.NDArray[np.int64]:
    """How many bytes each value of the array takes by itself, int64 [len(array)]."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        word_bytes = np.append(row_bytes(array.dictionary), 0)  # the last: of null
        return _int64(word_bytes[array.indices.fill_null(len(array.dictionary)).to_numpy()])
    if pa.types.is_struct(kind):
        total = np.full(len(array), 8)
        for field in array.flatten():
            total = total + row_bytes(field)
        return _int64(total)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind):
        ends = np.append(0, np.cumsum(row_bytes(array.values)))
        return _int64(np.diff(ends[array.offsets.to_numpy()]) + 8)
    if (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
    ):
        return _int64(pc.binary_length(array).fill_null(0).to_numpy()) + 8
    return np.full(len(array), -(-array.nbytes // max(len(array), 1)))


def _int64(values: npt.ArrayLike) -> npt.NDArray[np.int64]:
    return np.asarray(values, np.int64)
