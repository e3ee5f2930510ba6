"""Runs whose ranks compute rows together, from the script to the export: `hardware.
sequence_parallel` changes where a row is computed, not what a run does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import ledger, records, rows, write_config, write_lines
from safetensors.numpy import load_file

from zephyr.cli import main

Launch = Callable[..., object]  # the fixture of conftest.py
LAYOUTS = [(2, 2), (4, 2), (4, 4)]  # ranks, and ranks to a row
COMPARED = ("loss", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected")
COUNTS = ("step", "epoch", "pairs", "tokens", "learning_rate")
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def one_rank(tiny: Path, launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run on one rank: 6 steps, evaluations, checkpoints after 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("one")
    data = write_lines(folder / "pairs.jsonl", rows(20))
    config = write_config(
        folder,
        tiny,
        data,
        data__eval=[str(data)],
        run__save_every=2,
        run__eval_every=3,
        run__keep=3,
    )
    launch("train_dpo.py", config, ranks=1)
    return folder


def run_together(
    one_rank: Path, launch: Launch, folder: Path, ranks: int, size: int, *more: str
) -> Path:
    """The same config with `size` ranks to a row; its run folder."""
    launch(
        "train_dpo.py",
        one_rank / "config.yaml",
        f"run.dir={folder / 'run'}",
        f"reference.dir={folder / 'reference'}",
        f"hardware.sequence_parallel={size}",
        *more,
        ranks=ranks,
    )
    return folder / "run"


def require_same_run(run: Path, wanted: Path, start: Path) -> None:
    """Records, ledger and weights, to rounding: 5e-6 of each number's size, of an update 1e-3."""
    for split in ("train", "eval"):
        assert len(records(run, split)) == len(records(wanted, split)) > 2
        for ours, theirs in zip(records(run, split), records(wanted, split)):
            assert all(ours.get(name) == theirs.get(name) for name in COUNTS)
            for name in COMPARED + ("grad_norm",) * (split == "train"):
                assert ours[name] == pytest.approx(theirs[name], rel=5e-6, abs=5e-6), name
    both = [
        sorted(ledger(of), key=lambda visit: (visit["step"], visit["id"])) for of in (run, wanted)
    ]
    assert len(both[0]) == len(both[1]) == 40
    for ours, theirs in zip(*both):
        assert (ours["id"], ours["step"]) == (theirs["id"], theirs["step"])
        assert all(
            ours[name] == pytest.approx(theirs[name], rel=5e-6, abs=5e-6) for name in COMPARED
        )
    found, expected, begun = (
        load_file(folder / "model.safetensors")
        for folder in (run / "model", wanted / "model", start)
    )
    for name, weight in expected.items():
        update = np.linalg.norm(weight - begun[name])
        assert update > 0 and np.linalg.norm(found[name] - weight) <= 1e-3 * update, name


@pytest.mark.parametrize("ranks, size", LAYOUTS)
def test_a_run_is_that_of_one_rank(
    ranks: int, size: int, one_rank: Path, tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """Fails where a row is counted or written once for each of its ranks, a rank scores another
    row than its neighbour, or the reference pass or an evaluation computes parts of rows."""
    run = run_together(one_rank, launch, tmp_path, ranks, size)
    require_same_run(run, one_rank / "run", tiny)
    found = json.loads((run / "preflight.json").read_text())
    assert 0 <= found["gradient"]["difference"] < 1e-5
    # The store's address does not depend on it: a run of one rank finds every pair, and agrees.
    again = launch(
        "train_dpo.py",
        one_rank / "config.yaml",
        f"run.dir={tmp_path / 'again'}",
        f"reference.dir={tmp_path / 'reference'}",
        "data.limit=8",
        ranks=1,
    )
    assert "a sample of them was computed again and agrees" in again.stderr
    assert "forward pass" not in again.stderr


@pytest.mark.parametrize("before, after", [((1, 1), (2, 2)), ((2, 2), (4, 2)), ((4, 4), (2, 1))])
def test_a_run_goes_on_under_another_layout(
    before: tuple[int, int],
    after: tuple[int, int],
    one_rank: Path,
    tiny: Path,
    launch: Launch,
    tmp_path: Path,
) -> None:
    """Cut off after step 2 and started again with other ranks, and other ranks to a row. Fails
    where the plan's digest or a shard depends on them."""
    run = tmp_path / "run"
    if before == (1, 1):
        shutil.copytree(one_rank / "run", run)
    else:
        run_together(one_rank, launch, tmp_path, *before)
    for step in (4, 6):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    shutil.rmtree(run / "model")
    (run / "checkpoints" / "latest").write_text("step-2")
    run_together(one_rank, launch, tmp_path, *after)
    require_same_run(run, one_rank / "run", tiny)


def test_a_row_longer_than_one_ranks_share_is_trained(
    one_rank: Path, tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """A budget that one rank of 4 could not hold alone: 4 times the tokens that it has of a row.
    The longest pair alone is more than a rank's share of the budget. Fails where a rank's share is
    measured against its own length, or an example must fit into a share."""
    found = json.loads((one_rank / "run" / "preflight.json").read_text())
    longest = int(found["plan"]["longest_tokens"])
    budget = f"hardware.tokens_per_micro_batch={longest + 1}"
    run = run_together(one_rank, launch, tmp_path, 4, 4, budget)
    require_same_run(run, one_rank / "run", tiny)


@pytest.mark.parametrize(
    "ranks, changes, complaint",
    [
        (2, ["hardware.sequence_parallel=3"], "expected a divisor of the 2 ranks, got 3"),
        (3, ["hardware.sequence_parallel=3"], "a divisor of the model's 4 attention heads, got 3"),
    ],
)
def test_a_layout_that_can_not_be_is_one_line(
    ranks: int,
    changes: list[str],
    complaint: str,
    one_rank: Path,
    launch: Launch,
    tmp_path: Path,
) -> None:
    """Before a step, on every rank. Fails where ranks wait for each other, or heads are lost."""
    result = launch(
        "train_dpo.py",
        one_rank / "config.yaml",
        f"run.dir={tmp_path / 'run'}",
        *changes,
        ranks=ranks,
        check=False,
    )
    assert result.returncode and "hardware.sequence_parallel: expected" in result.stderr
    assert complaint in result.stderr and "Traceback" not in result.stderr


def test_verify_compares_with_whole_rows(one_rank: Path, tmp_path: Path) -> None:
    """`zephyr verify` of a config with 2 ranks to a row trains once more with whole rows, and does
    not try fewer ranks than a row has. Fails where the variant is missing or another trajectory."""
    text = (one_rank / "config.yaml").read_text()
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("hardware:\n", "hardware:\n  sequence_parallel: 2\n"))
    code = main(["verify", str(config), "--rows", "12", "--ranks", "2", "--out", str(tmp_path)])
    report = json.loads((tmp_path / "certificate.json").read_text())
    assert code == 0 and report["same"]
    assert report["variants"]["sequence"]["same"]
    assert "not_varied" in report["variants"]["world_size"]
