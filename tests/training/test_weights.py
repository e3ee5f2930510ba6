"""Weights of pairs in runs: sums and means of a step count each pair with its weight, on any number
of ranks. The traces of test_trace.py compare fractional weights with plain PyTorch."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from runs import ledger, records, rows, write_config, write_lines
from safetensors.numpy import load_file

import train_dpo
from zephyr.chat import EncodedPair
from zephyr.cli import main
from zephyr.config import Data, DPOConfig
from zephyr.model.load import load_policy
from zephyr.packing import collate_pairs
from zephyr.reference import Reference
from zephyr.training.metrics import Totals

Launch = Callable[..., object]  # the fixture of conftest.py
ABOUT_SPEED = {"tokens_per_second", "packing_efficiency", "step_seconds", "peak_memory_bytes"}
# Rows with weights, and rows that say the same without: one of weight 2 stands twice, one of weight
# 0 is not there.
TWICE, NEVER = 4, 9


@pytest.mark.parametrize("weighting", ["none", "wpo"])
def test_weight_2_is_the_pair_twice(weighting: str, tiny: Path) -> None:
    """The gradient of a step's mean, and the means of all metrics. Fails where a metric forgets the
    weight, or where WPO's weights enter the divisor."""
    policy = load_policy(tiny)
    ids = [[1, 5, 6], [7, 2], [8, 9, 10, 11, 2]], [[1, 12], [13, 14, 15, 2], [16, 2]]
    once = [EncodedPair(str(n), *of_pair, weight=2 - n) for n, of_pair in enumerate(ids)]
    twice = [pair._replace(weight=1) for pair in (once[0], once[0], once[1])]
    config = DPOConfig("m", Data(("d",)), sft_weight=0.3, weighting=weighting)
    means, gradients = [], []
    for pairs in (once, twice):
        batch = collate_pairs(pairs, range(len(pairs)))
        reference = Reference(torch.tensor([[-9.0, -20.0]] * len(pairs)))
        loss_sum, stats = train_dpo.dpo_objective(config, reference)(policy, batch)
        totals = Totals()
        totals.add(loss_sum, stats)
        means.append({name: float(value) / 3 for name, value in totals.sums.items()})
        gradients.append(torch.autograd.grad(loss_sum / 3, list(policy.parameters())))
    assert means[0] == pytest.approx(means[1], rel=1e-5) and len(means[0]) >= 7
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def weighted_and_plain() -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """20 rows with weights; the same without: 20 again, since one is twice and one is left out."""
    plain = rows(20)
    weighted = [{**row, "weight": {TWICE: 2, NEVER: 0}.get(i, 1)} for i, row in enumerate(plain)]
    again = {**plain[TWICE], "id": "again"}
    return weighted, [*plain[:NEVER], *plain[NEVER + 1 :], again]


@pytest.mark.long
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_weighted_run_is_the_run_on_repeated_rows(
    ranks: int, tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """Full batches of all rows, so that order does not matter: records and weights agree to
    rounding, held-out pairs too, on one rank and on two. Fails where a rank divides by its own
    weight, or where an evaluation ignores weights."""
    found = []
    for name, lines in zip(("weighted", "plain"), weighted_and_plain()):
        folder = tmp_path / name
        folder.mkdir()
        data = write_lines(folder / "pairs.jsonl", lines)
        config = write_config(folder, tiny, data, data__eval=[str(data)], run__eval_every=2)
        launch("train_dpo.py", config, "optim.pairs_per_step=100", "optim.epochs=4", ranks=ranks)
        found.append(folder / "run")
    for split in ("train", "eval"):
        pairs = list(zip(*(records(run, split) for run in found)))
        assert len(pairs) >= 2
        for ours, plain in pairs:
            assert ours.pop("pairs") == 19 and plain.pop("pairs") == 20
            assert ours.pop("weight") == 20 and "weight" not in plain
            for name in plain.keys() - ABOUT_SPEED - {"tokens", "split"}:
                assert ours[name] == pytest.approx(plain[name], rel=2e-4, abs=2e-5), name
    ours, plain = (load_file(run / "model" / "model.safetensors") for run in found)
    for name, value in plain.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=2e-5)
    weights = {row["id"]: row["weight"] for row in ledger(found[0])}
    assert weights == {row["id"]: row["weight"] for row in weighted_and_plain()[0] if row["weight"]}


