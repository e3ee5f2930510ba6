"""A folder's files are those that its card, or their names, say; no two splits are read as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from pair_files import jsonl, pair_rows

from zephyr.config import BadInput
from zephyr.data.sources import held_out_split, open_sources


def folder(path: Path, files: dict[str, int], card: str = "") -> Path:
    for name, count in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(path / name, pair_rows(count))
    if card:
        (path / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{card}---\n# A set\n")
    return path


def count(spec: object) -> int:
    return sum(1 for source in open_sources([str(spec)]) for _ in source.rows())


SPLITS = """\
- config_name: default
  data_files:
  - split: train
    path: [one.jsonl, "more/*.jsonl"]
  - {split: test, path: two.jsonl}
"""
CONFIGS = """\
- config_name: a
  data_files: [{split: train, path: a-1.jsonl}, {split: test, path: a-2.jsonl}]
- {config_name: b, data_files: b.jsonl}
"""


def test_a_cards_splits_are_those_of_datasets(tmp_path: Path) -> None:
    """The test rows of a set whose card alone says which they are were trained on; the counts are
    those of the library that the cards are written for."""
    from datasets import load_dataset

    files = {"one.jsonl": 2, "more/x.jsonl": 3, "two.jsonl": 5, "raw.jsonl": 7}
    own = folder(tmp_path / "own", files, SPLITS)
    theirs = load_dataset(str(own), cache_dir=str(tmp_path / "cache"))
    assert (
        {split: count(f"{own}:{split}") for split in theirs}
        == theirs.num_rows
        == {"train": 5, "test": 5}
    )
    assert count(f"{own}:default:train") == 5
    assert [held_out_split(source) for source in open_sources([f"{own}:test"])] == ["test"]
    with pytest.raises(
        BadInput, match=r"has the splits test, train, expected one to be named, as in .*own:train"
    ):
        open_sources([str(own)])
    with pytest.raises(BadInput, match="has no split 'dev', it has test, train"):
        open_sources([f"{own}:dev"])
    for card in (
        "- {config_name: default, data_files: one.jsonl}\n",
        "- data_files: [one.jsonl]\n",
    ):
        assert count(folder(tmp_path / "own", files, card)) == count(f"{own}:train") == 2


def test_a_cards_subsets(tmp_path: Path) -> None:
    """`set:a` read a's train and test as one, and `set:a:train` was refused."""
    own = folder(tmp_path / "own", {"a-1.jsonl": 2, "a-2.jsonl": 3, "b.jsonl": 4}, CONFIGS)
    for spec, rows in (("a:train", 2), ("a:test", 3), ("b", 4), ("b:train", 4)):
        assert count(f"{own}:{spec}") == rows
    for spec, message in (
        ("", "has the subsets a, b, expected one to be named, as in .*own:a:train"),
        (":test", "has the subsets a, b, expected one to be named, as in .*own:a:test"),
        (":no:train", "has no subset 'no', it has a, b"),
        (":a", "own:a has the splits test, train, expected one to be named, as in .*own:a:train"),
        (":a:dev", "own:a has no split 'dev', it has test, train"),
    ):
        with pytest.raises(BadInput, match=message):
            open_sources([f"{own}{spec}"])
    default = CONFIGS.replace("b.jsonl}", "b.jsonl, default: true}")
    assert count(folder(tmp_path / "own", {}, default)) == count(f"{own}:train") == 4
    inner = folder(
        tmp_path / "in",
        {"x/train.jsonl": 2, "x/test.jsonl": 3, "raw.jsonl": 4},
        "- {config_name: x, data_dir: x}\n",
    )
    assert count(f"{inner}:train") == 2
    with pytest.raises(BadInput, match="has the splits test, train"):
        open_sources([str(inner)])


@pytest.mark.parametrize(
    "files, message",
    [
        ("[{split: train}]", "data_files` holds .*expected a path, a list"),
        ("{train: a.jsonl}", "data_files` holds .*expected a path, a list"),
        ("7", "data_files` holds 7"),
        ("[]", "is empty"),
        ("[{split: train, path: a.jsonl}, {split: train, path: b.jsonl}]", "the split train twice"),
        ("../a.jsonl", "is not in the folder"),
        ("https://x.org/a.jsonl", "is not in the folder"),
        ("gone.jsonl", "has the file gone.jsonl, which is not in"),
        ("'*.csv'", r"has \*.csv, where no file of"),
        ("note.csv", "of no known kind"),
    ],
)
def test_a_card_that_names_no_files_is_refused(tmp_path: Path, files: str, message: str) -> None:
    """What a card asks for and can't be had is said, not read as another set of files."""
    own = folder(tmp_path / "own", {"a.jsonl": 1}, f"- {{config_name: a, data_files: {files}}}\n")
    (own / "note.csv").write_text("a,b\n")
    with pytest.raises(BadInput, match=message) as error:
        open_sources([str(own)])
    assert "own" in str(error.value) and "\n" not in str(error.value)


