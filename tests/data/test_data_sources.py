"""Files, folders and datasets of every accepted kind give the same rows; what is damaged is said in
one line."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest
from pair_files import contents, jsonl, pair_rows
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat import encode_pair
from zephyr.config import BadInput
from zephyr.data.encode import load_pairs
from zephyr.data.sources import open_sources
from zephyr.data.tokenizer import prepare_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


def test_every_kind_of_file_gives_the_same_pairs(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """A reader of its own per kind: one that skips, doubles or reorders rows would go unseen in
    training."""
    from datasets import Dataset

    rows = pair_rows(7)
    expected = [encode_pair(tokenizer, row)[1:] for row in rows]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet.gz").write_bytes(
        gzip.compress((tmp_path / "rows.parquet").read_bytes())
    )
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "b.json", "c.jsonl.gz"):
        jsonl(tmp_path / name, rows)
    for name in (
        "a.jsonl",
        "b.json",
        "c.jsonl.gz",
        "list.json",
        "rows.parquet",
        "rows.parquet.gz",
        "saved",
    ):
        pairs, report = load_pairs([str(tmp_path / name)], tokenizer)
        assert contents(pairs) == expected, name
        assert report["rows_read"] == report["examples"] == 7
        assert pairs.ids == [f"{name}:{i}" for i in range(1, 8)]
    assert pairs.prompt_tokens.tolist() == [len(pair[0]) for pair in expected]
    assert pairs.chosen_tokens.tolist() == [len(pair[1]) for pair in expected]
    assert pairs.rejected_tokens.tolist() == [len(pair[2]) for pair in expected]


def test_folder_and_its_splits(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Without a split named, the test rows of a downloaded dataset would be trained on."""
    (tmp_path / "set/data").mkdir(parents=True)
    jsonl(tmp_path / "set/data/train_prefs-00000-of-00002.jsonl", pair_rows(2))
    jsonl(tmp_path / "set/data/train_prefs-00001-of-00002.jsonl", pair_rows(3))
    jsonl(tmp_path / "set/data/test_prefs-00000-of-00001.jsonl", pair_rows(1))
    assert len(load_pairs([f"{tmp_path}/set:train_prefs"], tokenizer)[0]) == 5
    assert len(load_pairs([f"{tmp_path}/set:test_prefs"], tokenizer)[0]) == 1
    with pytest.raises(BadInput, match="has the splits test_prefs, train_prefs"):
        load_pairs([f"{tmp_path}/set"], tokenizer)
    with pytest.raises(BadInput, match="no split 'dev', it has test_prefs, train_prefs"):
        load_pairs([f"{tmp_path}/set:dev"], tokenizer)
    (tmp_path / "parts").mkdir()
    for name in ("part-a.jsonl", "part-b.jsonl"):
        jsonl(tmp_path / "parts" / name, pair_rows(2))
    assert len(load_pairs([f"{tmp_path}/parts"], tokenizer)[0]) == 4


def names(spec: str) -> list[str]:
    return [source.name for source in open_sources([spec])]


def test_files_of_a_folder_are_read_by_name(tmp_path: Path) -> None:
    """What the system hides, and other kinds of files, are none. Fails where the order is the
    disk's, so that a run on another machine trains in another, or where a cache's copy is read as
    well."""
    for name in (
        "b.jsonl",
        "d.json",
        "a.jsonl.gz",
        "c/x.jsonl",
        "c/b.jsonl",
        ".cache/a.jsonl",
        "c/.x.jsonl",
        "e.txt",
        "f.gz",
    ):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(tmp_path / "set" / name, pair_rows(1))
    with pytest.raises(
        BadInput,
        match=r"holds a.jsonl.gz, b.jsonl, d.json, and more in c: expected one of these to be "
        r"named, as in .*set/c",
    ):
        names(f"{tmp_path}/set")
    assert names(f"{tmp_path}/set:.") == ["set/a.jsonl.gz", "set/b.jsonl", "set/d.json"]
    assert names(f"{tmp_path}/set:c") == ["set/c/b.jsonl", "set/c/x.jsonl"]
    assert names(f"{tmp_path}/set/c") == ["c/b.jsonl", "c/x.jsonl"]


