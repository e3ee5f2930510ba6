"""Files, folders and datasets of every accepted kind give the same rows; what is damaged is said in one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pair_files import contents, jsonl, pair_rows
from tiny import tiny_tokenizer
from transformers import PreTrainedTokenizerBase

from zephyr.chat import encode_pair
from zephyr.config import BadInput
from zephyr.data import load_pairs, prepare_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return prepare_tokenizer(tiny_tokenizer())


def test_every_kind_of_file_gives_the_same_pairs(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A reader of its own per kind: one that skips, doubles or reorders rows would go unseen in training."""
    from datasets import Dataset

    rows = pair_rows(7)
    wanted = [encode_pair(tokenizer, row)[1:] for row in rows]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=2))
    Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.parquet.gz").write_bytes(gzip.compress((tmp_path / "rows.parquet").read_bytes()))
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "b.json", "c.jsonl.gz"):
        jsonl(tmp_path / name, rows)
    for name in ("a.jsonl", "b.json", "c.jsonl.gz", "list.json", "rows.parquet", "rows.parquet.gz", "saved"):
        pairs, report = load_pairs([str(tmp_path / name)], tokenizer)
        assert contents(pairs) == wanted, name
        assert report["rows_read"] == report["examples"] == 7
        assert pairs.ids == [f"{name}:{i}" for i in range(1, 8)]
    assert pairs.prompt_tokens.tolist() == [len(pair[0]) for pair in wanted]
    assert pairs.chosen_tokens.tolist() == [len(pair[1]) for pair in wanted]
    assert pairs.rejected_tokens.tolist() == [len(pair[2]) for pair in wanted]


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


def test_subsets_are_named_or_listed(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """A snapshot of a set with the subsets all, joke and maths was read as one, each row twice."""
    for i, name in enumerate(("all", "joke", "maths/data")):
        (tmp_path / "smol" / name).mkdir(parents=True)
        jsonl(tmp_path / "smol" / name / "train-00000-of-00001.jsonl", pair_rows(i + 1))
    jsonl(tmp_path / "smol/joke/test-00000-of-00001.jsonl", pair_rows(5))
    with pytest.raises(BadInput, match=r"has the subsets all, joke, maths, wanted one named, as in .*/smol:all:train"):
        load_pairs([f"{tmp_path}/smol"], tokenizer)
    for spec, count in (("all", 1), ("all:train", 1), ("maths:train", 3), ("joke:train", 2), ("joke:test", 5)):
        assert len(load_pairs([f"{tmp_path}/smol:{spec}"], tokenizer)[0]) == count
    for spec, message in (("joke", "has the splits test, train"), ("all:dev", "no split 'dev', it has train"),
                          ("train", "the subsets all, joke, maths"), ("no:train", "the subsets all, joke, maths")):
        with pytest.raises(BadInput, match=message):
            load_pairs([f"{tmp_path}/smol:{spec}"], tokenizer)


def test_subsets_on_the_hub(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's own list of subsets, which its first line leaves out, and the three parts of a name; without a hub its loader is
    replaced by one that speaks its words (datasets 4: builder.py)."""
    import datasets
    asked = []

    def load(name: str, subset: str | None = None, split: str | None = None) -> datasets.Dataset:
        asked.append((name, subset, split))
        if subset is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['all', 'joke']\nExample of usage:")
        if subset not in ("all", "joke"):
            raise ValueError(f"BuilderConfig '{subset}' not found. Available: ['all', 'joke']")
        return datasets.Dataset.from_list(pair_rows(2))
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(load_pairs(["own/smol:joke:train"], tokenizer)[0]) == 2 and asked == [("own/smol", "joke", "train")]
    with pytest.raises(BadInput, match="own/smol has the subsets all, joke, wanted one named, as in own/smol:all:test"):
        load_pairs(["own/smol:test"], tokenizer)
    with pytest.raises(BadInput, match="own/smol has no subset 'no', it has all, joke"):
        load_pairs(["own/smol:no:train"], tokenizer)


def test_saved_dataset_with_splits(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """What `datasets` itself saves, or brings from the hub, has splits by name."""
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(pair_rows(4))
    DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "both")
    assert len(load_pairs([f"{tmp_path}/both:train"], tokenizer)[0]) == 4
    with pytest.raises(BadInput, match="more than one split, wanted one of test, train"):
        load_pairs([f"{tmp_path}/both"], tokenizer)
    with pytest.raises(BadInput, match="no split 'dev', wanted one of test, train"):
        load_pairs([f"{tmp_path}/both:dev"], tokenizer)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_damaged_or_missing_source(tokenizer: PreTrainedTokenizerBase, tmp_path: Path, on_bad_row: str) -> None:
    """A file cut off in the middle reads as a shorter one unless someone looks; skipping bad rows must not hide it."""
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
