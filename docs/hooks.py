"""What mkdocs needs besides its plugins: notebooks as pages, intervals on one line, and no page that loads anything from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_MERMAID = re.compile(r'<script type="module">(?:(?!</script>).)*mermaid(?:(?!</script>).)*</script>', re.DOTALL)
_NOTEBOOK = re.compile(r"\]\(\.\./((?:\.\./)*notebooks/)")
_CELL = re.compile(r"<td\b[^>]*>.*?</td>", re.DOTALL)
_INTERVAL = re.compile(r"\[[-+]?\d[\d.]*%?, [-+]?\d[\d.]*%?\]")
_SENTENCE = 50  # characters; names and numbers are shorter
_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\ssrc=["']?https?:[^>]*>"""
    r"""|<link\b[^>]*rel=["']?(?:stylesheet|preload|preconnect|icon)[^>]*href=["']?https?:[^>]*>"""
    r"""|@import\s+url\(["']?https?:[^)]*\)"""
    r"""|\bimport\(["']https?:[^)]*\)"""
)


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """`notebooks/*.ipynb` as `notebooks/` of the site."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        files.append(File(f"notebooks/{path.name}", str(root), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """With links to notebooks as they are in the site, where `notebooks/` lies beside the pages, not above them."""
    return _NOTEBOOK.sub(r"](\1", markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Without nbconvert's script for Mermaid diagrams, which would come from a CDN; with cells of tables marked for `site.css`."""
    return _CELL.sub(_mark, _MERMAID.sub("", html))


def _mark(cell: re.Match[str]) -> str:
    """Intervals, which stay on one line, and cells with a sentence, which need some width."""
    marked = _INTERVAL.sub(r'<span class="interval">\g<0></span>', cell[0])
    n_characters = len(re.sub(r"<[^>]*>", "", cell[0]))
    return marked.replace("<td", '<td class="sentence"', 1) if n_characters > _SENTENCE else marked


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The page as it is.

    Raises:
        PluginError: it would load something from elsewhere, which a reader without a network could not.
    """
    found: Any = _ELSEWHERE.search(output)
    if found is not None:
        raise PluginError(f"{page.file.src_uri}: loads {found[0][:200]} from elsewhere; put the file under docs/")
    return output
