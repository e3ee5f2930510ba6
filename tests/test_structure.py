"""The shape of the package: modules import alone, imports point down, functions fit a screen."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
from lone_imports import failed_imports

ROOT = Path(__file__).resolve().parents[1]
# The rooms of each level. A room imports from lower levels, never from its own or a higher one.
MAP = [
    {"config", "chat", "losses", "progress", "hub"},
    {"packing", "world"},
    {"model", "training"},
    {"reference", "verify", "data"},
    {"costs", "teacher"},
    {"distill", "evaluation", "playground"},
    {"analysis"},
    {"report"},
    {"rounds"},
    {"cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(MAP) for room in rooms}
MODULES = sorted(path.relative_to(ROOT) for path in (ROOT / "zephyr").rglob("*.py"))
SCRIPTS = [Path("train_sft.py"), Path("train_dpo.py")]
SCREEN = 60  # lines of a function, as `ruff format` lays it out; of a command in zephyr/cli without
# its signature, which declares options and grows with them
NOT_ON_IMPORT = {"wandb", "deepspeed", "datasets", "flash_attn", "liger_kernel"}
NOT_ON_IMPORT |= {"peft", "bitsandbytes"}
NEEDS_TRITON = Path("zephyr/model/triton_kernels.py")  # imported by who runs its kernels


def name_of(path: Path) -> str:
    """The module of a file: `zephyr/chat/__init__.py` is `zephyr.chat`."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(path: Path) -> str:
    return path.parts[1].removesuffix(".py")


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(tree: ast.AST) -> Iterator[str]:
    """The full names that a module imports, also inside functions.

    `from zephyr import losses` gives `zephyr.losses`; of names in a module, the module's with it.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported_modules(tree: ast.AST, modules: Collection[str]) -> set[str]:
    """Those of `modules` that are imported: of `a.b.c` the longest part that is one of them."""
    found = set()
    for name in imports(tree):
        while name and name not in modules:
            name = name.rpartition(".")[0]
        found.add(name)
    return found - {""}


def circle(graph: Mapping[str, Collection[str]]) -> list[str]:
    """The names of a circle in a graph of imports; [] where there is none."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def long_functions(tree: ast.AST, *, signatures: bool = True) -> list[str]:
    """Names and lengths of functions over a screen, docstrings apart. Args: signatures: whether the
    lines of a signature count."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.lineno if signatures else node.body[0].lineno
            lines = (node.end_lineno or 0) - first + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            if lines > SCREEN:
                found.append(f"{node.name}: {lines} lines")
    return found


def test_the_map_is_found() -> None:
    """With another layout the tests below would run over no files at all."""
    assert len(MODULES) > 15
    assert {room_of(path) for path in MODULES} - {"__init__"} == set(LEVEL)


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    """Each module and script that does not import alone, with its traceback."""
    return failed_imports(ROOT, [name_of(path) for path in (*MODULES, *SCRIPTS)])


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=str)
def test_every_module_imports_alone(path: Path, failed: Mapping[str, str]) -> None:
    """Fails for a module that imports only after another one has, as two that import each other,
    and for one that nothing else touches and that is broken."""
    if path == NEEDS_TRITON and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed, which this module needs")
    assert name_of(path) not in failed, failed[name_of(path)]


def test_a_module_that_needs_another_before_it_is_seen(tmp_path: Path) -> None:
    """The check above must fail `b`, whose import needs a name that `c` has only after its own
    import of `b`, and pass `c`, in this order and in the other."""
    package = tmp_path / "p"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "b.py").write_text("from p.c import y\nx = 1\n")
    (package / "c.py").write_text("y = 0\nimport p.b\nfrom p.b import x\n")
    (package / "alone.py").write_text("print('not an answer')\n")
    for modules in (["p.b", "p.c", "p.alone"], ["p.alone", "p.c", "p.b"]):
        failed = failed_imports(tmp_path, modules, libraries=())
        assert list(failed) == ["p.b"] and "ImportError" in failed["p.b"]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_down(path: Path) -> None:
    """Fails for an import of a room of the same level or of a higher one: it would close a circle,
    or make a lower room depend on what is built on it."""
    if path == Path("zephyr/__init__.py"):
        return  # the package's front names rooms of several levels
    room = room_of(path)
    for name in imports(parse(path)):
        parts = name.split(".")
        if parts[0] == "zephyr" and len(parts) > 1 and parts[1] in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room], f"{room} imports {name}: not downward"


def test_no_module_imports_itself_through_others() -> None:
    """Rooms can't close a circle by the test above, the modules inside one room can. Imports inside
    functions count: they hide a circle from the interpreter, not from a reader."""
    modules = {name_of(path): path for path in MODULES}
    graph = {
        name: imported_modules(parse(path), modules) - {name} for name, path in modules.items()
    }
    assert sum(map(len, graph.values())) > 2 * len(modules), "imports are not found"
    assert not circle(graph)


def test_a_circle_is_seen() -> None:
    """The check above must find a circle of three modules, one of whose imports is in a function
    and one of a name in a module, and pass a chain."""
    sources = {
        "p.a": "def f():\n    from p import b",
        "p.b": "from p.c import name",
        "p.c": "import p.a",
    }
    graph = {name: imported_modules(ast.parse(source), sources) for name, source in sources.items()}
    assert sorted(set(circle(graph))) == ["p.a", "p.b", "p.c"]
    assert not circle(graph | {"p.c": set()})


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_scripts_import_no_command(path: Path) -> None:
    """The training scripts and the commands stand beside each other. Fails where a script needs a
    function of `zephyr/cli`: then it is no command's and belongs into a room."""
    names = list(imports(parse(path)))
    assert any(name.startswith("zephyr.") for name in names)
    assert not [name for name in names if name.startswith("zephyr.cli")]


