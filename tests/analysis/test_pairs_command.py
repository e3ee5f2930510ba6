"""`zephyr pairs` on a finished run: its values are those of the ledger and of the reference."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from runs import ledger, rows

from zephyr.analysis.hidden import encoded_pairs, run_tokenizer
from zephyr.analysis.runs import read_runs
from zephyr.analysis.table import ORDER
from zephyr.cli import main
from zephyr.data.rows import Row
from zephyr.reference import pair_digest, read_store


@pytest.fixture(scope="module")
def run(finished: Path) -> Path:
    return finished / "run"


def table(run: Path, out: Path, *options: str) -> list[Row]:
    assert main(["pairs", str(run), "--out", str(out), *options]) == 0
    return pq.read_table(out).to_pylist()


def test_a_row_for_each_visit(run: Path, tmp_path: Path) -> None:
    """Fails where a visit is lost or doubled, a value is another visit's, or a text another
    pair's."""
    found = table(run, tmp_path / "pairs.parquet")
    visits = sorted(ledger(run), key=lambda visit: visit["step"])
    assert len(found) == len(visits) == 40
    texts = {row["id"]: row for row in rows(20)}
    for row in found:
        of_pair = [visit for visit in visits if visit["id"] == row["id"]]
        visit = of_pair[row["visit"]]
        assert all(row[name] == visit[name] for name in visit)
        assert row["rewards/margins"] == visit["rewards/chosen"] - visit["rewards/rejected"]
        assert {name: row[name] for name in texts[row["id"]]} == texts[row["id"]]
        assert (row["source"], row["chosen_model"]) == ("pairs.jsonl", None)
        assert row["length_difference"] == row["chosen_tokens"] - row["rejected_tokens"]
        before = of_pair[row["visit"] - 1]
        change = visit["logps/chosen"] - before["logps/chosen"] if row["visit"] else None
        assert row["logps/chosen_change"] == change
    assert [row["visit"] for row in found] == [0, 1] * 20
    assert list(found[0]) == [name for name in ORDER if name in found[0]], "an unknown column"


def test_reference_logprobs_are_those_of_the_store(
    finished: Path, run: Path, tmp_path: Path
) -> None:
    """Fails where they are taken from a side's other column, or beta is left out."""
    found = {row["id"]: row for row in table(run, tmp_path / "p.parquet", "--rows", "pair")}
    (read,) = read_runs([run])
    (store,) = (finished / "reference").iterdir()
    entries = read_store(store)
    for pair in encoded_pairs(read, run_tokenizer(read)):
        chosen, rejected = entries[pair_digest(pair)]
        row = found[pair.id]
        assert row["ref_logps/chosen"] == pytest.approx(chosen, abs=1e-4)
        assert row["ref_logps/rejected"] == pytest.approx(rejected, abs=1e-4)
        assert row["ref_margin"] == pytest.approx(chosen - rejected, abs=2e-4)


