"""A loss is added to a copy of the repository as CONTRIBUTING.md says, and the tests of losses run.

They are a contributor's first contact with the tests: adding a loss must break none of them, and
what they cannot check without a closed form they must say by name.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT

NEW_LOSS = '''

def square(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, target: float) -> Tensor:
    """The margin of the rewards is drawn to a target. Source: paper and equation."""
    return (beta * (chosen_P - rejected_P) - target).square()


LOSSES["square"] = Loss(square, settings={"target": Setting(1.0, least=0.0)})
'''
CLOSED_FORM = """

CLOSED_FORMS["square"] = ClosedForm(
    loss=lambda c, r, b, e, target: (b * c - b * r - target) ** 2,
    gradient=lambda c, r, b, e, target: of_margin(2 * b * (b * (c - r) - target)),
    at_reference=lambda b, e: 4.0,
    far_off=((2 * FAR - 2) ** 2, (2 * FAR + 2) ** 2),
    settings={"target": 2.0},
)
"""
TESTS_OF_LOSSES = (
    "tests/test_losses.py",
    "tests/test_config.py::test_the_losses_are_documented",
    "tests/training/test_objective.py",
    "tests/training/test_trace.py::test_every_loss_is_traced",
    "tests/training/test_trace.py::test_the_cases_cover_losses_and_settings",
)


def run_tests_of_losses(copy: Path) -> str:
    """What pytest prints in the copy, with the reason of every skip. Fails where a test fails."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-vv", "-rs", "-p", "no:cacheprovider", *TESTS_OF_LOSSES],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "PYTEST_ADDOPTS": "", "COLUMNS": "400"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    "declared",
    [
        pytest.param(False, id="code", marks=pytest.mark.long),
        pytest.param(True, id="code and closed form"),
    ],
)
def test_adding_a_loss_breaks_no_test(declared: bool, tmp_path: Path) -> None:
    """The loss has a setting of its own. Fails where a test lists the losses by hand, so that a new
    one breaks it; where a test skips the new loss without a word; where a declared closed form is
    not compared; or where its setting needs an edit of config or script."""
    for name in ("zephyr", "tests", "configs"):
        ignore = shutil.ignore_patterns("__pycache__", "*.png", "*.parquet")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("train_dpo.py", "train_sft.py", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    with (tmp_path / "zephyr" / "losses.py").open("a") as file:
        file.write(NEW_LOSS)
    if declared:
        with (tmp_path / "tests" / "closed_forms.py").open("a") as file:
            file.write(CLOSED_FORM)
    printed = run_tests_of_losses(tmp_path)
    assert "passed" in printed and "test_own_settings_through_a_config[square]" in printed
    missing = "loss 'square' declares no closed form: add CLOSED_FORMS['square']"
    assert (missing in printed) is not declared, printed[-2000:]
