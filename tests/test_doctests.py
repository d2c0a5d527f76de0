"""Run the examples in docstrings."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import pytest

import mtsae_lens
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM

ROOT = Path(mtsae_lens.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if ">>>" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples(path: Path, lm: HookedLM) -> None:
    """Examples may use a language model and its SAE: `lm`, `model`, `sae`, and prompts `tokens`."""
    name = ".".join(("mtsae_lens", *path.relative_to(ROOT).with_suffix("").parts))
    tokens = lm.model.to_tokens("In the beginning")
    given: dict[str, Any] = {"lm": lm, "model": lm.model, "sae": lm.sae, "tokens": tokens, "FeatureEdit": FeatureEdit}
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs=given, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_no_example_is_skipped() -> None:
    assert [path.name for path in MODULES if "+SKIP" in path.read_text(encoding="utf-8")] == []
