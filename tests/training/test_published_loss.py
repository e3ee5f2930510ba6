"""The loss of a published run against the last evaluation of a run: the verdict in its files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from processes import Launch
from runs import records, rows, write_config, write_lines

from zephyr.analysis.cards import read_evaluated
from zephyr.analysis.runs import read_run
from zephyr.analysis.visits import read_visits
from zephyr.config import ConfigError, DPOConfig, Published, load
from zephyr.report.verdict import verdict
from zephyr.training.published import compare, last_comparison, last_evaluation

CARD = Published(eval_loss=0.7496, source="a card", within=0.01)


@pytest.mark.parametrize(
    "loss,reached",
    [(0.7496, True), (0.7596, True), (0.7396, True), (0.7597, False), (0.7395, False)],
)
def test_a_loss_is_reached_from_both_sides(loss: float, reached: bool) -> None:
    """At the tolerance and just beyond it. Fails where only a higher loss counts as missed, or
    rounding of decimals decides at the edge."""
    compared = compare(CARD, loss)
    assert compared.is_reached is reached and compared.metrics()["published/reached"] == reached
    assert ("NOT reached" in compared.line()) is not reached and "a card" in compared.line()
    assert compared.difference == pytest.approx(loss - 0.7496)


def test_a_loss_that_is_not_finite_is_not_reached() -> None:
    """Fails where a comparison with NaN counts as within, or status.json gets a number that JSON
    does not have."""
    for loss in (math.nan, math.inf):
        status = compare(CARD, loss).status()
        assert status["reached"] is False and status["eval_loss"] is None
        assert "NaN" not in json.dumps(status) and "Infinity" not in json.dumps(status)


def test_a_run_tells_whether_it_reached_the_published_loss(
    tiny: Path, launch: Launch, tmp_path: Path
) -> None:
    """A real run with a loss that it cannot reach: it succeeds, and says so in its log, its last
    evaluation, status.json and the verdict of its report; `zephyr cards` reads its pairs. Fails
    where the comparison is of another evaluation than the last, changes the exit code, or is lost,
    or the pairs are not those of the record."""
    data = write_lines(tmp_path / "pairs.jsonl", rows(12))
    config = write_config(
        tmp_path,
        tiny,
        data,
        data__eval=[str(data)],
        optim__epochs=1,
        run__eval_every=1,
        run__preflight=False,
    )
    target = "published={eval_loss: 5, source: a card, within: 0.5}"
    done = launch("train_dpo.py", config, target)
    run = tmp_path / "run"
    evaluations = records(run, "eval")
    last = evaluations[-1]
    assert done.returncode == 0 and "published eval loss NOT reached" in done.stderr
    assert not any("published/reached" in record for record in evaluations[:-1])
    assert last["published/eval_loss"] == 5 and last["published/reached"] == 0
    assert last["published/difference"] == pytest.approx(last["loss"] - 5)
    status = json.loads((run / "status.json").read_text())
    assert (status["code"], status["message"]) == (0, "finished")
    assert status["published"]["reached"] is False and status["published"]["source"] == "a card"
    assert status["published"]["eval_loss"] == last["loss"]
    found = {f.name: f for f in verdict(read_run(run, "run"), read_visits(run), {})}["published"]
    assert (found.status, found.answer) == ("watch", "No: lower") and "a card" in found.text
    pairs = read_evaluated(run)
    assert pairs.pairs == 12 and not pairs.notes and pairs.epoch == last["epoch"]
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        assert pairs.columns[name].mean() == pytest.approx(last[name], rel=1e-6)
    assert last_comparison(None, str(run)) is None
    again = Published(eval_loss=round(last["loss"], 4), source="itself")
    compared = last_comparison(again, str(run))
    assert compared is not None and compared.is_reached


def test_records_that_cannot_be_read_are_no_failure(tmp_path: Path) -> None:
    """The run has ended. Fails where its exit code hangs on a comparison, or the evaluation before
    the first update is taken for the last."""
    path = tmp_path / "metrics.jsonl"
    assert last_evaluation(path) is None
    path.write_text('{"step": 0, "split": "eval", "loss": 1}\n')
    assert last_evaluation(path) is None
    path.write_text('{"step": 0, "split": "eval", "loss": 1}\n[]\n')
    assert last_evaluation(path) is None


def test_a_published_loss_needs_rows_to_compare_on(tmp_path: Path) -> None:
    """Fails where a target without data.eval is never compared, and nobody is told."""
    config = tmp_path / "config.yaml"
    config.write_text("model: m\ndata: {train: [a.jsonl]}\n")
    target = "published={eval_loss: 0.5, source: x}"
    with pytest.raises(ConfigError, match=r"published: expected null without data\.eval"):
        load(DPOConfig, str(config), [target])
    found = load(DPOConfig, str(config), [target, "data.eval=b.jsonl"]).published
    assert found == Published(eval_loss=0.5, source="x", within=0.01)
    for wrong in ("published={eval_loss: 0.5}", "published={source: x}"):
        with pytest.raises(ConfigError, match="missing; it is required"):
            load(DPOConfig, str(config), [wrong, "data.eval=b.jsonl"])
