"""Rewards of published cards: which pairs they are of, what a run has on the same pairs, and what
the cards' own figures say of how they were made."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, SequentialSampler

from zephyr.analysis.cards import (
    METRICS,
    compare_card,
    custom_card,
    rank0_batches,
    rank0_figure,
    read_cards,
    read_evaluated,
)
from zephyr.cli import main
from zephyr.config import BadInput
from zephyr.costs.published import schedule

BETA = read_cards()["zephyr-7b-beta"]
LAYOUTS = [
    (n, gpus, b) for n in (1, 5, 16, 17, 37, 64, 100) for gpus in (2, 4, 8) for b in (1, 3, 8)
]


@pytest.mark.parametrize("rows,gpus,batch", [*LAYOUTS, (1000, 16, 4), (2000, 8, 8), (2000, 4, 8)])
def test_the_pairs_of_rank_0_are_those_of_accelerate(rows: int, gpus: int, batch: int) -> None:
    """Against the sampler that dealt the batches. Fails where a batch goes to another rank, or the
    last one is filled up with other rows; also for fewer rows than a round of batches."""
    sampler = BatchSampler(SequentialSampler(range(rows)), batch, drop_last=False)
    shard = BatchSamplerShard(sampler, num_processes=gpus, process_index=0)
    assert rank0_batches(rows, gpus, batch) == list(shard)


@pytest.mark.parametrize(
    "rows,gpus,batch,pairs", [(1000, 16, 4, 64), (2000, 8, 8, 256), (2000, 4, 8, 504)]
)
def test_the_published_fractions(rows: int, gpus: int, batch: int, pairs: int) -> None:
    """Accuracies are multiples of 1/64, 1/256 and 1/504 under the layouts of the cards, whatever
    the rewards. Fails where the mean is over another number of pairs."""
    batches = rank0_batches(rows, gpus, batch)
    assert sum(map(len, batches)) == pairs == len({i for of in batches for i in of})
    right_P = (torch.rand(rows, generator=torch.Generator().manual_seed(0)) < 0.78).double()
    mean = rank0_figure(right_P.numpy(), batches)["mean"]
    assert mean * pairs == pytest.approx(round(mean * pairs), abs=1e-9)
    assert mean != pytest.approx(float(right_P.mean()), abs=1e-6)


def test_one_gpu_takes_every_row_once() -> None:
    """Fails where the last batch is filled up, which accelerate does not do for one process."""
    assert rank0_batches(10, 1, 4) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    values = np.arange(10.0)
    assert rank0_figure(values, rank0_batches(10, 1, 4))["mean"] == pytest.approx(
        (1.5 + 5.5 + 8.5) / 3
    )


def test_the_standard_error_of_64_pairs() -> None:
    """50 of 64 right: 5.2 percentage points, the noise of zephyr-7b-beta's accuracy."""
    right_P = np.array([1.0] * 50 + [0.0] * 14)
    figure = rank0_figure(right_P, [list(range(64))])
    assert figure["mean"] == 50 / 64 and figure["stderr"] == pytest.approx(0.052, abs=5e-4)
    assert rank0_figure(np.ones(1), [[0]])["stderr"] is None


def test_the_card_of_beta_is_of_64_pairs_of_one_set() -> None:
    """All its 59 evaluations: accuracies are multiples of 1/64; margins are chosen less rejected;
    log-probs less reward / 0.1 are one reference; and the epochs of its steps are those of 61,966
    pairs at batch 32. Fails for a slip in the table, or a schedule that would not give its epochs.
    """
    of_set = schedule(61_966, 32, 3)
    assert len(BETA.points) == 59
    for point in BETA.points:
        values = point.values
        sixtyfourths = values["rewards/accuracies"] * 64
        assert abs(sixtyfourths - round(sixtyfourths)) < 0.004
        margin = values["rewards/chosen"] - values["rewards/rejected"]
        assert margin == pytest.approx(values["rewards/margins"], abs=1.5e-4)
        assert values["ref_logps/chosen"] == pytest.approx(-254.2351, abs=1e-3)
        assert values["ref_logps/rejected"] == pytest.approx(-256.9699, abs=1e-3)
        assert point.step is not None
        assert round(of_set.epoch_at(point.step), 2) == point.epoch


def a_run(folder: Path, rows: int, steps: dict[int, float]) -> Path:
    """A run folder with evaluations: step -> epoch. The pairs are not in their order."""
    rng = np.random.default_rng(0)
    (folder / "eval_pairs").mkdir(parents=True)
    (folder / "config.yaml").write_text("beta: 0.1\n")
    (folder / "data.json").write_text(json.dumps({"eval": {"rows_read": rows, "examples": rows}}))
    for step, epoch in steps.items():
        chosen_P, rejected_P = rng.normal(0.5, 1, rows), rng.normal(0, 1, rows)
        shuffled_P = rng.permutation(rows)
        columns = {
            "row": np.arange(rows),
            "epoch": np.full(rows, epoch),
            "loss": np.logaddexp(0, rejected_P - chosen_P),
            "rewards/chosen": chosen_P,
            "rewards/rejected": rejected_P,
            "logps/chosen": -200 + 10 * chosen_P,
            "logps/rejected": -210 + 10 * rejected_P,
        }
        table = pa.table({name: values[shuffled_P] for name, values in columns.items()})
        pq.write_table(table, folder / "eval_pairs" / f"step-{step}.parquet")
    return folder


