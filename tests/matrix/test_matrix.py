"""The sets of `make test-matrix`: the oldest is what setup.cfg admits, which admits every set."""

from __future__ import annotations

import configparser
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from matrix import SETS, find_python, listed, main, run_cell, table
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from processes import ROOT

EXTRAS = ("data", "lora", "teacher", "gpu")
NOT_ON_A_CPU = {"flash-attn"}


def bounds() -> dict[str, Requirement]:
    """The requirements of setup.cfg, of the package and of the extras that its code imports."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    texts = [parser["options"]["install_requires"]]
    texts += [parser["options.extras_require"][extra] for extra in EXTRAS]
    found = [Requirement(line) for text in texts for line in text.splitlines() if line]
    return {canonicalize_name(one.name): one for one in found}


def pins(name: str) -> Iterator[Requirement]:
    for line in (ROOT / SETS[name]).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            yield Requirement(line)


def version_of(requirement: Requirement) -> str:
    (specifier,) = requirement.specifier
    assert specifier.operator == "=="
    return specifier.version


def test_the_oldest_set_is_what_setup_cfg_admits() -> None:
    """Fails where a bound is lower than what was tested, where a requirement has no bound, or the
    set pins something else than the bound."""
    oldest = {canonicalize_name(pin.name): version_of(pin) for pin in pins("oldest")}
    for name, requirement in bounds().items():
        if name in NOT_ON_A_CPU:
            continue
        lowest = [s.version for s in requirement.specifier if s.operator == ">="]
        assert len(lowest) == 1, f"{name} has no lower bound in setup.cfg"
        zeros = oldest[name].removeprefix(lowest[0]).replace(".0", "")
        assert oldest[name].startswith(lowest[0]) and not zeros, (name, oldest[name], lowest)


@pytest.mark.parametrize("name", list(SETS))
def test_every_set_is_admitted(name: str) -> None:
    """Fails where a set pins a version below a bound of setup.cfg, or one package twice for the
    same Python."""
    admitted, seen = bounds(), set()
    for pin in pins(name):
        key = canonicalize_name(pin.name)
        if key in admitted:
            assert version_of(pin) in admitted[key].specifier, pin
        assert (key, str(pin.marker)) not in seen, pin
        seen.add((key, str(pin.marker)))
    assert ("torch", "None") in seen


def test_a_python_that_is_missing_is_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where a missing Python fails the table or is left out of it."""
    row = run_cell("oldest", "3.99", ["tests/chat"], keep=False)
    assert "no python3.99" in row.result
    assert "| oldest | 3.99 | skipped" in table([row])
    assert "needs Python 3.12" in run_cell("newest", "3.11", [], keep=False).result or (
        find_python("3.11") is None
    )
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    found = find_python(here)
    assert found is None or here in subprocess.check_output([found, "-V"], text=True)


def test_a_failing_step_fails_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails where an install or a test that fails leaves exit code 0, or its environment behind."""
    monkeypatch.setattr("matrix.ENVIRONMENTS", tmp_path / "environments")
    monkeypatch.setattr("matrix.find_python", lambda version: sys.executable)
    monkeypatch.setattr(
        "matrix.commands",
        lambda interpreter, folder, constraints, tests: [
            ("venv", ["mkdir", "-p", str(folder)]),
            ("tests", [interpreter, "-c", f"import sys; sys.exit({tests[0]})"]),
        ],
    )
    for code, result in (("0", "passed"), ("3", "FAILED: tests, exit 3")):
        arguments = ["matrix.py", "--sets", "oldest", "--pythons", "3.11", "--tests", code]
        monkeypatch.setattr(sys, "argv", arguments)
        assert main() == int(code != "0")
        assert f"| oldest | 3.11 | {result} |" in capsys.readouterr().out
        assert not (tmp_path / "environments" / "oldest-3.11").exists()
    with pytest.raises(SystemExit, match="is none of oldest"):
        listed("older", list(SETS))
