"""What the script of `ultrafeedback_binarized` does around its rule: prompts that are left out
before any draw, and the test rows that are split off at the end.

The script is create_dataset.py of HuggingFaceH4/ultrafeedback_binarized. It drops TruthfulQA's
source and prompts, applies the rule `handbook` to each row with seed 42, drops rows without two
completions (its score of -100), and splits by `datasets`' train_test_split.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows
from zephyr.distill import clean
from zephyr.distill.selection import Made

Ints = npt.NDArray[np.int64]

# Reasons for which a row is no pair here, though the script keeps it: it counts for the split.
KEPT_BY_SCRIPT = ("texts equal", "texts equal but for white space", "a text is empty")


def read_prompts(files: Sequence[str]) -> frozenset[str]:
    """The prompts of rows, to be left out where an instruction is the same text.

    Args: files: `path-or-hub-id[:split]` of rows with one of `clean.PROMPT_FIELDS`.
    Raises: BadInput for a file without a prompt.
    """
    found: set[str] = set()
    for file in files:
        prompts = {prompt for _, row in read_rows([file]) for prompt in clean.prompts(row)}
        if not prompts:
            raise BadInput(
                f"{file}: no prompt found, expected rows with one of the fields "
                f"{', '.join(clean.PROMPT_FIELDS)}"
            )
        found |= prompts
    return frozenset(found)


def test_file(out: Path) -> Path:
    """Where the test pairs go: pairs.test.jsonl beside pairs.jsonl."""
    return out.with_name(f"{out.stem}.test{out.suffix}")


def store_row(database: sqlite3.Connection, made: Made | None) -> None:
    """Keep a row's pair until all rows are read. None: the script keeps the row, but it is no
    pair."""
    text = None if made is None else json.dumps(made)
    database.execute("insert into pool (on_pair) values (?)", (text,))


def split_rows(
    database: sqlite3.Connection, test_rows: int, seed: int
) -> tuple[Iterator[Made], Iterator[Made]]:
    """The stored pairs for training, and those of the test rows. Raises: BadInput."""
    (rows,) = database.execute("select count(*) from pool").fetchone()
    train, test = split_order(rows, test_rows, seed)
    return pairs_at(database, train), pairs_at(database, test)


def split_order(rows: int, test_rows: int, seed: int) -> tuple[Ints, Ints]:
    """The rows of the training and of the test split, each in the order of the published set.

    As `datasets`' train_test_split(test_rows, seed): the first of a permutation by numpy are the
    test rows. The script splits those again in halves, and puts the second half, which is also
    test_sft, in front.

    Raises: BadInput where no row is left for training.
    """
    if rows <= test_rows:
        raise BadInput(
            f"binarize: --test-rows {test_rows}: the rows give {rows} pairs, expected more than "
            f"{test_rows}"
        )
    order = np.random.default_rng(seed).permutation(rows)
    test, train = order[:test_rows], order[test_rows:]
    halves = np.random.default_rng(seed).permutation(test_rows)
    second = (test_rows + 1) // 2  # train_test_split rounds the test part up
    return train, test[np.concatenate([halves[second:], halves[:second]])]


def pairs_at(database: sqlite3.Connection, order: Ints) -> Iterator[Made]:
    """The stored pairs in an order of rows, without the rows that are none."""
    for row in order.tolist():
        (text,) = database.execute(
            "select on_pair from pool where number = ?", (row + 1,)
        ).fetchone()
        if text is not None:
            yield Made(*json.loads(text))
