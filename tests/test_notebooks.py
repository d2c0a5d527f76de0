"""Every notebook runs from top to bottom, asserts included, at a small size."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRAINING_TOKENS = 61_440  # 120 steps: enough for every claim of every notebook
MAX_BYTES = 400_000
PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all, as for a reader: what one notebook trained, the next one finds."""
    return tmp_path_factory.mktemp("notebooks")


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTSAE_TRAINING_TOKENS", str(TRAINING_TOKENS))
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(workplace)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert all(cell.get("execution_count") for cell in notebook.cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_with_outputs(path: Path) -> None:
    code_cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.get("execution_count") for cell in code_cells)
    assert sum(bool(cell.outputs) for cell in code_cells) > len(code_cells) / 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_picture_and_the_file_is_small(path: Path) -> None:
    """A viewer without plotly shows the picture (`notebooks/refresh.py`)."""
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", ())]
    data = [output.get("data", {}) for output in outputs]
    assert all(PICTURE in kinds for kinds in data if PLOTLY in kinds)
    assert sum(PLOTLY in kinds for kinds in data) >= (1 if path.stem.startswith("01") else 3)
    assert not any("widget-view" in kind for kinds in data for kind in kinds)
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_is_asserted(path: Path) -> None:
    """As many cells with an assertion as there are figures, and the last cell of code is one (or in 01 has one)."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    n_figures = sum(any(PLOTLY in output.get("data", {}) for output in cell.outputs) for cell in code)
    assert sum("assert " in cell.source for cell in code) >= n_figures
    assert "assert " in code[-1].source
