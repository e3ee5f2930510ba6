"""Faults put into the core one at a time: for each of them some fast test must fail, or nothing
would notice it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import of_analysis
import of_chat
import of_config
import of_costs
import of_data
import of_distill
import of_evaluation
import of_losses
import of_model
import of_packing
import of_pairs
import of_reference
import of_report
import of_rounds
import of_scripts
import of_training
import of_verify
import pytest
from server import BROKEN, FAILED, PASSED, TestServer
from table import Mutant

ROOMS = (
    of_scripts,
    of_config,
    of_losses,
    of_reference,
    of_analysis,
    of_chat,
    of_packing,
    of_model,
    of_training,
    of_verify,
    of_data,
    of_distill,
    of_costs,
    of_report,
    of_rounds,
    of_evaluation,
    of_pairs,
)
MUTANTS = [mutant for room in ROOMS for mutant in room.MUTANTS]
ROOT = Path(__file__).resolve().parents[2]
OPTIONS = (
    "-x",
    "-q",
    "-p",
    "no:cacheprovider",
    "-p",
    "no:randomly",
    "--hypothesis-seed=0",
    "--tb=short",
)
SECONDS = 300  # a mutant that hangs is none that a test has told
CORE = (
    "losses",
    "packing/collate",
    "packing/plan",
    "model/logprobs",
    "model/attention",
    "model/policy",
    "model/packing_check",
    "model/load",
    "model/export",
    "model/generate",
    "training/engine",
    "training/loop",
    "training/schedule",
    "training/shards",
    "training/checkpoint",
    "training/folder",
    "training/tolerance",
    "training/metrics",
    "training/launch",
    "training/alarms",
    "training/flops",
    "verify/preflight",
    "model/memory",
    "reference",
    "chat/encode",
    "config",
    "chat/template",
    "chat/template_limits",
    "chat/messages",
    "chat/template_check",
    "data/rows",
    "data/keys",
    "data/sft_shapes",
    "data/pair_shapes",
    "data/refusals",
    "data/shapes",
    "data/encode",
    "data/report",
    "data/folders",
    "data/sources",
    "data/store",
    "data/jsonl",
    "data/tokenizer",
    "data/text_digests",
    "data/workers",
)
LEAST = 10  # mutants of a module
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def server() -> Iterator[TestServer]:
    server = TestServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that the tests need. They import the package from the root that they lie in."""
    copy = tmp_path_factory.mktemp("mutants") / "zephyr"
    copy.mkdir()
    for name in (
        "zephyr",
        "tests",
        "configs",
        "experiments",
        "setup.cfg",
        "train_dpo.py",
        "train_sft.py",
    ):
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*")
            )
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def mutated(original: Path, mutant: Mutant, at: Path) -> Path:
    """A copy with the mutant in it. Fails where it can't be made, as below."""
    copy = shutil.copytree(original, at)
    path = copy / mutant.file
    source = path.read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, f"{mutant.file} does not hold once: {mutant.old!r}"
    path.write_text(source.replace(mutant.old, mutant.new), encoding="utf-8")
    return copy


def module_of(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_each_mutant_can_be_made(mutant: Mutant) -> None:
    """A snippet that is no longer there, once, changes nothing, or another place: its tests would
    prove nothing. Fails where the code has changed: take a snippet of the new code, and keep the
    fault that is meant. Seconds for the whole table: `pytest tests/mutants -m long -k
    can_be_made`."""
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    assert source.count(mutant.old) == 1, (
        f"{mutant.file}: found {source.count(mutant.old)} times, wanted once: {mutant.old!r}"
    )
    assert mutant.new != mutant.old
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}" in (ROOT / file).read_text(encoding="utf-8"), (
            f"{test} is no test"
        )


def test_every_module_of_the_core_has_its_mutants() -> None:
    """Fails where a module has fewer than the others, or the same fault is counted twice."""
    files = [mutant.file for mutant in MUTANTS]
    assert all(files.count(f"zephyr/{module}.py") >= LEAST for module in CORE)
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize(
    "tests", sorted({mutant.tests for mutant in MUTANTS}), ids=lambda tests: "+".join(tests)
)
def test_without_a_mutant_they_pass(
    tests: tuple[str, ...], server: TestServer, original: Path
) -> None:
    """The control: on an unchanged copy the same tests pass, and are at least one. Else every
    mutant would seem to be killed."""
    code = server.run(original, "zephyr", [*OPTIONS, *tests], SECONDS)
    said = (original / "said").read_text(errors="replace")
    assert code == PASSED and "." in said, said[-3000:]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_no_mutant_survives(
    mutant: Mutant, server: TestServer, original: Path, tmp_path: Path
) -> None:
    """The changed module imports, and a test fails. Fails for a survivor: write the test that tells
    it."""
    copy = mutated(original, mutant, tmp_path / "zephyr")
    code = server.run(copy, module_of(mutant.file), [*OPTIONS, *mutant.tests], SECONDS)
    said = (copy / "said").read_text(errors="replace")
    shutil.rmtree(copy)
    assert code != BROKEN, f"the mutant does not import:\n{said[-3000:]}"
    assert code == FAILED, (
        f"survived (pytest ended with {code}): {mutant.file}: {mutant.new!r} for {mutant.old!r}\n"
        + said[-1500:]
    )
