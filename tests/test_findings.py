"""experiments/findings.py: its stages, and what its stored figures say."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "experiments"))

import findings  # noqa: E402


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


@pytest.mark.long
def test_a_new_run_finds_the_same_signs(tmp_path: Path) -> None:
    """One seed without the sweeps, four epochs instead of eight. Fails where a change to training,
    generation or the judge would turn a finding of the entry round."""
    line = [sys.executable, findings.__file__, "--plan", "short", "--seeds", "0"]
    subprocess.run([*line, "--out", tmp_path], check=True, cwd=tmp_path)
    (found,) = json.loads((tmp_path / "results.json").read_text())["seeds"].values()
    require_signs(found)
