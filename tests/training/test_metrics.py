"""What a run writes about its steps: records of one rank, read again by a run that goes on; a row
for each pair's visit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from zephyr.config import BadInput, Wandb
from zephyr.training.metrics import LEDGER, Ledger, Recorder, Totals, truncate_records

OFF = Wandb(mode="disabled")
LINES = [
    {"step": 0, "split": "eval"},
    {"step": 2, "split": "train"},
    {"step": 3, "split": "train"},
    {"step": 4, "split": "eval"},
    {"step": 4, "split": "train"},
    {"step": 6, "split": "eval"},
]


def recorder(folder: Path, *, first_step: int = 0, active: bool = True) -> Recorder:
    return Recorder(folder, OFF, "model: m", first_step=first_step, steps=9, active=active)


def written(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def lines_of(path: Path, *more: str) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES) + "".join(more))
    return path


def test_sums_are_kept_in_float64_without_a_gradient() -> None:
    """4,000 losses of float32, each too small to show in their sum's last digits. Fails where a
    step's mean is off by the rounding of its sums, or a graph lives on in them."""
    totals, small = Totals(), torch.tensor(1e-4, requires_grad=True)
    totals.add(torch.tensor(1000.0, requires_grad=True), {"rewards": torch.ones(2)})
    for _ in range(4000):
        totals.add(small, {"rewards": torch.tensor([1.0, 2.0])})
    assert totals.sums["loss"].dtype == torch.float64 and not totals.sums["loss"].requires_grad
    assert float(totals.sums["loss"]) == pytest.approx(1000.4, rel=1e-9)
    assert float(totals.sums["rewards"]) == 12002 and set(totals.sums) == {"loss", "rewards"}


def test_records_of_a_checkpoint_are_those_before_it(tmp_path: Path) -> None:
    """Of step 4: train records before it, evaluations up to it; of a start: none, an evaluation of
    step 0 neither. Fails where a step stands twice, an evaluation that was paid for goes, or one
    that a new start makes again stays."""
    path = lines_of(tmp_path / "metrics.jsonl")
    assert truncate_records(path, 4) == LINES[:4] == written(tmp_path)
    assert truncate_records(path, 0) == [] and path.read_bytes() == b""
    assert truncate_records(tmp_path / "none.jsonl", 4) == []
    assert not (tmp_path / "none.jsonl").exists()


def test_records_that_all_stay_are_not_written_again(tmp_path: Path) -> None:
    """Fails where a run that only looks at a folder touches its record; or where a line that was
    cut off in the middle, or is without its end, stays and swallows the next."""
    path = lines_of(tmp_path / "metrics.jsonl")
    before = path.stat().st_ino
    assert len(truncate_records(path, 9)) == 6 and path.stat().st_ino == before
    for half in ('{"step": 5, "spl', '{"step": 5, "split": "train"}'):
        lines_of(path, half)
        assert truncate_records(path, 9) == LINES == written(tmp_path)
        assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    "line", ["{", "[1]", '{"split": "eval"}', '{"step": 1}', '{"step": "a", "split": "train"}']
)
def test_a_line_that_is_no_record_is_named(line: str, tmp_path: Path) -> None:
    """Fails for a traceback, or where the line is dropped, or counted from zero."""
    path = lines_of(tmp_path / "metrics.jsonl", line + "\n", '{"step": 8, "split": "train"}\n')
    if line == '{"step": 1}':  # a train or an eval record: nobody knows
        line = '{"step": 9}'
        lines_of(path, line + "\n")
    before = path.read_bytes()
    with pytest.raises(BadInput, match="metrics.jsonl:7: no record: .*mend or remove the line"):
        truncate_records(path, 9)
    assert path.read_bytes() == before


def test_an_alarm_is_a_flag_of_each_record_and_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where it is said at every step, so that nobody reads it; flagged once only; or where a
    second kind is not said, since one was."""
    of = recorder(tmp_path)
    raised = [{}, {"a": "first"}, {"a": "first"}, {"a": "x", "b": "other"}, {}, {"a": "again"}]
    for step, alarms in enumerate(raised):
        of.write({"step": step, "split": "train", "loss": 0.5}, alarms)
    of.close()
    said = [
        line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if "alarm" in line
    ]
    assert said == ["alarm at step 1: first", "alarm at step 3: other"]
    flags = [sorted(key for key in r if key.startswith("alarms/")) for r in written(tmp_path)]
    assert flags == [[], ["alarms/a"], ["alarms/a"], ["alarms/a", "alarms/b"], [], ["alarms/a"]]
    assert written(tmp_path)[1]["alarms/a"] == 1


def test_a_run_that_goes_on_knows_its_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The alarm of overfitting compares with all before. Fails where those before the checkpoint
    are forgotten, a train record is taken for one, or the new one is not among them; or where a
    record is written over the old ones."""
    lines_of(tmp_path / "metrics.jsonl")
    of = recorder(tmp_path, first_step=4)
    assert of.evaluations == [LINES[0], LINES[3]] and of.bar.done == 4 and of.bar.total == 9
    of.write({"step": 4, "split": "train", "loss": 0.25}, {})
    of.advance()
    record = {
        "step": 5,
        "split": "eval",
        "loss": 0.25,
        "rewards/accuracies": 0.75,
        "win_rate": None,
    }
    of.write(record, {})
    assert of.evaluations == [LINES[0], LINES[3], record] and of.bar.done == 5
    of.sync()
    of.close()
    assert written(tmp_path) == [*LINES[:4], {"step": 4, "split": "train", "loss": 0.25}, record]
    assert "step 5 eval: loss=0.25 acc=0.75\n" in capsys.readouterr().err