def test_names_that_say_a_split_are_never_read_as_one(tmp_path: Path) -> None:
    """my_train and my_test, data and heldout, were one set of training rows without a word."""
    for number, (train, other, has) in enumerate(
        [
            ("my_train.jsonl", "my_test.jsonl", "my_test, my_train"),
            ("data.jsonl", "heldout.jsonl", "data, heldout"),
            ("a/data.jsonl", "a/hold-out.jsonl", "data, hold-out"),
            ("x.train.jsonl", "x.valid.jsonl", "x.train, x.valid"),
            ("myTrain.jsonl", "myEval.jsonl", "myEval, myTrain"),
            ("rows.jsonl", "validation_2.jsonl", "rows, validation"),
            ("train/en.jsonl", "holdout/en.jsonl", "holdout, train"),
            ("train_sft.jsonl", "train_gen.jsonl", "train_gen, train_sft"),
            ("train/de/x.jsonl", "dev/de/x.jsonl", "dev, train"),
            ("data.jsonl", "dev_set.jsonl", "data, dev_set"),
            ("en-00000-of-00001.jsonl", "de-00000-of-00001.jsonl", "de, en"),
        ]
    ):
        own = folder(tmp_path / str(number), {train: 2, other: 3})
        with pytest.raises(
            BadInput, match=f"has the splits {has}, expected one to be named, as in"
        ) as error:
            open_sources([str(own)])
        shown = str(error.value).rpartition(" ")[2]
        assert (
            count(shown) in (2, 3) and sum(count(f"{own}:{name}") for name in has.split(", ")) == 5
        )
    assert count(f"{tmp_path}/0:train") == 2 and count(f"{tmp_path}/0:test") == 3
    assert count(f"{tmp_path}/5:val") == count(f"{tmp_path}/5:validation") == 3
    parts = folder(tmp_path / "parts", {"train_part1.jsonl": 2, "train_part2.jsonl": 3})
    assert count(parts) == count(f"{parts}:train") == 5
    several = folder(tmp_path / "several", {"latest.jsonl": 1, "values/x.jsonl": 2})
    with pytest.raises(
        BadInput, match="holds latest.jsonl, and more in values: expected .*several/values"
    ):
        open_sources([str(several)])
    assert count(f"{several}/values") == 2


def test_a_name_says_a_split_as_a_word_alone(tmp_path: Path) -> None:
    """Fails where half a word makes a split of a file, where a word of two splits takes one of
    them, or where a name that is all number is none."""
    words = folder(tmp_path / "words", {"latest.jsonl": 1, "contest.jsonl": 2, "attrain.jsonl": 3})
    assert count(words) == 6
    numbers = folder(tmp_path / "numbers", {"1.jsonl": 1, "2.jsonl": 2})
    assert count(numbers) == 3 and count(f"{numbers}:2") == 2
    two = folder(
        tmp_path / "two", {"train_sft.jsonl": 1, "train_gen.jsonl": 2, "hold_out.jsonl": 4}
    )
    assert count(f"{two}:heldout") == 4
    with pytest.raises(
        BadInput, match="has no split 'train', it has hold_out, train_gen, train_sft, expected one"
    ):
        open_sources([f"{two}:train"])
    subsets = folder(tmp_path / "of", {"a/train.jsonl": 1, "a/test.jsonl": 2, "b/train.jsonl": 4})
    with pytest.raises(
        BadInput,
        match="of:a has the splits test, train, expected one to be named, as in .*of:a:train",
    ):
        open_sources([f"{subsets}:a"])


def test_a_card_by_either_name_and_with_a_mark_of_bytes(tmp_path: Path) -> None:
    """Fails where one of the two is not read, one hides the other, or a mark at the beginning
    does."""
    own = folder(tmp_path / "own", {"a.jsonl": 1, "b.jsonl": 2})
    (own / ".huggingface.yaml").write_text("configs:\n- {config_name: x, data_files: a.jsonl}\n")
    assert count(own) == 1
    (own / "README.md").write_bytes(
        b"\xef\xbb\xbf---\nconfigs:\n- {config_name: x, data_files: b.jsonl}\n---\n"
    )
    (own / ".huggingface.yaml").write_text("license: mit\n")
    assert count(own) == count(f"{own}:x") == 2
    (own / "README.md").write_text("---\nconfigs: [\n---\n")
    with pytest.raises(BadInput, match="README.md: its header is no YAML"):
        open_sources([str(own)])


def test_the_subset_called_default_and_folders_of_a_card(tmp_path: Path) -> None:
    """Fails where a set that `datasets` reads without a name wants one here, where a folder that
    is not there is said to be empty, or a card reads files from outside."""
    card = CONFIGS.replace("config_name: b", "config_name: default")
    own = folder(tmp_path / "own", {"a-1.jsonl": 1, "a-2.jsonl": 2, "b.jsonl": 4}, card)
    assert count(own) == 4
    with pytest.raises(BadInput, match="the card names .*gone, which is no folder here"):
        open_sources([str(folder(own, {}, "- {config_name: a, data_dir: gone}\n"))])
    with pytest.raises(BadInput, match=" is not in the folder, expected files in it"):
        open_sources([str(folder(own, {}, f"- {{config_name: a, data_files: {own}/b.jsonl}}\n"))])


def test_files_of_a_pattern_are_read_by_name(tmp_path: Path) -> None:
    """In folders of any depth. Fails where their order is the disk's, or a `**` is one folder."""
    files = {f"{name}.jsonl": 1 for name in "lbgkcajfdihe"} | {"m/n/z.jsonl": 1}
    own = folder(tmp_path / "own", files, '- {config_name: a, data_files: "**/*.jsonl"}\n')
    assert [source.name for source in open_sources([str(own)])] == [
        f"own/{name}" for name in sorted(files)
    ]
