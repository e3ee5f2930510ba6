"""The shape of the package: every module imports, imports point down the map, functions fit a
screen."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAP = [
    {"config", "chat", "losses"},
    {"packing", "world"},
    {"model", "training"},
    {"reference", "verify", "data"},
    {"costs", "teacher"},
    {"distill", "evaluation", "playground"},
    {"report"},
    {"cli"},
]
LEVEL = {unit: level for level, units in enumerate(MAP) for unit in units}
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "zephyr").rglob("*.py"))
SCRIPTS = [Path("train_sft.py"), Path("train_dpo.py")]
SCREEN = 60  # lines of a function, as `ruff format` lays it out
NOT_ON_IMPORT = {"wandb", "deepspeed", "datasets", "flash_attn"}


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, also inside functions; `from zephyr import losses` names
    zephyr.losses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def long_functions(tree: ast.AST) -> list[str]:
    functions = [
        node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > SCREEN]


def test_the_map_is_found() -> None:
    """With another layout the tests below would run over no files at all."""
    assert len(MODULES) > 15
    assert {path.parts[1].removesuffix(".py") for path in MODULES} >= {
        "config",
        "chat",
        "losses",
        "packing",
        "model",
    }


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_imports(path: Path) -> None:
    """A module that nothing else touches can be broken for weeks: each is imported by itself, on
    any machine."""
    importlib.import_module(name_of(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    """An import of the own level or of a higher one would close a circle and let knowledge leak
    upwards."""
    if len(path.parts) == 2 and path.name == "__init__.py":
        return  # the package's own front, above everything
    unit = path.parts[1].removesuffix(".py")
    for name in imports(ast.parse((ROOT / path).read_text())):
        parts = name.split(".")
        if parts[0] == "zephyr" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != unit:
            assert LEVEL[parts[1]] < LEVEL[unit], f"{unit} imports {name}: not downward"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_unit_is_on_the_map(path: Path) -> None:
    """A new top-level module without a level would escape the test above."""
    assert name_of(path) == "zephyr" or path.parts[1].removesuffix(".py") in LEVEL


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=str)
def test_functions_fit_a_screen(path: Path) -> None:
    """A function that outgrows a screen is split where its reader would split it."""
    assert not long_functions(ast.parse((ROOT / path).read_text()))


def test_long_functions_are_seen() -> None:
    """The check above must count a function of one line too many, and pass one that just fits."""
    lines = "    x = 1\n" * (SCREEN - 1)
    assert long_functions(ast.parse("def f():\n" + lines + "    x = 1\n")) == [
        f"f: {SCREEN + 1} lines"
    ]
    assert not long_functions(ast.parse("def f():\n" + lines))


def in_a_process_of_its_own(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_stays_light() -> None:
    """A notebook needs neither what training needs nor the hub; apart from this process, which
    imported it all."""
    in_a_process_of_its_own(
        "import sys, zephyr\n"
        "zephyr.losses.dpo, zephyr.packing.best_fit, zephyr.packing.plan_epochs, zephyr.packing.collate_pairs\n"
        "zephyr.model.load.load_policy, zephyr.model.logprobs.response_logprobs, zephyr.chat.encode_pair\n"
        f"heavy = {NOT_ON_IMPORT!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


def test_import_does_nothing() -> None:
    """No CUDA query, no environment variable, no logging set-up: a program that imports the package
    stays as it was."""
    in_a_process_of_its_own(
        "import os, logging, torch, transformers\n"
        "def state():\n"
        "    root = logging.getLogger()\n"
        "    return dict(os.environ), list(root.handlers), root.level, torch.cuda.is_initialized()\n"
        "before = state()\n"
        "import zephyr\n"
        "assert state() == before, state()\n"
    )