@pytest.mark.long
def test_weight_0_changes_nothing(tiny: Path, launch: Launch, tmp_path: Path) -> None:
    """To the bit: a run without the row, and one with the row at weight 0. Fails where such a row
    takes a place in the plan, a share of the mean, or a line of the ledger."""
    lines = rows(20)
    runs = []
    for name, more in (("without", []), ("with", [{**rows(21)[20], "weight": 0}])):
        folder = tmp_path / name
        folder.mkdir()
        data = write_lines(folder / "pairs.jsonl", [*lines, *more])
        launch("train_dpo.py", write_config(folder, tiny, data), ranks=2)
        runs.append(folder / "run")
    ours, other = (
        [{k: v for k, v in r.items() if k not in ABOUT_SPEED} for r in records(run)] for run in runs
    )
    assert ours == other and ledger(runs[0]) == ledger(runs[1])
    a, b = (load_file(run / "model" / "model.safetensors") for run in runs)
    assert all(np.array_equal(a[name], b[name]) for name in b)
    report = json.loads((runs[1] / "data.json").read_text())["train"]
    assert report["dropped"]["weight 0"] == 1 and report["examples"] == 20


@pytest.mark.long
def test_a_reference_free_run_with_weights_in_all_that_shows_it(
    finished: Path, tiny: Path, launch: Launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`zephyr pairs --weight` of a finished run trains under SimPO, whose config has a group as
    `loss`. Fails where the report speaks of a reference, a log-prob of a reference is made up, or a
    weight or a setting is not told."""
    weighted = tmp_path / "weighted.jsonl"
    rule = ("--select", "top 25% of rewards/margins", "--weight", ".5")
    assert main(["pairs", str(finished / "run"), *rule, "--out", str(weighted)]) == 0
    config = write_config(tmp_path, tiny, weighted, data__eval=[str(weighted)], beta=0.5)
    told = launch("train_dpo.py", config, "loss={name: simpo, gamma: 0.5}", "run.eval_every=3")
    run = tmp_path / "run"
    assert "weights: 15 pairs have another weight than 1" in told.stderr
    assert "all together weigh 12.5" in told.stderr and not (tmp_path / "reference").exists()
    assert "warning: beta is 0.5: loss 'simpo' takes means" in told.stderr
    assert [r["weight"] for r in records(run, "eval")] == [12.5] * 3
    out = tmp_path / "p.parquet"
    assert main(["pairs", str(run), "--out", str(out), "--folds", "2"]) == 0
    found = pq.read_table(out).to_pylist()
    assert sorted({row["weight"] for row in found}) == [0.5, 1.0]
    for row in found:
        assert row["ref_logps/chosen"] is row["ref_logps/rejected"] is row["ref_margin"] is None
        reward = 0.5 * row["logps/chosen"] / row["chosen_tokens"]
        assert row["rewards/chosen"] == pytest.approx(reward, rel=1e-5)
    page = (run / "report.html").read_text()
    assert "simpo loss (gamma 0.5)" in page and "15 pairs with another weight than 1" in page
    assert re.search("Is the chosen response falling", page) and "nats, from" in page
    card = (run / "model" / "README.md").read_text()
    assert "simpo" in card and "gamma" in card
    shown = main(["report", str(run), str(finished / "run"), "--out", str(tmp_path / "both.html")])
    assert shown == 0 and "simpo" in (tmp_path / "both.html").read_text()
    capsys.readouterr()
