"""A table becomes a file in the format that its name says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from zephyr.config import BadInput
from zephyr.training.files import atomic_writer

if TYPE_CHECKING:
    import pyarrow as pa


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a table as .parquet, .csv (lists as JSON, null as nothing, texts quoted), else .jsonl.

    The file is there whole, or as it was before.
    Raises: BadInput if the disk refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_writer(path) as file:
            if path.suffix == ".parquet":
                from pyarrow import parquet

                parquet.write_table(table, file)
            elif path.suffix == ".csv":
                from pyarrow import csv

                csv.write_csv(without_lists(table), file)
            else:
                for row in table.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise BadInput(f"--out: {path} can't be written: {error.strerror or error}") from None


def without_lists(table: "pa.Table") -> "pa.Table":
    """The table with each list as its JSON."""
    import pyarrow as pa

    for number, field in enumerate(table.schema):
        if pa.types.is_list(field.type):
            texts = [json.dumps(value, ensure_ascii=False) for value in table[number].to_pylist()]
            table = table.set_column(number, field.name, pa.array(texts))
    return table
