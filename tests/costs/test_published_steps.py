"""Steps of the published sets, and published runs recognised by their steps."""

import json
import math
from pathlib import Path

import pytest
from processes import ROOT

from zephyr.cli import main
from zephyr.config import BadInput, DPOConfig, SFTConfig, load
from zephyr.costs.published import (
    RUNS,
    lr_left,
    matches,
    packing_fault,
    published_lines,
    read_end,
    schedule,
    trainer_steps,
)
from zephyr.packing import plan_epochs
from zephyr.training.schedule import learning_rate

BETA = next(run for run in RUNS if run.stage == "dpo")
CONFIGS = ROOT / "configs" / "zephyr-7b-beta"


@pytest.mark.parametrize(
    "rows,batch,epochs,per_epoch,steps,warmup",
    [
        (61_966, 32, 3, 1937, 5811, 582),  # zephyr-7b-beta
        (61_135, 32, 3, 1911, 5733, 574),
        (61_966, 64, 3, 969, 2907, 291),  # handbook, era A
        (61_135, 64, 3, 956, 2868, 287),
        (61_966, 128, 1, 485, 485, 49),
        (61_135, 128, 1, 478, 478, 48),  # handbook, era B
        (207_865, 512, 1, 406, 406, 41),
        (207_865, 128, 1, 1624, 1624, 163),
    ],
)
def test_steps_by_hand(
    rows: int, batch: int, epochs: int, per_epoch: int, steps: int, warmup: int
) -> None:
    """Fails where the steps of an epoch or of the warm-up are rounded down, or epochs run into each
    other (61,966 x 3 / 32 is 5,810)."""
    of = schedule(rows, batch, epochs)
    assert (of.per_epoch, of.steps, of.warmup_steps) == (per_epoch, steps, warmup)


def test_the_steps_are_those_of_the_plan() -> None:
    """An epoch of the first release at batch 128, planned as train_dpo.py plans it. Fails where the
    table says another number than a run would have, or its warm-up ends elsewhere."""
    rows, batch = 61_966, 128
    plan = plan_epochs([1] * rows, per_step=batch, epochs=1, ranks=1, budget_tokens=batch)
    of = schedule(rows, batch, 1)
    assert len(plan.steps) == of.steps
    assert plan.steps[100].epoch == pytest.approx(of.epoch_at(100), abs=0.001)
    rates = [
        learning_rate(step, of.steps, lr_peak=1.0, schedule="linear", warmup_fraction=0.1)
        for step in range(of.steps)
    ]
    assert rates.index(max(rates)) == of.warmup_steps


def test_the_card_tells_the_release_of_the_set() -> None:
    """Every step and epoch of zephyr-7b-beta's card fits 61,966 rows, and not 61,135, and its last
    evaluation at 5,800 lies in the run. Fails where the epoch at a step is off by more than a
    card's rounding."""
    assert matches(BETA, 61_966) and not matches(BETA, 61_135)
    ours = schedule(BETA.rows, BETA.batch, BETA.epochs)
    for step, epoch in BETA.points:
        assert round(ours.epoch_at(step), 2) == epoch
    assert 5800 < ours.steps < 5800 + 100
    assert all(matches(run, run.rows) for run in RUNS)


def test_an_accumulated_rest_makes_no_step_in_transformers() -> None:
    """484 steps there and 485 here for the first release at 8 x 8 x 2, 478 in both for the
    second."""
    assert trainer_steps(61_966, 64, 2) == 484 and schedule(61_966, 128, 1).steps == 485
    assert trainer_steps(61_135, 64, 2) == 478 == schedule(61_135, 128, 1).steps


def test_the_packed_length_fault_is_recognised() -> None:
    """272 steps at epoch .67 of 207,865 rows at batch 512. Fails where the fault is seen in a run
    that ended with its schedule, or in one of other rows."""
    found = packing_fault(272, 0.67, 207_865, 512, 1, 0.1)
    assert found and "the schedule has 406 steps" in found and "139,264 windows" in found
    assert packing_fault(406, 1.0, 207_865, 512, 1, 0.1) is None
    assert packing_fault(272, 1.0, 139_264, 512, 1, 0.1) is None
    assert packing_fault(1090, 1.0, 139_520, 128, 1, 0.1) is None
    assert packing_fault(300, 0.67, 207_865, 512, 1, 0.1) is None
    assert lr_left(406, 272, 0.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 272 / 406)))
    assert lr_left(406, 406, 0.1) == pytest.approx(0) and lr_left(406, 41, 0.1) == 1


def test_our_schedule_ends_with_the_run() -> None:
    """Windows of an SFT plan are fewer than its rows, and the rate of the last step is the last of
    the schedule. Fails with a schedule that is made of rows."""
    plan = plan_epochs(
        [700] * 900, per_step=8, epochs=1, ranks=2, budget_tokens=4096, window_tokens=2048
    )
    steps = len(plan.steps)
    assert steps == math.ceil(450 / 8) < math.ceil(900 / 8)
    last = learning_rate(steps - 1, steps, lr_peak=1.0, schedule="cosine", warmup_fraction=0.1)
    assert last < 0.01


def test_the_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The command without data and model, and a run to compare with, of text or file. Fails where a
    card's step, or the fault, is not printed."""
    sft = str(CONFIGS / "sft.yaml")
    assert main(["plan", sft, "--published", "--compare", "272@0.67"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("packed-length fault") == 2
    assert "*   207,865    512       1       406      406       41" in printed
    state = tmp_path / "trainer_state.json"
    state.write_text(json.dumps({"global_step": 272, "epoch": 0.67, "log_history": []}))
    assert main(["plan", sft, "--published", "--compare", str(state)]) == 0
    assert capsys.readouterr().out.count("packed-length fault") == 2
    dpo = load(DPOConfig, str(CONFIGS / "dpo.yaml"))
    page = "\n".join(published_lines(dpo, "3900@2.01"))
    assert "1,900   0.98   0.981" in page and "fault" not in page
    assert "61,966 rows at batch 32" in page.split("3900@2.01:")[1]
    assert "61,135 rows at batch 32" not in page.split("3900@2.01:")[1]
    other = "\n".join(published_lines(load(SFTConfig, sft), "300@0.5"))
    assert "no release of the set has this epoch" in other
    assert main(["plan", sft, "--compare", "272@0.67"]) == 2
    assert "expected --published" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["272", "0@0.5", "272@0", "@", "nowhere.json", "272@0.67x"])
def test_a_run_that_is_none_is_told(text: str, tmp_path: Path) -> None:
    """Fails for a traceback, or for a guess."""
    with pytest.raises(BadInput, match="expected STEP@EPOCH"):
        read_end(text)
    state = tmp_path / "state.json"
    for content in ("[]", "{}", "{", '{"global_step": "x", "epoch": 1}'):
        state.write_text(content)
        with pytest.raises(BadInput, match="trainer_state.json"):
            read_end(str(state))
    state.write_text('{"global_step": 3, "epoch": 0}')
    with pytest.raises(BadInput, match="epoch > 0"):
        read_end(str(state))