@pytest.mark.parametrize("path", [*MODULES, *SCRIPTS], ids=str)
def test_functions_fit_a_screen(path: Path) -> None:
    """Fails for a function that is longer than a screen: split it where its reader would."""
    is_command = path.parts[:2] == ("zephyr", "cli")
    assert not long_functions(parse(path), signatures=not is_command)


def test_long_functions_are_seen() -> None:
    """The check above must count a function of one line too many, and pass one that just fits."""
    lines = "    x = 1\n" * (SCREEN - 1)
    assert long_functions(ast.parse("def f():\n" + lines + "    x = 1\n")) == [
        f"f: {SCREEN + 1} lines"
    ]
    assert not long_functions(ast.parse("def f():\n" + lines))


def test_test_files_have_names_of_their_own() -> None:
    """pytest imports test files by their bare names: two of one name in different rooms end the run
    of all tests, while each room's tests alone pass."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) > 50
    assert not sorted({name for name in names if names.count(name) > 1})


def run_alone(code: str) -> None:
    """Run code in a new interpreter; fails where it raises."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_import_stays_light() -> None:
    """A notebook that uses losses, packing and chat needs neither DeepSpeed nor the hub's
    libraries. Fails where a module imports one of them at its top."""
    run_alone(
        "import sys, zephyr\n"
        "zephyr.losses.dpo, zephyr.chat.encode_pair\n"
        "zephyr.packing.best_fit, zephyr.packing.plan_epochs, zephyr.packing.collate_pairs\n"
        "zephyr.model.load.load_policy, zephyr.model.logprobs.response_logprobs\n"
        f"heavy = {NOT_ON_IMPORT!r} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )


def test_import_does_nothing() -> None:
    """Fails where importing the package queries CUDA, sets an environment variable or sets up
    logging: a program that imports it stays as it was."""
    run_alone(
        "import os, logging, torch, transformers\n"
        "def state():\n"
        "    root = logging.getLogger()\n"
        "    handlers = list(root.handlers)\n"
        "    return dict(os.environ), handlers, root.level, torch.cuda.is_initialized()\n"
        "before = state()\n"
        "import zephyr\n"
        "assert state() == before, state()\n"
    )
