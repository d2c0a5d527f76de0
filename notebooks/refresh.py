"""Execute notebooks in place and put a picture beside every figure, for viewers that show no plotly (GitHub, the docs).

Pictures are transparent, their text and lines a grey that reads on white and on black.

    python notebooks/refresh.py            # all
    python notebooks/refresh.py 04 05      # those whose names begin so

Needs `playwright` and a Chromium; no network. SAEs are kept under `notebooks/runs`, so what one notebook trained the next one finds.
"""

from __future__ import annotations

import argparse
import base64
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from playwright.sync_api import Page, sync_playwright
from plotly.offline import get_plotlyjs

HERE = Path(__file__).parent
PLOTLY, PICTURE, WIDGET = "application/vnd.plotly.v1+json", "image/png", "application/vnd.jupyter.widget-view+json"
WIDTH, HEIGHT, SCALE = 800, 380, 1.0
_DRAW = """async ([figure, width, height, scale]) => {
    const size = {width: width, height: figure.layout.height || height};
    const none = 'rgba(0,0,0,0)', look = {paper_bgcolor: none, plot_bgcolor: none, font: {color: '#808898'}};
    const layout = Object.assign({margin: {l: 60, r: 20, t: 40, b: 50}}, figure.layout, size, look);
    const axes = {gridcolor: 'rgba(128,136,152,0.25)', zerolinecolor: 'rgba(128,136,152,0.5)', linecolor: '#808898'};
    for (const axis of ['xaxis', 'yaxis']) Object.assign(layout.template.layout[axis], axes);
    return Plotly.toImage({data: figure.data, layout: layout}, {format: 'png', scale: scale, ...size});
}"""


@contextmanager
def plotly_page() -> Iterator[Page]:
    """A browser page with plotly.js in it."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        try:
            page = browser.new_page()
            page.set_content("<html><body></body></html>")
            page.add_script_tag(content=get_plotlyjs())
            yield page
        finally:
            browser.close()


def execute(notebook: Any) -> None:
    """Run all cells anew; progress bars are not kept."""
    NotebookClient(notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]


def _is_progress(output: Any) -> bool:
    return output.get("name") == "stderr" or WIDGET in output.get("data", {})


def add_pictures(notebook: Any, page: Page) -> None:
    """A PNG for every plotly figure, in the same output."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if PLOTLY in output.get("data", {}):
                figure = json.loads(json.dumps(output.data[PLOTLY]))
                url = page.evaluate(_DRAW, [figure, WIDTH, HEIGHT, SCALE])
                output.data[PICTURE] = base64.b64encode(base64.b64decode(url.partition(",")[2])).decode() + "\n"


def refresh(paths: Iterable[Path]) -> None:
    """Each notebook is written only if it ran to its end."""
    with plotly_page() as page:
        for path in paths:
            notebook = nbformat.read(path, as_version=4)
            execute(notebook)
            add_pictures(notebook, page)
            nbformat.write(notebook, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all notebooks if none is given")
    names = tuple(parser.parse_args().names)
    refresh(path for path in sorted(HERE.glob("*.ipynb")) if not names or path.name.startswith(names))
