"""Files of pair rows, and what loading them gave: for the tests of zephyr.data."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

from zephyr.data.store import Pairs


def jsonl(path: Path, rows: Iterable[object]) -> str:
    text = "".join(
        (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n"
        for row in rows
    )
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def pair_rows(count: int) -> list[dict[str, object]]:
    answers = [{"chosen": f"good {i} " * (i % 7 + 1), "rejected": f"bad {i}"} for i in range(count)]
    return [{"prompt": f"question {i}", **answer} for i, answer in enumerate(answers)]


def contents(pairs: Pairs) -> list[tuple[list[int], ...]]:
    return [pair[1:] for pair in pairs]
