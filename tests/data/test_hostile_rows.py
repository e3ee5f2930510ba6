"""Rows and files that somebody made to stop a run, to fill its memory, or to train on nothing:
told, or counted, never more."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from processes import ROOT
from pyarrow import parquet
from runs import write_lines

from zephyr.chat import IdenticalAnswers, check_pair, without_space
from zephyr.config import BadInput
from zephyr.data import workers
from zephyr.data.encode import load_pairs, load_texts
from zephyr.data.sources import MAX_LINE_BYTES, RawRow, open_sources
from zephyr.data.tokenizer import load_tokenizer, prepare_tokenizer
from zephyr.distill.binarize import binarize
from zephyr.distill.prepare import PrepareSettings, prepare

HALF = "cut \ud83d here"


def pair(chosen: object, rejected: object, **fields: object) -> Mapping[str, object]:
    return {"prompt": "Q?", "chosen": chosen, "rejected": rejected, **fields}


def peak_of(code: str) -> tuple[str, int]:
    """What a program of its own prints, and by how many bytes its memory grew."""
    head = (
        "import resource\nfrom zephyr.config import BadInput\nfrom zephyr.data.sources import "
        "open_sources\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\nbefore = "
        "peak()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{head}{code}\nprint(peak() - before)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *said, grown = done.stdout.splitlines()
    return "\n".join(said), int(grown)


@pytest.mark.parametrize("suffix, start", [(".jsonl.gz", b""), (".json.gz", b'{"prompt": "')])
def test_a_packed_line_of_gigabytes(tmp_path: Path, suffix: str, start: bytes) -> None:
    """2 GB in one line behind a good one, 2 MB on the disk: the line is told, with file, number and
    limit, before it is unpacked. Fails where a line is read whole before its length is known (the
    run is killed, and nothing says by which file)."""
    good = gzip.compress(json.dumps(pair("a", "b")).encode() + b"\n" + start)
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(good + gzip.compress(b"x" * 2**24) * 128)
    said, grown = peak_of(
        f"try:\n    list(open_sources([{str(path)!r}])[0].rows())\nexcept BadInput as error:\n   "
        f" print(error)"
    )
    assert (
        said.startswith(f"{path}:2: the line is over {MAX_LINE_BYTES} bytes")
        and grown < 4 * MAX_LINE_BYTES
    )


def test_a_packed_list_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can only be read as a whole, a .json list or Parquet in gzip. Fails where gzip decides
    how much memory is taken."""
    monkeypatch.setattr("zephyr.data.sources.MAX_UNPACKED_BYTES", 1000)
    for name in ("rows.json.gz", "rows.parquet.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"[" + b" " * 2000 + b"{}]"))
        with pytest.raises(BadInput, match=rf"{name} holds over 1000 bytes, unpacked"):
            list(open_sources([str(tmp_path / name)])[0].rows())
    (tmp_path / "rows.json").write_bytes(
        b"\xef\xbb\xbf\n [" + b" " * 2000 + b"{}]"
    )  # as large as it is on the disk
    assert len(list(open_sources([str(tmp_path / "rows.json")])[0].rows())) == 1


def test_a_line_at_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the limit is one byte off, or its line number is."""
    monkeypatch.setattr("zephyr.data.sources.MAX_LINE_BYTES", 30)
    for name in ("rows.jsonl", "rows.json"):
        (tmp_path / name).write_bytes(b"{}\n\n" + b" " * 27 + b"{}\n" + b" " * 28 + b"{}\n")
        rows = open_sources([str(tmp_path / name)])[0].rows()
        assert [next(rows).place for _ in range(2)] == [
            f"{tmp_path / name}:1",
            f"{tmp_path / name}:3",
        ]
        with pytest.raises(BadInput, match=rf"{name}:4: the line is over 30 bytes"):
            next(rows)


DOUBLES = (
    "{% set ns = namespace(x='word') %}{% for _ in range(60) %}{% set ns.x = ns.x ~ ns.x "
    "%}{% endfor %}{{ ns.x }}"
)
ENDLESS = "{% for _ in range(99999) %}{% for _ in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("body", "message"), [(DOUBLES, "over 1024 MiB to render"), (ENDLESS, "over 1 s to render")]
)
@pytest.mark.parametrize("own", [True, False])
def test_a_template_that_never_ends(
    body: str, message: str, own: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of any size fits into a template. Fails where it is rendered in this process: the
    memory of the machine, or the time of the run, is then what bounds it."""
    monkeypatch.setattr("zephyr.chat.template_limits.SECONDS", 1 if body is ENDLESS else 60)
    (tmp_path / "body.jinja").write_text(body)
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = body
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInput, match=message):
        prepare_tokenizer(tokenizer, "model" if own else str(tmp_path / "body.jinja"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # KiB


def test_a_template_that_multiplies_text(tiny: Path, tmp_path: Path) -> None:
    """Of a row, not of all: a template that writes each turn thousands of times is fine with short
    ones. Fails where its text is tokenized, or where a template that asks for more memory than
    there is ends the program with a traceback."""
    tokenizer = load_tokenizer(tiny)
    whole = tokenizer.chat_template
    tokenizer.chat_template = whole.replace(
        "message['content']",
        "(message['content'] * (2 if message['content'] | length < 99 else 400))",
    )
    data = write_lines(tmp_path / "pairs.jsonl", [pair("a b", "b c"), pair("d", "e " * 400)])
    with pytest.raises(
        BadInput,
        match=r"pairs.jsonl:2: the chat template makes \d{6} characters of the conversation, "
        r".*at most 1",
    ):
        load_pairs([str(data)], tokenizer)
    pairs, report = load_pairs([str(data)], tokenizer, on_bad_row="skip")
    assert len(pairs) == 1 and "multiplies text" in report["skipped"][0]["reason"]
    tokenizer.chat_template = whole.replace(
        "message['content']",
        "('x' * 10 ** 18 if message['content'] | length > 99 else message['content'])",
    )
    with pytest.raises(
        BadInput, match=r"pairs.jsonl:2: the chat template refuses the conversation: MemoryError"
    ):
        load_pairs([str(data)], tokenizer)
    tokenizer.chat_template = whole
    texts = write_lines(
        tmp_path / "texts.jsonl", [{"prompt": "x " * 30_000, "completion": "y " * 30_000}]
    )
    assert len(load_texts([str(texts)], tokenizer, max_tokens=10**6)[0]) == 1


def test_half_a_character_is_counted(tmp_path: Path) -> None:
    """Wherever a row has it, `prepare` and `binarize` leave the row out and count it, and go on;
    what they write every reader can decode. Fails where one row of a million stops them, or where
    it is handed on to stop the training run."""
    good = {
        "messages": [
            {"role": "user", "content": "Smile \ud83d\ude00?"},
            {"role": "assistant", "content": "Yes, \\ud83d is text."},
        ]
    }
    rows = [
        good,
        *(
            {
                "messages": [
                    {"role": "user", "content": user},
                    {"role": "assistant", "content": answer},
                ],
                **more,
            }
            for user, answer, more in (
                (HALF, "A.", {}),
                ("Q1?", HALF, {}),
                ("Q2?", "A.", {"tags": [{HALF: 1}]}),
            )
        ),
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = prepare([str(source)], tmp_path / "clean.jsonl", PrepareSettings())
    taken = report["removed"]["lone_surrogate"]
    assert taken["rows"] == 3 and [e["place"] for e in taken["examples"]] == [
        f"{source}:{n}" for n in (2, 3, 4)
    ]
    assert report["rows_kept"] == 1 and report["removed"]["bad_row"]["rows"] == 0
    assert [json.loads(line) for line in (tmp_path / "clean.jsonl").read_bytes().splitlines()] == [
        json.loads(json.dumps(good))
    ]

    def feedback(name: str, prompt: str, first: str, **more: object) -> Mapping[str, object]:
        return {
            "prompt_id": name,
            "prompt": prompt,
            "completions": [
                {"model": m, "text": text, "scores": {"x": n}, "overall": n}
                for m, text, n in (("a", first, 2), ("b", "worse", 1))
            ],
            **more,
        }

    rows = [
        feedback("1", "Q?", "good"),
        feedback("2", HALF, "good"),
        feedback("3", "Q?", HALF),
        feedback(HALF, "Q?", "good"),
        feedback("4", "Q?", "good", note=HALF),
        {"idx": 1, "response_source": HALF, "gpt4_score": 1, "prompt": "p", "response": "r"},
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = binarize([str(source)], tmp_path / "pairs.jsonl", rule="paper")
    assert (
        report["dropped"] == {"a lone surrogate": 5}
        and report["rows"] == 6
        and report["pairs"] == 1
    )
    assert [
        row["id"]
        for row in map(json.loads, (tmp_path / "pairs.jsonl").read_text("utf-8").splitlines())
    ] == ["1"]
    assert json.loads((tmp_path / "pairs.report.json").read_text())["dropped"] == report["dropped"]


SPACED = [
    ("x = 1\n  y", "x = 1\ny"),
    ("a b", "a b "),
    ("a b", "a\u00a0b"),
    ("a\r\nb", "a\nb"),
    ("ab", "a b"),
]


def test_white_space_is_no_preference(tiny: Path, tmp_path: Path) -> None:
    """Answers that differ by white space alone, as texts and as turns: no fault that stops a run,
    no pair, and a line of the report. Fails where the policy is taught to prefer a trailing blank,
    or where an answer in other words goes with them."""
    rows = (
        [pair(*texts) for texts in SPACED]
        + [
            pair(
                [{"role": "assistant", "content": text} for text in texts][:1],
                [{"role": "assistant", "content": texts[1]}],
            )
            for texts in SPACED
        ]
        + [pair("ab", "abc")]
    )
    data = write_lines(tmp_path / "pairs.jsonl", rows)
    pairs, report = load_pairs([str(data)], load_tokenizer(tiny))
    assert (
        len(pairs) == 1
        and report["dropped"]["both sides equal but for white space"] == 10
        and report["rows_read"] == 11
    )
    with pytest.raises(IdenticalAnswers):
        check_pair(pair("a b", "a  b"))
    with pytest.raises(BadInput, match=r"no pair is left.*10 dropped .*white space"):
        load_pairs([str(write_lines(tmp_path / "none.jsonl", rows[:10]))], load_tokenizer(tiny))
    with pytest.raises(BadInput, match="are equal"):
        load_pairs(
            [str(write_lines(tmp_path / "equal.jsonl", [pair("a", "a")]))], load_tokenizer(tiny)
        )


@pytest.mark.parametrize("rule", ["paper", "argilla", "best-vs-worst", "margin>=1", "handbook"])
def test_no_rule_pairs_white_space(rule: str, tmp_path: Path) -> None:
    """Where another completion has other words that one is drawn, else there is no pair. Fails
    where a rule draws the answer's own double and the row is lost. (`handbook` draws as its script
    does, and loses it.)"""
    rows = [
        {
            "prompt_id": f"{i}",
            "prompt": f"Q{i}?",
            "completions": [
                {"model": f"m{n}", "text": text, "scores": {"x": score}, "overall": score}
                for n, (text, score) in enumerate(completions)
            ],
        }
        for i, completions in enumerate(
            [[("yes sir", 5), ("yes  sir", 2), ("no", 1)]] * 20 + [[("a b", 5), ("a\tb", 1)]]
        )
    ]
    report = binarize(
        [str(write_lines(tmp_path / "feedback.jsonl", rows))], tmp_path / "pairs.jsonl", rule=rule
    )
    pairs = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(without_space(row["chosen"]) != without_space(row["rejected"]) for row in pairs)
    assert report["rows"] == 21 == report["pairs"] + sum(report["dropped"].values())
    assert (
        report["pairs"] == 20
        if rule != "handbook"
        else report["dropped"]["texts equal but for white space"] > 1
    )


def bomb(path: Path, count: int, size: int, nested: bool = False) -> Path:
    """A Parquet file of a few kB: one long text, that `count` rows hold."""
    said = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array(["a" * size]))
    whole = pa.table({"prompt": said, "chosen": ["b"] * count, "rejected": ["c"] * count})
    if nested:
        turns = pa.StructArray.from_arrays([pa.array(["user"] * count), said], ["role", "content"])
        whole = pa.table(
            {"messages": pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), turns)}
        )
    parquet.write_table(whole, path, compression="zstd")
    assert path.stat().st_size < 10_000
    return path


def test_a_long_text_a_thousand_times_in_parquet(tmp_path: Path) -> None:
    """2 kB on the disk were 8 GB in memory, and a MemoryError. Fails where a batch of rows is made
    plain before its size is known, or where a chunk for the workers has no bound but its rows."""
    flat, nested = (
        bomb(tmp_path / "flat.parquet", 100, 2**24),
        bomb(tmp_path / "nested.parquet", 400, 2**22, True),
    )
    said, grown = peak_of(
        f"print(sum(len(row.value['prompt']) for row in open_sources([{str(flat)!r}])[0].rows()))\n"
        f"try:\n    list(open_sources([{str(nested)!r}])[0].rows())\nexcept BadInput as error:\n "
        f"   print(error)"
    )
    assert said.splitlines()[0] == str(100 * 2**24) and grown < 6 * MAX_LINE_BYTES
    assert (
        said.splitlines()[1].startswith(f"{nested}, row 1: the row holds 16")
        and str(MAX_LINE_BYTES) in said
    )
    rows = (RawRow("", "", {"prompt": "a" * 2**24}) for _ in range(9))
    assert [len(chunk) for chunk in workers._chunks(rows)] == [4, 4, 1]


def test_parquet_rows_are_those_that_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dictionaries, row groups and parts are how a file is read, not what it holds; the row that is
    over the limit is named by its number in the file."""
    rows = [
        {
            "id": i,
            "prompt": None if i % 7 == 3 else f"q{i % 5}",
            "score": i / 2,
            "bytes": b"x" * (i % 3),
            "messages": None
            if i % 5 == 2
            else [{"role": "user", "content": f"é{i}" * (i % 9)}, {"role": "x", "content": None}]
            * (i % 3),
            "tags": [f"t{i % 2}"] * (i % 4),
            "about": {"a": {"b": [i, None]}},
        }
        for i in range(2500)
    ]
    table = pa.Table.from_pylist(rows)
    large = table.set_column(1, "prompt", table["prompt"].cast(pa.large_string()))
    for n, (made, options) in enumerate(
        [
            (table, {}),
            (table, {"row_group_size": 700}),
            (large, {}),
            (table, {"use_dictionary": False}),
            (table, {"store_schema": False}),
        ]
    ):
        parquet.write_table(made, tmp_path / f"{n}.parquet", **options)
        found = list(open_sources([str(tmp_path / f"{n}.parquet")])[0].rows())
        assert [row.value for row in found] == rows and found[-1].place.endswith("row 2500"), (
            options
        )
    monkeypatch.setattr("zephyr.data.parquet.MAX_ROW_BYTES", 400)
    assert [row.value for row in open_sources([str(tmp_path / "1.parquet")])[0].rows()] == rows
    parquet.write_table(
        pa.Table.from_pylist([*rows, {"prompt": "x" * 400}]),
        tmp_path / "long.parquet",
        row_group_size=700,
    )
    with pytest.raises(
        BadInput, match=r"long.parquet, row 2501: the row holds 4\d\d bytes, expected at most 400"
    ):
        list(open_sources([str(tmp_path / "long.parquet")])[0].rows())
    monkeypatch.setattr("zephyr.data.parquet.MAX_VALUES", 100)
    with pytest.raises(BadInput, match="0.parquet: its row group 0 holds"):
        list(open_sources([str(tmp_path / "0.parquet")])[0].rows())
