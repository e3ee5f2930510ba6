"""What a wandb run gets: the offline file is read back, as `wandb sync` would send it."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from zephyr.config import Wandb
from zephyr.training.curves import Table, curve_name
from zephyr.training.metrics import Recorder

BLOCK = 2**15  # bytes; a record ends with its block, and goes on in the next


def stored(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes.

    Each part of a record: CRC (4 bytes), length (2), type (1: whole, 2: first, 3: middle, 4: last).
    """
    content, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def test_the_offline_run_has_curves_config_digests_and_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written without a key or a question, and continued under the same id after a stop. Fails
    where a curve lacks its section or step, the config is flat, a digest or table is missing, a
    resumed run is another one, or a table that can't be made ends a run before its export."""
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings, config = Wandb(project="zephyr-test"), "beta: 0.1\noptim: {lr_peak: 1.0e-6}\n"
    for first in (0, 2):
        recorder = Recorder(
            tmp_path,
            settings,
            config,
            first_step=first,
            steps=4,
            active=True,
            digests={"model": "abc", "plan": "def"},
        )
        for step in (first, first + 1):
            train = {"step": step, "split": "train", "loss": 0.5, "rewards/chosen": 0.25}
            recorder.write({**train, "grad_norm": 2.0, "mfu": 0.4}, {"frozen_weights": "x"})
        recorder.write({"step": first + 2, "split": "eval", "loss": 0.6, "win_rate/n": 3}, {})
        recorder.add_table("pairs/worst", lambda: Table(("id", "margin"), [["a", -1.5]]), first + 2)
        recorder.add_table("pairs/broken", lambda: Table((), [[1 // 0]]), first + 2)
        recorder.close()
    assert "warning: wandb gets no table pairs/broken: ZeroDivision" in capsys.readouterr().err
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    records = [[Record.FromString(part) for part in stored(path)] for path in files]
    runs = [record.run for of in records for record in of if record.HasField("run")]
    assert len(files) == 2 and len({run.run_id for run in runs}) == 1
    assert runs[0].run_id == (tmp_path / "wandb" / "run-id").read_text()
    assert {run.project for run in runs} == {"zephyr-test"}
    configured = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert configured["optim"] == {"lr_peak": 1e-6} and configured["beta"] == 0.1
    assert configured["digests"] == {"model": "abc", "plan": "def"}
    histories = [
        {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        for record in records[0]
        if record.HasField("history")
    ]
    curves = {"train/loss": 0.5, "train_rewards/chosen": 0.25, "optimizer/grad_norm": 2.0}
    curves |= {"speed/mfu": 0.4, "alarms/frozen_weights": 1}
    assert [row["_step"] for row in histories] == [0, 1, 2]
    for row in histories[:2]:
        assert {name: row[name] for name in curves} == curves
    assert histories[2]["eval/loss"] == 0.6 and histories[2]["eval/win_rate_n"] == 3
    (table,) = files[0].parent.glob("files/media/table/pairs/worst*.json")
    assert json.loads(table.read_text()) == {"columns": ["id", "margin"], "data": [["a", -1.5]]}
    assert histories[2]["pairs/worst/_type"] == "table-file"


def test_every_metric_has_a_section_and_one_slash() -> None:
    """Each name of the README's table. Fails where two metrics share a curve, or wandb would make
    other sections by the first part of the names than by all."""
    text = (Path(__file__).parents[2] / "zephyr" / "training" / "README.md").read_text()
    metrics = text.partition("## Metrics")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in metrics.splitlines() if line.startswith("| `")]
    names = {name for cell in cells for name in cell.split("`")[1::2]} - {"step", "split"}
    names = {f"win_rate{name}" if name.startswith("/") else name for name in names}
    assert {"rewards/margins", "win_rate/low", "mfu", "loss"} <= names
    curves = [curve_name(split, name) for split in ("train", "eval") for name in sorted(names)]
    assert all(curve.count("/") == 1 for curve in curves)
    shared = {curve for curve in curves if curves.count(curve) > 1}
    assert all(curve.split("/")[0] in ("alarms", "optimizer", "speed") for curve in shared)
    assert len(set(curves[: len(names)])) == len(names)