def test_a_run_beside_the_cards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values on rank 0's pairs by hand, the card's evaluation of the nearest epoch, and the loss of
    all pairs. Fails where rows are taken in the file's order, the slice is of another layout, or
    another evaluation of the card stands beside the run's."""
    run = a_run(tmp_path / "run", 2000, {0: 0.0, 1900: 0.98})
    evaluated = read_evaluated(run)
    compared = compare_card(BETA, evaluated)
    table = pq.read_table(run / "eval_pairs" / "step-1900.parquet").sort_by("row")
    margin_P = table["rewards/chosen"].to_numpy() - table["rewards/rejected"].to_numpy()
    mine = [n for start in range(0, 1000, 64) for n in range(start, start + 4)]
    assert len(mine) == compared["pairs"] == 64 and compared["step"] == 1900
    metrics = compared["metrics"]
    assert set(METRICS) < set(metrics)
    assert metrics["rewards/margins"]["rank0"]["mean"] == pytest.approx(margin_P[mine].mean())
    assert metrics["rewards/accuracies"]["rank0"]["mean"] == (margin_P[mine] > 0).mean()
    assert metrics["rewards/margins"]["all"]["mean"] == pytest.approx(margin_P.mean())
    assert metrics["rewards/margins"]["card"] == 1.4230 and metrics["loss"]["card"] == 0.5290
    assert metrics["loss"]["rank0"] is None
    assert metrics["ref_logps/chosen"]["all"]["mean"] == pytest.approx(-200)
    assert main(["cards", str(run)]) == 0
    page = capsys.readouterr().out
    assert page.count("rank 0 of 8 GPUs x 8 of 2,000 rows") == 2 and "on its 64 pairs" in page
    line = next(line for line in page.splitlines() if "rewards/accuracies" in line)
    assert "0.8281" in line and f"{(margin_P[mine] > 0).mean():.4f} +- 0.0" in line
    assert main(["cards", str(run), "--step", "0", "--card", BETA.name, "--json"]) == 0
    (first,) = json.loads(capsys.readouterr().out)["cards"]
    assert first["step"] == 100 and first["epoch"] == 0.05


def test_rows_that_are_no_pairs_are_told(tmp_path: Path) -> None:
    """Fails where the places of a card's pairs have moved, and nobody is told."""
    run = a_run(tmp_path / "run", 100, {5: 1.0})
    assert not read_evaluated(run).notes
    (run / "data.json").write_text(json.dumps({"eval": {"rows_read": 103, "examples": 100}}))
    assert "3 of 103 rows of data.eval are no pairs" in read_evaluated(run).notes[0]


def test_a_table_of_scores_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `zephyr score --reference` writes, for models without a run. Fails where its loss is not
    that of the margins, or its rows lose their order."""
    path = tmp_path / "scores.parquet"
    names = ("rewards/chosen", "rewards/rejected", "logps/rejected", "logps/chosen")
    columns = {name: [0.5 * n, 1.0, -3.0] for n, name in enumerate(names)}
    columns |= {"ref_logps/chosen": [-1.0] * 3, "ref_logps/rejected": [-2.0] * 3}
    pq.write_table(pa.table(columns), path)
    evaluated = read_evaluated(path)
    assert evaluated.columns["loss"][1] == pytest.approx(math.log(2))
    layout = custom_card(2, 1, None, evaluated)
    assert compare_card(layout, evaluated)["pairs"] == 2
    assert main(["cards", str(path), "--gpus", "2", "--batch", "1", "--rows", "2"]) == 0
    assert "rank 0 of 2 GPUs x 1 of 2 rows" in capsys.readouterr().out


def test_what_is_no_evaluation_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails for a traceback, or an answer about other pairs."""
    run = a_run(tmp_path / "run", 10, {5: 1.0, 9: 2.0})
    empty = tmp_path / "empty"
    empty.mkdir()
    table = tmp_path / "scores.parquet"
    pq.write_table(pa.table({"id": ["a"]}), table)
    other = tmp_path / "scores.csv"
    other.write_text("id\n")
    for path, step, message in (
        (empty, None, "no eval_pairs/"),
        (run, 7, "evaluated after 5, 9 updates"),
        (table, 1, "expected a run folder"),
        (table, None, "expected the columns loss|expected the columns rewards/chosen"),
        (other, None, "expected a .parquet"),
    ):
        with pytest.raises(BadInput, match=message):
            read_evaluated(path, step)
    for options, message in (
        (["--card", "zephyr-7b"], "the nearest is zephyr-7b-beta"),
        (["--gpus", "2"], "--gpus N and --batch N"),
        (["--gpus", "0", "--batch", "1"], "--gpus: expected an integer >= 1"),
    ):
        assert main(["cards", str(run), *options]) == 2
        assert message in capsys.readouterr().err
