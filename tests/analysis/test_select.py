"""Rules select pairs, and the rows of a new training set are the rows that were read."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pair_files import jsonl
from test_pair_texts import run_of, trained_ids

from zephyr.analysis.select import select_pairs, selected_rows
from zephyr.config import BadInput

TABLE = pa.table(
    {
        "id": ["a", "b", "c", "d", "e"],
        "ref_margin": [3.0, 1.0, None, 2.0, 2.0],
        "chosen_tokens": [5, 4, 3, 2, 1],
    }
)


@pytest.mark.parametrize(
    ("rule", "selected"),
    [
        ("top 2 of ref_margin", "ad"),  # of equal values the earlier row
        ("top 50% of ref_margin", "ad"),  # of the four that have a value
        ("bottom 1 of ref_margin", "b"),
        ("not top 2 of ref_margin", "bce"),  # a pair without a value is in the complement
        ("band 2..3 of ref_margin", "ade"),
        ("band ..1.5 of ref_margin", "b"),
        ("not band 2.. of ref_margin", "bc"),
        ("top 3 of chosen_tokens and not bottom 1 of ref_margin", "ac"),
        ("  not   top 100 %  of  chosen_tokens ", ""),
    ],
)
def test_rules(rule: str, selected: str) -> None:
    """Fails where a rule takes the other end, counts pairs without a value, or breaks ties at
    random."""
    found = [id for id, is_in in zip(TABLE["id"].to_pylist(), select_pairs(TABLE, rule)) if is_in]
    assert "".join(found) == selected


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("ref_margin > 2", "'ref_margin > 2' is no rule: expected .not. top N"),
        ("top 3 ref_margin", "is no rule"),
        ("band 3..2 of ref_margin", "the band 3..2 is empty, expected A <= B"),
        ("band .. of ref_margin", "is no rule"),
        ("top 2.5 of ref_margin", "2.5 is no part of the pairs"),
        ("top 0% of ref_margin", "0% is no part of the pairs"),
        ("bottom 101% of ref_margin", "101% is no part of the pairs"),
        ("top 1 of ref_margins", "'ref_margins' is no column; the nearest is ref_margin"),
        ("top 1 of id", "'id' holds no numbers"),
        ("top 1 of ches", "'ches' is no column; --ches computes it"),
        ("top 1 of ref_margin and", "is no rule"),
    ],
)
def test_rules_that_make_no_sense(rule: str, message: str) -> None:
    """Fails where one passes, or where the message does not say what was wrong with which part."""
    with pytest.raises(BadInput, match=message):
        select_pairs(TABLE, rule)


def test_rows_are_written_as_they_were(tmp_path: Path) -> None:
    """Fails where a field, a null or the order of keys is lost, where renamed keys or texts of the
    pair take the place of the row's own, or a row that was not trained gets in."""
    rows = [
        {"z": None, "q": "one", "good": "yes", "bad": "no", "more": {"x": [1, None]}, "id": "a"},
        {"q": "two", "good": "é\n", "bad": "no", "id": "b"},
        {"q": "bad row", "good": "same", "bad": "same", "id": "c"},
    ]
    columns = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    source = jsonl(tmp_path / "rows.jsonl.gz", rows)
    run = run_of(tmp_path, [source], **{f"data.columns.{k}": v for k, v in columns.items()})
    assert [list(row.items()) for row in selected_rows(run, {"a": True, "b": True, "c": True})] == [
        list(row.items()) for row in rows[:2]
    ]
    out = jsonl(tmp_path / "kept.jsonl", selected_rows(run, {"a": False, "b": True}))
    assert trained_ids([out], columns=columns) == ["b"]
    assert gzip.decompress(Path(source).read_bytes())  # is as it was


def test_weights_are_those_of_rows(tmp_path: Path) -> None:
    """Fails where a row's own weight is lost, or `data.columns.weight` would hide the new ones."""
    rows = [{"prompt": "p", "chosen": "c", "rejected": f"r{i}", "id": str(i)} for i in range(3)]
    rows[2]["weight"] = 0.5
    run = run_of(tmp_path, [jsonl(tmp_path / "rows.jsonl", rows)])
    selected = {"0": True, "1": False, "2": False}
    weights = [row["weight"] for row in selected_rows(run, selected, 0.2)]
    assert weights == [1.0, 0.2, 0.1]
    mix = [{"path": str(tmp_path / "rows.jsonl"), "weight": 2.0, "limit": 2}]
    weights = [row["weight"] for row in selected_rows(run_of(tmp_path, mix), selected, 0.2)]
    assert weights == [2.0, 0.4]
    hidden = run_of(tmp_path, [], **{"data.columns.weight": None})
    with pytest.raises(BadInput, match="data.columns.weight is None"):
        list(selected_rows(hidden, selected, 0.2))


def test_rows_of_parquet(tmp_path: Path) -> None:
    """Fails where a value that JSON has no type for is turned into text."""
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "id": "a"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "good.parquet")
    pq.write_table(pa.Table.from_pylist([{**row, "raw": b"\x00"}]), tmp_path / "bytes.parquet")
    good = run_of(tmp_path, [str(tmp_path / "good.parquet")])
    assert list(selected_rows(good, {"a": True})) == [row]
    with pytest.raises(BadInput, match="bytes.parquet, row 1: the row can't be written as JSON"):
        list(selected_rows(run_of(tmp_path, [str(tmp_path / "bytes.parquet")]), {"a": True}))


def test_the_largest_values_are_the_top() -> None:
    """As a sort of the values, on 1,000 random ones."""
    values = np.random.default_rng(0).normal(size=1000)
    table = pa.table({"x": values})
    assert set(values[select_pairs(table, "top 5% of x")]) == set(np.sort(values)[-50:])
    assert set(values[select_pairs(table, "bottom 3 of x")]) == set(np.sort(values)[:3])
