"""Test that the README's Python example runs as written, and that the tree in CONTRIBUTING shows every subpackage."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
MAX_README_LINES = 110


@pytest.mark.slow
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_tree_shows_every_subpackage() -> None:
    tree = re.search(r"```\nmtsae_lens/\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
    assert tree is not None
    shown = re.findall(r"^  (\w+)/", tree[1], flags=re.MULTILINE)
    package = ROOT / "mtsae_lens"
    assert sorted(shown) == sorted(folder.name for folder in package.iterdir() if (folder / "__init__.py").exists())


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= MAX_README_LINES
