"""Test that the README's Python example runs as written, and that its tree matches the package."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert examples
    for example in examples:
        exec(compile(example, "README.md", "exec"), {})


def test_tree_shows_every_subpackage() -> None:
    tree = re.search(r"```\nmtsae_lens/\n(.*?)```", README, flags=re.DOTALL)
    assert tree is not None
    shown = set(re.findall(r"^  (\w+)/", tree[1], flags=re.MULTILINE))
    package = ROOT / "mtsae_lens"
    assert shown == {folder.name for folder in package.iterdir() if (folder / "__init__.py").exists()}
