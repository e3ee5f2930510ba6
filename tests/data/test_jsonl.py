"""Rows read from files and written to files: with the place of each, and never over what was
read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from pair_files import jsonl

from zephyr.config import BadInput
from zephyr.data.jsonl import read_rows, require_output, save_report, write_json, write_rows


def test_rows_come_with_their_place(tmp_path: Path) -> None:
    """Null is no value, and what a reader refuses is told with file and line. Fails where a person
    with a million rows is told the fault alone."""
    path = jsonl(tmp_path / "rows.jsonl", [{"a": 1, "b": None}, "", {"a": 2}])
    assert list(read_rows([path])) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": 2})]
    assert list(read_rows([path], lambda row: row["a"])) == [(f"{path}:1", 1), (f"{path}:3", 2)]

    def refuse(row: object) -> None:
        raise ValueError(f"{row} is wrong")

    with pytest.raises(BadInput, match=rf"^{path}:1: .*'a': 1.* is wrong"):
        list(read_rows([path], refuse))


def test_no_output_takes_the_place_of_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whatever name it goes. Fails where the rows that a command reads are gone before it
    ends."""
    (tmp_path / "set").mkdir()
    for name in ("rows.jsonl", "out.report.json", "set/part.jsonl", "a:b.jsonl"):
        jsonl(tmp_path / name, [{"a": 1}])
    (tmp_path / "link").symlink_to(tmp_path / "set")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    taken = [
        ("rows.jsonl", "rows.jsonl"),
        (tmp_path / "rows.jsonl", "~/rows.jsonl"),
        (tmp_path / "a:b.jsonl", "~/a:b.jsonl"),
        (tmp_path / "out.jsonl", tmp_path / "out.report.json"),
        ("set/part.jsonl", "set:train"),
        ("set/sub/new.jsonl", tmp_path / "set"),
        ("link/new.jsonl", "set"),
        ("link/new.jsonl", str(tmp_path / "link")),
    ]
    for out, source in taken:
        with pytest.raises(BadInput, match="out: .* is among the sources"):
            require_output(Path(out), [source])
    (tmp_path / "new.report.json").mkdir()
    for out in ("set", "new.jsonl"):
        with pytest.raises(BadInput, match="is a folder"):
            require_output(Path(out), ["rows.jsonl"])
    with pytest.raises(
        BadInput, match=r"out: the folder of rows.jsonl/out.jsonl can't be made: \w"
    ):
        require_output(Path("rows.jsonl/out.jsonl"), ["other.jsonl"])
    require_output(Path("made/deep/out.jsonl"), ["rows.jsonl", "org/set:train"])
    assert (tmp_path / "made" / "deep").is_dir()


def test_written_rows_are_readable_lines(tmp_path: Path) -> None:
    """Letters as they are; half a character, which UTF-8 has no bytes for, as JSON escapes it.
    Fails where a reader of the file finds other rows than were written, or another number of
    them."""
    rows = [{"a": "é 日本"}, {"a": "cut \ud83d here"}]
    assert write_rows(tmp_path / "new" / "rows.jsonl", rows) == 2
    content = (tmp_path / "new" / "rows.jsonl").read_bytes()
    assert "é 日本".encode() in content and rb"cut \ud83d here" in content
    assert [json.loads(line) for line in content.splitlines()] == rows
    assert write_rows(tmp_path / "none.jsonl", []) == 0
    (tmp_path / "taken").mkdir()
    with pytest.raises(BadInput, match=r"taken can't be written: \w"):
        write_rows(tmp_path / "taken", rows)


def test_a_report_says_of_which_file_it_is(tmp_path: Path) -> None:
    """The digest is the output's own, the name has no folder in it: both files can be moved
    together."""
    write_rows(tmp_path / "rows.jsonl", [{"a": 1}])
    for count in (1, 2):  # the second stands over the first
        report = save_report(tmp_path / "rows.jsonl", {"rows": count})
        digest = hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
        assert report == {"rows": count, "out": "rows.jsonl", "sha256": digest}
        assert json.loads((tmp_path / "rows.report.json").read_text()) == report


def test_of_several_ranks_the_first_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rank counts the rows. Fails where two processes write one file."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert write_rows(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2}]) == 2
        write_json(tmp_path / "new" / "value.json", {"a": "é"})
        written = [(tmp_path / name).exists() for name in ("rows.jsonl", "new/value.json")]
        assert written == [rank == 0] * 2
    assert (tmp_path / "new" / "value.json").read_text(encoding="utf-8") == '{\n "a": "é"\n}\n'
