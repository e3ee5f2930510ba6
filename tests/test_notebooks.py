"""The notebooks run from top to bottom on a tiny model, and are stored without outputs other than
figures.

One kernel runs them all, one after the other: its imports take longer than most notebooks.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from zephyr import losses

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
ADDS_A_LOSS = "07_your_own_loss"  # the one that writes a loss, under a name that is not taken
FRESH = """%reset -f
import torch
torch.set_default_dtype(torch.float32)
"""  # the first cell of each notebook finds no name of the notebook before


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_found() -> None:
    """With another folder the tests below would run over no notebook at all."""
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n:02d}" for n in range(1, 8)]
    assert ADDS_A_LOSS in {path.stem for path in NOTEBOOKS}


class Kernel:
    """One kernel for all notebooks, of this interpreter, whatever kernels the machine has."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manager = folder, None

    def execute(self, path: Path, *before: str) -> nbformat.NotebookNode:
        """Run a notebook after other cells, in the folder. Raises: CellExecutionError."""
        from nbclient import NotebookClient

        notebook = nbformat.read(path, as_version=4)
        for code in reversed((FRESH, *before)):
            notebook.cells.insert(0, nbformat.v4.new_code_cell(code))
        client = NotebookClient(
            notebook,
            km=self.manager,
            kernel_name="this-python",
            timeout=300,
            resources={"metadata": {"path": str(self.folder)}},
        )
        try:
            client.execute(cleanup_kc=False)
        finally:
            self.manager = client.km
            if client.kc is not None:
                client.kc.stop_channels()
        return notebook


@pytest.fixture(scope="module")
def kernel(
    tiny: Path, finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kernel]:
    """The notebooks' models are random and their run is a short one."""
    pytest.importorskip("nbclient", reason="nbclient is in the extra `notebooks`")
    kernelspec = pytest.importorskip(
        "ipykernel.kernelspec", reason="ipykernel is in the extra `notebooks`"
    )
    folder = tmp_path_factory.mktemp("notebooks")
    kernelspec.install(prefix=str(folder), kernel_name="this-python")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder / "share" / "jupyter"))
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("ZEPHYR_NOTEBOOK_STEPS", "3")
        patch.setenv("ZEPHYR_NOTEBOOK_MODEL", str(tiny))
        patch.setenv("ZEPHYR_NOTEBOOK_BASE", str(tiny))
        patch.setenv("ZEPHYR_NOTEBOOK_RUN", str(finished / "run"))
        patch.setenv("ZEPHYR_NOTEBOOK_REAL", str(finished / "run"))
        made = Kernel(folder)
        yield made
        if made.manager is not None:
            from jupyter_core.utils import run_sync

            run_sync(made.manager.shutdown_kernel)(now=True)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, kernel: Kernel) -> None:
    """A notebook is code that nothing imports: a renamed function breaks it in silence. The
    notebooks' own assertions check what they claim."""
    notebook = kernel.execute(path, "import sys; print(sys.executable)")
    assert notebook.cells[1].outputs[0].text.strip() == sys.executable
    figures = [
        output
        for cell in code_of(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    stored = [cell for cell in code_of(nbformat.read(path, as_version=4)) if cell.outputs]
    assert len(figures) == len(stored) > 0, "the figures that are stored are those that it draws"


def test_real_pairs_say_what_is_missing(kernel: Kernel) -> None:
    """Without a finished run of a real model the notebook stops at once, with the command that
    makes one. Fails where it goes on, and ends in the traceback of another cell."""
    from nbclient.exceptions import CellExecutionError

    (path,) = [path for path in NOTEBOOKS if path.stem == "06_real_pairs"]
    nowhere = "import os; os.environ['ZEPHYR_NOTEBOOK_REAL'] = 'nowhere'"
    with pytest.raises(CellExecutionError, match="nowhere is no finished run: `make real DATA="):
        kernel.execute(path, nowhere)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_stored_clean(path: Path) -> None:
    """Stored text goes stale and shows paths of somebody's machine: only figures stay, without
    execution counts."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in code_of(notebook):
        assert cell.execution_count is None and not cell.metadata
        for output in cell.outputs:
            assert output.output_type == "display_data" and set(output.data) == {"image/png"}, (
                cell.source
            )
    assert any(cell.outputs for cell in code_of(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_imports_the_package(path: Path) -> None:
    """A notebook that writes a loss down again explains code that nobody trains with; and lines fit
    the page. One notebook writes a loss that the package does not have."""
    source = "\n\n".join(cell.source for cell in code_of(nbformat.read(path, as_version=4)))
    tree = ast.parse(source)
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert any(module.startswith("zephyr.") for module in modules)
    defined = {
        node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    assert not defined & (
        {"dpo", *losses.LOSSES} | {"collate_pairs", "response_logprobs", "best_fit"}
    )
    writes_a_loss = "logsigmoid" in source or "softplus" in source
    assert writes_a_loss is (path.stem == ADDS_A_LOSS)
    assert all(len(line) <= 120 for line in source.splitlines())
