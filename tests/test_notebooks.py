"""The notebooks run from top to bottom on a tiny model, and are stored without outputs other than
figures."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import nbformat
import pytest
from tiny import tiny_model

from zephyr import losses

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_of(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_both_are_found() -> None:
    """With another folder the tests below would run over no notebook at all."""
    assert {"01_dpo_by_hand.ipynb", "02_packed_row.ipynb"} <= {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook is code that nothing imports: a renamed function breaks it in silence. The kernel
    is this interpreter, whatever kernels the machine has; the notebooks' own assertions check what
    they claim."""
    client = pytest.importorskip("nbclient", reason="nbclient is in the extra `notebooks`")
    kernelspec = pytest.importorskip(
        "ipykernel.kernelspec", reason="ipykernel is in the extra `notebooks`"
    )
    kernelspec.install(prefix=str(tmp_path), kernel_name="this-python")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    )
    monkeypatch.setenv("ZEPHYR_NOTEBOOK_MODEL", str(tiny_model(tmp_path / "model")))
    notebook = nbformat.read(path, as_version=4)
    probe = nbformat.v4.new_code_cell("import sys; print(sys.executable)")
    notebook.cells.append(probe)
    folder = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(
        notebook, kernel_name="this-python", timeout=300, resources=folder
    ).execute()
    assert notebook.cells[-1].outputs[0].text.strip() == sys.executable
    figures = [
        output
        for cell in code_of(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert figures, "a notebook without a figure is a module"


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
    the page."""
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
    assert "logsigmoid" not in source and "softplus" not in source
    assert all(len(line) <= 120 for line in source.splitlines())
