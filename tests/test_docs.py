"""Test the documentation: Python examples run as written, commands are accepted, and pages are reachable."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import mtsae_lens
from mtsae_lens.cli import app
from mtsae_lens.commands.explore import ExploreSettings
from mtsae_lens.commands.unlearn import UnlearnSettings
from mtsae_lens.interop.hub import upload_sae
from mtsae_lens.sae.activation_interface import ACTIVATIONS
from mtsae_lens.sae.separation import SEPARATIONS
from mtsae_lens.splice.edit_interface import EDITS
from mtsae_lens.splice.gate_interface import GATES
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.selection.scores import SCORES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
PYTHON = re.compile(r"```python\n(.*?)```", flags=re.DOTALL)


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def commands(text: str) -> Iterator[list[str]]:
    """The calls of `mtsae` in code blocks, comments and shell around them left out."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines() if language in ("", "console", "bash") else ():
            if not line.lstrip().startswith(("mtsae ", "python -c ")):
                continue
            words = shlex.split(line.removesuffix(" &"), comments=True)
            yield words[1:] if words[0] == "mtsae" else words[3:]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A folder with what the pages speak of: `my-model`, `my-texts`, `other-texts.txt`, `my-sae`, `runs/sae` and, on a hub, `me/my-mtsae`."""
    shutil.copytree(request.getfixturevalue("tiny_model_dir"), tmp_path / "my-model")
    (tmp_path / "my-texts").mkdir()
    shutil.copy(request.getfixturevalue("text_file"), tmp_path / "my-texts" / "land.txt")
    shutil.copy(request.getfixturevalue("sea_file"), tmp_path / "other-texts.txt")
    for name in ("my-sae", "runs/sae"):
        shutil.copytree(request.getfixturevalue("tiny_sae_dir"), tmp_path / name)
    request.getfixturevalue("hub")
    upload_sae(tmp_path / "my-sae", "me/my-mtsae", "blocks.3.hook_resid_post")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def registries() -> Iterator[None]:
    """Remove what a page registers after its examples."""
    every = (SEPARATIONS, SCORES, EDITS, GATES, ACTIVATIONS)
    before = {id(registry): set(registry) for registry in every}
    yield
    for registry in every:
        for name in set(registry) - before[id(registry)]:
            del registry[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [path for path in PAGES if PYTHON.search(path.read_text())], ids=page_name)
def test_python_examples_run(path: Path, workplace: Path, registries: None) -> None:
    """The blocks of a page one after another, as a reader would type them."""
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, example in enumerate(PYTHON.findall(path.read_text()), 1):
        exec(compile(example, f"{page_name(path)}, example {number}", "exec", dont_inherit=True), namespace)


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=page_name)
def test_commands_are_taken(path: Path) -> None:
    """Verbs, options and the types of their values are accepted; nothing is run."""
    for words in commands(path.read_text()):
        command, *_ = app.parse_args([re.sub(r"\$\w+", "0", word) for word in words], exit_on_error=False, print_error=False)
        assert words[-1].startswith("--") or command is app[words[0]].default_command, words


def test_every_setting_of_exploring_is_told() -> None:
    told = set(re.findall(r"`(?:--)?([\w-]+)`", (DOCS / "how-to" / "explore.md").read_text()))
    settings = {name for name in ExploreSettings.model_fields if not {name, name.replace("_", "-")} & told}
    assert settings <= {"sae", "out"}, settings


def test_search_needs_no_server_and_no_network() -> None:
    """The plugin `offline` adds a script from elsewhere unless one of that name is given."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert "offline" in site["plugins"]
    (script,) = site["extra"]["polyfills"]
    assert script.endswith("iframe-worker.js")
    assert (DOCS / script).read_text().startswith('"use strict";')
    assert "Permission is hereby granted" in (DOCS / script).with_suffix(".LICENSE").read_text()


def test_settings_of_unlearning_are_taken() -> None:
    """Those of `docs/unlearning.md`, as a file for `--config`."""
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "unlearning.md").read_text(), flags=re.DOTALL)
    assert UnlearnSettings(sae=Path("runs/sae"), **yaml.safe_load(block)).protocol().grid.edits == tuple(
        kind
        for kind in EDIT_KINDS
        if kind != "scale_carried"  # for an SAE with memory
    )


def test_there_are_commands_and_examples() -> None:
    texts = [path.read_text() for path in PAGES]
    assert sum(len(list(commands(text))) for text in texts) > 10
    assert sum(len(PYTHON.findall(text)) for text in texts) > 8


def test_every_page_and_notebook_is_in_the_navigation() -> None:
    nav = re.findall(r"[\w/-]+\.(?:md|ipynb)", yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {str(path.relative_to(DOCS)) for path in PAGES}
    notebooks = {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert sorted(nav) == sorted(pages | notebooks)


def test_the_reference_covers_the_documented_packages() -> None:
    """Every module of sae, data, splice and evaluation, which are what others build on."""
    named = set(re.findall(r"^::: (\S+)", "\n".join(p.read_text() for p in (DOCS / "reference").glob("*.md")), re.MULTILINE))
    for package in ("sae", "data", "splice", "evaluation"):
        modules = {f"mtsae_lens.{package}.{path.stem}" for path in (ROOT / "mtsae_lens" / package).glob("[!_]*.py")}
        assert modules <= named, modules - named


def test_the_names_of_the_package_are_listed() -> None:
    rows = re.findall(r"^\|[^|]+\| (`.*) \|$", (DOCS / "reference" / "package.md").read_text(), flags=re.MULTILINE)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(mtsae_lens.__all__)