def test_a_rank_that_is_not_the_first_records_nothing(tmp_path: Path) -> None:
    """Fails where two ranks write one file, or the other's is an error."""
    path = lines_of(tmp_path / "metrics.jsonl")
    before = path.read_bytes()
    of = recorder(tmp_path, first_step=2, active=False)
    of.write({"step": 0, "split": "eval", "loss": 0.5}, {"a": "x"})
    of.sync()
    of.advance()
    of.close()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    assert of.evaluations == [] and of.wandb is None


class Stub:
    """A wandb run that keeps what it is given."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, object], int]] = []
        self.ended = 0

    def log(self, values: dict[str, object], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.ended += 1


def test_wandb_gets_records_under_their_split(tmp_path: Path) -> None:
    """Fails where training and evaluation share a curve, the step's number becomes one, or the run
    is not ended, which loses its last lines."""
    of = recorder(tmp_path)
    of.wandb = Stub()
    of.write({"step": 3, "split": "eval", "loss": 0.5}, {"a": "x"})
    of.close()
    assert of.wandb.logged == [({"eval/loss": 0.5, "alarms/a": 1}, 3)] and of.wandb.ended == 1


COUNTS = {"prompt_tokens": [3, 4, 5], "chosen_tokens": [6, 7, 8], "rejected_tokens": [1, 1, 2]}


def ledger(folder: Path, *, first_step: int = 0, writes: bool = True) -> Ledger:
    return Ledger(folder, ["a", "b", "c"], COUNTS, first_step, writes)


def stats(*losses: float) -> dict[str, torch.Tensor]:
    loss_P = torch.tensor(losses)
    return {"loss": loss_P, "rewards/chosen": -loss_P, "grad": loss_P, "logps/chosen": 2 * loss_P}


def test_a_visit_is_a_row_of_its_pair(tmp_path: Path) -> None:
    """Two micro-batches of a step and one of another, written once in the order of steps and ids.
    Fails where a value or a length is another pair's, a column that is none of the ledger's gets
    in, or a row is written again with the next part."""
    of = ledger(tmp_path)
    of.add(1, 0.5, (2, 0), stats(0.3, 0.1))
    of.add(0, 0.0, (1,), stats(0.2))
    of.add(0, 0.0, (), {})  # this rank had nothing to do
    rows = of.rows()
    assert [row["id"] for row in rows] == ["c", "a", "b"] and of.rows() == []
    assert set(rows[0]) == {
        "id",
        "step",
        "epoch",
        "loss",
        "rewards/chosen",
        "logps/chosen",
        *COUNTS,
    }
    assert set(rows[0]) - {"id", "step", "epoch"} <= set(LEDGER)
    of.commit(2, rows)
    (part,) = (tmp_path / "pairs").iterdir()
    read = pq.read_table(part).to_pylist()
    assert part.name == "step-2.parquet" and [(r["step"], r["id"]) for r in read] == [
        (0, "b"), (1, "a"), (1, "c")]  # fmt: skip
    assert read[2]["loss"] == pytest.approx(0.3) and read[2]["rewards/chosen"] == -read[2]["loss"]
    assert [r["chosen_tokens"] for r in read] == [7, 6, 8] and read[2]["epoch"] == 0.5
    of.commit(3, [])
    assert len(list((tmp_path / "pairs").iterdir())) == 1


def test_parts_of_steps_to_come_go_where_one_writes(tmp_path: Path) -> None:
    """Fails where a pair's visit stands in two parts, a part of before the checkpoint is lost, or a
    rank that does not write removes or makes one."""
    first = ledger(tmp_path)
    for step in (2, 4, 6):
        first.commit(step, [{"id": "a", "step": step - 1}])

    def names() -> list[str]:
        return sorted(path.name for path in (tmp_path / "pairs").iterdir())

    other = ledger(tmp_path, first_step=0, writes=False)
    other.commit(8, [{"id": "a", "step": 7}])
    assert names() == ["step-2.parquet", "step-4.parquet", "step-6.parquet"]
    ledger(tmp_path, first_step=4)
    assert names() == ["step-2.parquet", "step-4.parquet"]


def test_the_pairs_of_a_loss_that_is_none_are_named(tmp_path: Path) -> None:
    """Of the step that is asked for. Fails where a pair of an earlier step, or all of a
    micro-batch, is blamed."""
    of = ledger(tmp_path)
    of.add(3, 0.0, (0, 1), stats(math.nan, 0.1))
    of.add(4, 0.0, (1, 2), stats(0.1, math.inf))
    of.add(4, 0.0, (0,), stats(0.1))
    assert of.non_finite(4) == ["c"] and of.non_finite(3) == ["a"] and of.non_finite(5) == []
