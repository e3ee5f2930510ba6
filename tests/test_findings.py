"""experiments/findings.py: its stages, and what its stored figures say."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "experiments"))

import findings  # noqa: E402
import findings_figure  # noqa: E402

ENTRY = ROOT / "experiments" / "2026-11-27-paper-findings.md"


def stage(name: str, *needs: str, fails: bool = False) -> findings.Stage:
    """A stage that notes its name in `order`, and makes its file unless it fails."""

    def run() -> None:
        with Path("order").open("a") as order:
            order.write(f"{name} ")
        if not fails:
            Path(name).touch()

    return findings.Stage(name, Path(name), needs, run)


def test_a_stage_runs_once_and_after_those_that_it_needs(tmp_path: Path) -> None:
    """Fails where a stage starts before the rows or the model that it reads are there, or where a
    second call trains again what has finished."""
    stages = [stage("pairs"), stage("dpo", "sft", "pairs"), stage("sft", "base"), stage("base")]
    findings.run_all([(tmp_path, each) for each in stages], workers=2)
    ran = (tmp_path / "order").read_text().split()
    assert sorted(ran) == ["base", "dpo", "pairs", "sft"]
    assert ran.index("base") < ran.index("sft") < ran.index("dpo") > ran.index("pairs")
    (tmp_path / "sft").unlink()
    findings.run_all([(tmp_path, each) for each in stages], workers=2)
    assert (tmp_path / "order").read_text().split() == [*ran, "sft"]


def test_a_stage_that_failed_is_named_and_nothing_follows_it(tmp_path: Path) -> None:
    """Fails where figures would be collected from runs that are not there."""
    stages = [stage("base", fails=True), stage("sft", "base")]
    with pytest.raises(SystemExit, match=r"base failed: .*logs/base\.log"):
        findings.run_all([(tmp_path, each) for each in stages], workers=2)
    assert (tmp_path / "order").read_text().split() == ["base"]


def test_every_stage_needs_stages_that_come_before_it() -> None:
    """Fails where a misspelt need would let a stage start at once."""
    for plan in ("full", "short"):
        names: list[str] = []
        for each in findings.stages(0, plan):
            assert set(each.needs) <= set(names)
            names.append(each.name)
        assert len(names) == len(set(names))


@pytest.fixture(scope="module")
def stored() -> dict:
    return json.loads(findings_figure.RESULTS.read_text(encoding="utf-8"))


def test_the_entry_holds_the_tables_and_the_figure_of_the_stored_results(stored: dict) -> None:
    """Fails where the entry tells figures of another run than those that are stored."""
    entry = ENTRY.read_text(encoding="utf-8")
    for name, words in findings_figure.tables(stored).items():
        assert words in entry, name
    drawn = findings_figure.FIGURE.read_text(encoding="utf-8")
    assert drawn == findings_figure.figure(stored)
    assert len(stored["seeds"]) == 3


def require_signs(found: Mapping) -> None:
    """What the entry says of every seed, in the plan `short` too, by intervals over prompts."""
    models, pairs = found["models"], found["pairs"]
    # Table 3: dSFT is needed; dDPO is better than dSFT; and so is dSFT on the chosen answers.
    assert pairs["dSFT-1 over dDPO-without-dSFT"]["ci95"][0] > 0.5
    assert abs(models["dDPO-without-dSFT"]["score"] - models["base"]["score"]) < 0.2
    assert pairs["dDPO over dSFT-1"]["ci95"][0] > 0.5
    assert pairs["dSFT-2 over dSFT-1"]["ci95"][0] > 0.5
    # dSFT-2 wins more often, though it lost what the one-word answers need.
    assert pairs["dDPO over dSFT-2"]["win_rate"] < 0.5
    assert models["dSFT-2"]["families"]["one_word"] < models["dSFT-1"]["families"]["one_word"] - 1
    # Figure 3: few pairs are learnt by heart, held-out ones are not.
    few = found["runs"]["few"]
    learnt, held_out = few["train"][-1]["accuracy"], few["held_out"][-1]["accuracies"]
    assert learnt > 0.99 and held_out < learnt - 0.02
    # More epochs leave a worse model than the quickstart's two, at each rate and number of pairs.
    for run in findings.CURVES:
        assert found["runs"][run]["judged"][-1]["ci95"][1] < models["dDPO"]["ci95"][0], run


@pytest.mark.long
def test_a_new_run_finds_the_same_signs(tmp_path: Path) -> None:
    """One seed without the sweeps, four epochs instead of eight. Fails where a change to training,
    generation or the judge would turn a finding of the entry round."""
    line = [sys.executable, findings.__file__, "--plan", "short", "--seeds", "0"]
    subprocess.run([*line, "--out", tmp_path], check=True, cwd=tmp_path)
    (found,) = json.loads((tmp_path / "results.json").read_text())["seeds"].values()
    require_signs(found)


@pytest.mark.parametrize("seed", ["0", "1", "2"])
def test_the_stored_results_support_the_sentences(stored: dict, seed: str) -> None:
    """Each sentence of the entry that is said of every seed."""
    found = stored["seeds"][seed]
    require_signs(found)
    long, fast = found["runs"]["long"], found["runs"]["fast"]
    # At the quickstart's rate the score falls after the second or third epoch, and margins grow.
    best = max(long["judged"], key=lambda judged: judged["score"])
    assert best["step"] in (2 * 47, 3 * 47)
    assert long["judged"][-1]["ci95"][1] < best["ci95"][0]
    assert long["held_out"][-1]["margins"] > 5 * long["held_out"][1]["margins"]
    assert long["held_out"][-1]["chosen"] < 0 < long["held_out"][1]["chosen"]
    assert abs(long["train"][-1]["accuracy"] - long["held_out"][-1]["accuracies"]) < 0.04
    # At ten times the rate it stays above dSFT from epoch 4 on.
    assert all(judged["over dSFT-1"]["ci95"][0] > 0.5 for judged in fast["judged"][3:])
    # beta: the larger, the better. Losses: those that hold up the chosen answer win.
    betas = [win_rate(found, f"beta-{beta}") for beta in ("0.01", "0.1", "0.5", "2")]
    assert betas == sorted(betas)
    assert all(win_rate(found, name) > betas[1] for name in ("nca_pair", "apo_zero", "sppo_hard"))
    assert win_rate(found, "robust") < betas[1] and win_rate(found, "sigmoid_norm") < 0.35


def win_rate(found: Mapping, run: str) -> float:
    return found["runs"][run]["judged"][-1]["over dSFT-1"]["win_rate"]