def test_a_split_is_a_folder_or_the_start_of_a_name(tmp_path: Path) -> None:
    """Fails where rows that are held out are read because the others are called by no split, or by
    folder."""
    for name in (
        "one/test.jsonl",
        "one/rows.jsonl",
        "two/train/part-1.json.gz",
        "two/test/part-1.json.gz",
        "three/train-00000-of-00002-3a5f.jsonl",
        "three/train-00001-of-00002-9b1c.jsonl",
        "four/joke/train.jsonl",
        "four/joke/test.jsonl",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(tmp_path / name, pair_rows(1))
    for folder, splits in (
        ("one", "rows, test"),
        ("two", "test, train"),
        ("four", "test, train"),
        ("four:joke", "test, train"),
    ):
        with pytest.raises(
            BadInput, match=f"has the splits {splits}, expected one (of them )?to be named"
        ):
            names(f"{tmp_path}/{folder}")
    assert names(f"{tmp_path}/one:rows") == ["one/rows.jsonl"] and names(
        f"{tmp_path}/two:train"
    ) == ["two/train/part-1.json.gz"]
    assert len(names(f"{tmp_path}/three")) == len(names(f"{tmp_path}/three:train")) == 2
    assert (
        names(f"{tmp_path}/four:joke:test")
        == names(f"{tmp_path}/four:test")
        == ["four/joke/test.jsonl"]
    )


def test_a_digest_is_of_the_whole_source(tmp_path: Path) -> None:
    """Fails where a byte behind the first million is not in it, or two saved datasets of one name
    are one."""
    from datasets import Dataset

    digests = []
    for last in "ab":
        (tmp_path / "rows.jsonl").write_text(" " * 2**20 + last)
        for rows in ([{"a": last}], [{"a": last}] * 2):
            Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
            digests += [
                source.digest
                for source in open_sources([str(tmp_path / "rows.jsonl"), str(tmp_path / "saved")])
            ]
    assert len(set(digests)) == 2 + 4
    (source,) = open_sources([str(tmp_path / "rows.jsonl")])
    assert source.digest == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()


def test_the_rows_of_a_list_are_called_by_their_number(tmp_path: Path) -> None:
    """From 1, in the file's own encoding. Fails where the place in an error is that of the row
    before."""
    (tmp_path / "rows.json").write_bytes(b'\xef\xbb\xbf [{"a": 1},\n {"a": 2}]')
    rows = list(open_sources([str(tmp_path / "rows.json")])[0].rows())
    assert [(row.place, row.default_id) for row in rows] == [
        (f"{tmp_path}/rows.json, element {n}", f"rows.json:{n}") for n in (1, 2)
    ]
    (tmp_path / "bad.json").write_bytes(b'[{"a": 1},\n {"a": }]')
    with pytest.raises(
        BadInput, match=r"bad.json:2: the file is no valid JSON: Expecting value at column 8"
    ):
        list(open_sources([str(tmp_path / "bad.json")])[0].rows())
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(BadInput, match=r"latin.json is not UTF-8: byte 3"):
        list(open_sources([str(tmp_path / "latin.json")])[0].rows())


def test_what_holds_nothing_or_has_no_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where a packed file that was damaged inside, or a dataset of no rows, ends a run with a
    traceback or trains on nothing."""
    import datasets

    monkeypatch.setattr(
        datasets, "load_dataset", lambda *name, split: datasets.Dataset.from_dict({"prompt": []})
    )
    (tmp_path / "spoilt.jsonl.gz").write_bytes(gzip.compress(b"{}\n")[:10] + b"\xff" * 30)
    odd = tmp_path / os.fsdecode(b"\xe9.jsonl")
    jsonl(odd, pair_rows(1))
    for path, message in (
        (tmp_path / "spoilt.jsonl.gz", "spoilt.jsonl.gz is damaged after 0 rows"),
        ("own/none:train", "own/none holds no rows"),
        (odd, "the name is not UTF-8"),
    ):
        with pytest.raises(BadInput, match=message):
            list(open_sources([str(path)])[0].rows())


def test_subsets_are_named_or_listed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A snapshot of a set with the subsets all, joke and maths was read as one, each row twice."""
    for i, name in enumerate(("all", "joke", "maths/data")):
        (tmp_path / "smol" / name).mkdir(parents=True)
        jsonl(tmp_path / "smol" / name / "train-00000-of-00001.jsonl", pair_rows(i + 1))
    jsonl(tmp_path / "smol/joke/test-00000-of-00001.jsonl", pair_rows(5))
    with pytest.raises(
        BadInput,
        match=r"has the subsets all, joke, maths, expected one (of them )?to be named, as in "
        r".*/smol:all:train",
    ):
        load_pairs([f"{tmp_path}/smol"], tokenizer)
    for spec, count in (
        ("all", 1),
        ("all:train", 1),
        ("maths:train", 3),
        ("joke:train", 2),
        ("joke:test", 5),
    ):
        assert len(load_pairs([f"{tmp_path}/smol:{spec}"], tokenizer)[0]) == count
    for spec, message in (
        ("joke", "has the splits test, train"),
        ("all:dev", "no split 'dev', it has train"),
        ("train", "the subsets all, joke, maths"),
        ("no:train", "the subsets all, joke, maths"),
    ):
        with pytest.raises(BadInput, match=message):
            load_pairs([f"{tmp_path}/smol:{spec}"], tokenizer)


def test_subsets_on_the_hub(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's own list of subsets, which its first line leaves out, and the three parts of a
    name; without a hub its loader is replaced by one that speaks its words (datasets 4:
    builder.py)."""
    import datasets

    asked = []

    def load(name: str, subset: str | None = None, split: str | None = None) -> datasets.Dataset:
        asked.append((name, subset, split))
        if subset is None:
            raise ValueError(
                "Config name is missing.\nPlease pick one among the available configs: ['all', "
                "'joke']\nExample of usage:"
            )
        if subset not in ("all", "joke"):
            raise ValueError(f"BuilderConfig '{subset}' not found. Available: ['all', 'joke']")
        return datasets.Dataset.from_list(pair_rows(2))

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_pairs(["own/smol:joke:train"], tokenizer)[0]) == 2 and asked == [
        ("own/smol", "joke", "train")
    ]
    with pytest.raises(
        BadInput,
        match="own/smol has the subsets all, joke, expected one (of them )?to be named, as in "
        "own/smol:all:test",
    ):
        load_pairs(["own/smol:test"], tokenizer)
    with pytest.raises(BadInput, match="own/smol has no subset 'no', it has all, joke"):
        load_pairs(["own/smol:no:train"], tokenizer)


def test_saved_dataset_with_splits(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """What `datasets` itself saves, or brings from the hub, has splits by name."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(pair_rows(4))
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "both")
    assert len(load_pairs([f"{tmp_path}/both:train"], tokenizer)[0]) == 4
    with pytest.raises(BadInput, match="more than one split, expected one of test, train"):
        load_pairs([f"{tmp_path}/both"], tokenizer)
    with pytest.raises(BadInput, match="no split 'dev', expected one of test, train"):
        load_pairs([f"{tmp_path}/both:dev"], tokenizer)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_damaged_or_missing_source(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, on_bad_row: str
) -> None:
    """A file cut off in the middle reads as a shorter one unless someone looks; skipping bad rows
    must not hide it."""
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in pair_rows(2000)).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain text")
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    (tmp_path / "bad.json").write_text("[{},")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "folder").mkdir()
    wrong = {
        "cut.jsonl.gz": "is damaged after",
        "not.jsonl.gz": "is damaged after 0 rows",
        "empty.jsonl": "holds no rows",
        "bad.parquet": "is damaged",
        "bad.json": "no valid JSON",
        "notes.txt": "of no known kind",
        "folder": "holds no data",
        "none.jsonl": "does not exist",
        "empty.jsonl:train": "has no split 'train'",
    }
    for name, message in wrong.items():
        with pytest.raises(BadInput, match=message) as error:
            load_pairs([str(tmp_path / name)], tokenizer, on_bad_row=on_bad_row)
        assert name.split(":")[0] in str(error.value) and "\n" not in str(error.value)


def test_hub_failure_is_one_line(tokenizer: PreTrainedTokenizerBase) -> None:
    """Offline, or with a slip in the name, `datasets` ends in its own errors."""
    with pytest.raises(BadInput, match="no-one/no-such-set") as error:
        load_pairs(["no-one/no-such-set:train"], tokenizer)
    assert "\n" not in str(error.value)