def test_a_row_for_each_pair(run: Path, tmp_path: Path) -> None:
    """Fails where the values are not those of the last visit, or a change is not since the first;
    where the similarity is of other texts; where CSV loses a row."""
    found = table(run, tmp_path / "pairs.parquet", "--rows", "pair", "--ches", "--folds", "2")
    assert len(found) == 20 and {row["visit"] for row in found} == {1}
    for row in found:
        first, last = (visit for visit in ledger(run) if visit["id"] == row["id"])
        assert row["step"] == last["step"] and row["loss"] == last["loss"]
        margins = [v["rewards/chosen"] - v["rewards/rejected"] for v in (first, last)]
        assert row["margin_change"] == margins[1] - margins[0]
        assert 0 <= row["flip_suspicion"] <= 1 and 0 <= row["flip_suspicion_folds"] <= 1
        assert row["similarity"] == pytest.approx(indel(row["chosen"], row["rejected"]))
        assert np.isfinite(row["ches"]) and np.isfinite(row["ches_normalized"])
    assert main(["pairs", str(run), "--rows", "pair", "--out", str(tmp_path / "pairs.csv")]) == 0
    with (tmp_path / "pairs.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["id"] for row in read] == [row["id"] for row in found]
    assert float(read[3]["loss"]) == found[3]["loss"] and read[3]["prompt"] == found[3]["prompt"]


def indel(a: str, b: str) -> float:
    """2 L / (|a| + |b|), the longest common subsequence by the textbook's table."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
        above = row
    return 2 * above[-1] / (len(a) + len(b))


def test_a_selection_can_be_trained(run: Path, tmp_path: Path) -> None:
    """Fails where the rows are not those of the pairs that the rule selects, or the report does not
    say how they were made."""
    out = tmp_path / "kept.jsonl"
    rule = "top 25% of rewards/margins"
    assert main(["pairs", str(run), "--select", rule, "--out", str(out)]) == 0
    margins = {
        row["id"]: row["rewards/margins"]
        for row in table(run, tmp_path / "p.parquet", "--rows", "pair")
    }
    best = sorted(margins, key=margins.__getitem__)[-5:]
    assert [json.loads(line) for line in out.read_text().splitlines()] == [
        row for row in rows(20) if row["id"] in best
    ]
    report = json.loads((tmp_path / "kept.report.json").read_text())
    assert (report["rule"], report["selected"], report["pairs"]) == (rule, 5, 20)
    weighted = tmp_path / "weighted.jsonl"
    assert main(["pairs", str(run), "--select", rule, "--weight=.5", "--out", str(weighted)]) == 0
    found = {row["id"]: row for row in map(json.loads, weighted.read_text().splitlines())}
    assert found == {
        row["id"]: {**row, "weight": 1.0 if row["id"] in best else 0.5} for row in rows(20)
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--out x.txt", "--out: x.txt ends in '.txt', expected .parquet or .csv"),
        ("--out x", "--out: x ends in 'no suffix', expected .parquet or .csv"),
        ("--weight 1", "--weight: expected --select RULE"),
        ("--select top", "--select 'top': 'top' is no rule: expected .not. top"),
        ("--select 'top 1 of loss'", "--select writes rows, expected a name that ends in .jsonl"),
        ("--select 'top 1 of loss' --weight -1 --out x.jsonl", "expected a finite number >= 0"),
        ("--select 'top 1 of los' --out x.jsonl", "'los' is no column; the nearest is loss"),
        ("--select 'band 9.. of loss' --out x.jsonl", "no pair of .* is selected"),
        ("--folds 21", "--folds: expected at least 2 and at most 20"),
        ("--ches --model nowhere", "nowhere"),
    ],
)
def test_what_makes_no_sense_is_named(
    options: str,
    message: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fails where one passes, raises another error, or leaves a file."""
    monkeypatch.chdir(tmp_path)
    assert main(["pairs", str(run), *shlex.split(options)]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_folders_without_pairs(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a folder that is no run of train_dpo.py raises, or is taken for an empty one."""
    assert main(["pairs", str(tmp_path)]) == 2
    assert "is no run folder" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text((finished / "run" / "config.yaml").read_text())
    assert main(["pairs", str(tmp_path)]) == 2
    assert "holds no visits of pairs yet" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("model: m\n")
    assert main(["pairs", str(tmp_path)]) == 2
    assert "is no run of train_dpo.py" in capsys.readouterr().err


def test_rows_that_are_gone(
    finished: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where a run whose data were moved has no table, or does not say so."""
    moved = tmp_path / "run"
    (moved / "pairs").mkdir(parents=True)
    for part in (run / "pairs").iterdir():
        (moved / "pairs" / part.name).write_bytes(part.read_bytes())
    config = (run / "config.yaml").read_text().replace("pairs.jsonl", "gone.jsonl")
    (moved / "config.yaml").write_text(config)
    found = table(moved, tmp_path / "p.parquet")
    assert len(found) == 40 and {row["prompt"] for row in found} == {None}
    said = capsys.readouterr().err
    assert "gone.jsonl' does not exist" in said and "of 20 of 20 pairs are null" in said
