"""The notebook: it runs, and what it shows is small and without errors."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FILE = Path(__file__).parents[2] / "examples" / "tour.ipynb"
pytestmark = pytest.mark.skipif(not FILE.exists(), reason="a source archive holds no pictures")


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(FILE, as_version=4)


def test_runs_with_its_epochs_cut_short(notebook, tmp_path):
    for cell in notebook.cells:
        cell.source = re.sub(r"max_epochs=\d+", "max_epochs=20", cell.source)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4


def test_its_outputs_are_kept_and_small(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert FILE.stat().st_size < 400_000
