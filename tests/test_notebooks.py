"""Test that every notebook runs at a small size, asserts included, and that each claim in a committed notebook has a picture and an assert."""

import ast
import base64
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TRAINING_TOKENS = 61_440  # 120 steps: enough for every claim of every notebook
MAX_BYTES = 700_000  # eight pictures of up to 100 kB
PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"
PNG = b"\x89PNG\r\n\x1a\n"
MIN_SECTIONS = 3


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
    """All outputs come from one run from the first cell to the last, without errors."""
    code_cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.get("execution_count") for cell in code_cells] == list(range(1, len(code_cells) + 1))
    assert sum(bool(cell.outputs) for cell in code_cells) > len(code_cells) / 2
    assert not any(output.output_type == "error" for cell in code_cells for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_figure_has_a_picture_and_the_file_is_small(path: Path) -> None:
    """A viewer without plotly shows the picture (`notebooks/refresh.py`)."""
    outputs = [output for cell in nbformat.read(path, as_version=4).cells for output in cell.get("outputs", ())]
    data = [output.get("data", {}) for output in outputs]
    assert all(PICTURE in kinds for kinds in data if PLOTLY in kinds)
    assert all(base64.b64decode(kinds[PICTURE]).startswith(PNG) for kinds in data if PICTURE in kinds)
    assert not any("widget-view" in kind for kinds in data for kind in kinds)
    assert not any("&lt;style" in str(kinds.get("text/html", "")) for kinds in data)  # escaped, so shown as text
    assert '"-0.000"' not in path.read_text()
    assert path.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_claim_has_one_picture_and_ends_in_an_assert(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert "**" in notebook.cells[0].source
    assert len(list(sections(notebook))) >= MIN_SECTIONS
    assert faults(notebook) == []


def sections(notebook: Any) -> Iterator[list[Any]]:
    """From each heading `## ` its markdown cell and the cells up to the next one."""
    starts = [place for place, cell in enumerate(notebook.cells) if _is_heading(cell)]
    for start, end in zip(starts, [*starts[1:], len(notebook.cells)], strict=True):
        yield notebook.cells[start:end]


def _is_heading(cell: Any) -> bool:
    return cell.cell_type == "markdown" and cell.source.startswith("## ")


def faults(notebook: Any) -> list[str]:
    """Which sections lack a claim in bold, have not exactly one static picture, or do not end in code that asserts something after it."""
    found = []
    for heading, *cells in sections(notebook):
        title, _, text = heading.source.partition("\n")
        code = [cell for cell in cells if cell.cell_type == "code"]
        pictures = [place for place, cell in enumerate(code) for output in cell.outputs if PICTURE in output.get("data", {})]
        if not text.strip().startswith("**"):
            found.append(f"{title}: does not begin with a claim in bold")
        if len(pictures) != 1:
            found.append(f"{title}: {len(pictures)} pictures")
        if not code or not _asserts(code[-1].source) or len(code) - 1 in pictures:
            found.append(f"{title}: does not end in an assert after its picture")
    return found


def _asserts(source: str) -> bool:
    """Whether an assertion in this code looks at anything: one of constants alone cannot fail."""
    tests = [node.test for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    return any(isinstance(part, ast.Name) for test in tests for part in ast.walk(test))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_section_without_its_claim_picture_or_assert_is_found(path: Path) -> None:
    """Broken copies of the committed notebooks."""
    whole = nbformat.read(path, as_version=4)
    for number in range(len(list(sections(whole)))):
        for spoil in (_without_claim, _without_picture, _without_assert, _with_idle_assert):
            broken = deepcopy(whole)
            spoil(list(sections(broken))[number])
            assert len(faults(broken)) == 1


def _without_claim(section: list[Any]) -> None:
    section[0].source = section[0].source.replace("**", "")


def _without_picture(section: list[Any]) -> None:
    for cell in section:
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop(PICTURE, None)


def _without_assert(section: list[Any]) -> None:
    code = [cell for cell in section if cell.cell_type == "code"]
    code[-1].source = "pass"


def _with_idle_assert(section: list[Any]) -> None:
    code = [cell for cell in section if cell.cell_type == "code"]
    code[-1].source = "assert 1 > 0"
