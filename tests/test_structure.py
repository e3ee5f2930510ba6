"""The shape of the package: every module imports, imports point down the map, modules and functions stay small."""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAP = [
    {"config", "chat", "losses"},
    {"packing"},
    {"model", "training"},
    {"reference", "verify", "judge", "teacher", "world"},
    {"data"},
    {"report"},
    {"cli"},
]
LEVEL = {unit: level for level, units in enumerate(MAP) for unit in units}
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "zephyr").rglob("*.py"))
SCRIPTS = [Path("train_sft.py"), Path("train_dpo.py")]
NOT_ON_IMPORT = {"wandb", "deepspeed", "datasets", "flash_attn"}


def name_of(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, also inside functions; `from zephyr import losses` names zephyr.losses."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def long_functions(tree: ast.AST) -> list[str]:
    functions = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in functions}
    return [f"{name}: {length} lines" for name, length in lengths.items() if length > 40]


def test_the_map_is_found() -> None:
    """With another layout the tests below would run over no files at all."""
    assert len(MODULES) > 15
    assert {path.parts[1].removesuffix(".py") for path in MODULES} >= {"config", "chat", "losses", "packing", "model"}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_every_module_imports(path: Path) -> None:
    """A module that nothing else touches can be broken for weeks: each is imported by itself, on any machine."""
    importlib.import_module(name_of(path))


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    """An import of the own level or of a higher one would close a circle and let knowledge leak upwards."""
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
def test_modules_and_functions_stay_small(path: Path) -> None:
    """What outgrows a screen or an afternoon is split or cut: modules 300 lines, scripts 150, functions 40."""
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) <= (150 if path in SCRIPTS else 300)
    assert not long_functions(ast.parse(source))


def test_long_functions_are_seen() -> None:
    """The check above must count a function of 41 lines, decorators and signature apart, and pass one of 40."""
    assert long_functions(ast.parse("def f():\n" + "    x = 1\n" * 40)) == ["f: 41 lines"]
    assert not long_functions(ast.parse("def f():\n" + "    x = 1\n" * 39))


def lines_of_code(source: str) -> int:
    """Lines with a token of the language: neither blank, nor comment, nor docstring."""
    tree, code = ast.parse(source), set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            code |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            code -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(code)


def test_the_core_can_be_read_in_an_afternoon() -> None:
    """Levels 0 to 3 without judge, teacher and the embedded world (a teacher too): at most 2,500 lines of code, the whole
    package 7,000."""
    sizes = {path: lines_of_code((ROOT / path).read_text()) for path in MODULES}
    core = {unit for unit, level in LEVEL.items() if level <= 3} - {"judge", "teacher", "world"}
    inside = [size for path, size in sizes.items() if path.parts[1].removesuffix(".py") in core]
    assert len(inside) > 20 and sum(inside) <= 2500
    assert sum(sizes.values()) <= 7000


def test_the_package_does_not_grow_by_its_words() -> None:
    """Docstrings and comments are no code, but are read all the same: with them, blank lines apart, it stays the size that it has."""
    written = sum(bool(line.strip()) for path in MODULES for line in (ROOT / path).read_text().splitlines())
    assert written <= 7560


def test_lines_of_code_are_counted() -> None:
    """Code, a text that is no docstring, both lines of a split call; neither docstrings, comments nor blank lines."""
    assert lines_of_code('"""Doc."""\n\n# why\nx = """a\nb"""\n\ndef f():\n    """Doc\n    more."""\n    return g(1,  # why\n             2)\n') == 5


def in_a_process_of_its_own(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_stays_light() -> None:
    """A notebook needs neither what training needs nor the hub; apart from this process, which imported it all."""
    in_a_process_of_its_own(
        "import sys, zephyr\n"
        "zephyr.losses.dpo, zephyr.packing.best_fit, zephyr.packing.plan_epochs, zephyr.packing.collate_pairs\n"
        "zephyr.model.load.load_policy, zephyr.model.logprobs.response_logprobs, zephyr.chat.encode_pair\n"
        f"heavy = {NOT_ON_IMPORT!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


def test_import_does_nothing() -> None:
    """No CUDA query, no environment variable, no logging set-up: a program that imports the package stays as it was."""
    in_a_process_of_its_own(
        "import os, logging, torch, transformers\n"
        "def state():\n"
        "    root = logging.getLogger()\n"
        "    return dict(os.environ), list(root.handlers), root.level, torch.cuda.is_initialized()\n"
        "before = state()\n"
        "import zephyr\n"
        "assert state() == before, state()\n"
    )
