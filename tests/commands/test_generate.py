"""Test which prompts `mtsae generate` accepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM


@pytest.mark.filterwarnings("default::mtsae_lens.errors.MTSAEWarning")
def test_another_language_model_is_refused_unless_allowed(
    mtsae: Callable[..., Any], lm: HookedLM, tiny_sae_dir: Path, tmp_path: Path, save_neox: Callable[..., Path]
) -> None:
    save_edit(tmp_path / "edit.json", FeatureEdit((1, 2)), lm)
    given = ("--edit", tmp_path / "edit.json", "--prompt", "the sea", "--max-new-tokens", 2)
    assert mtsae("generate", tiny_sae_dir, *given).code == 0
    other = ("--model", save_neox(tmp_path / "other", initializer_range=0.1))
    refused = mtsae("generate", tiny_sae_dir, *given, *other)
    assert refused.code == 2
    assert "expected bert-t5-gemma, the language model that the edit was made on, got other" in refused.error
    allowed = mtsae("generate", tiny_sae_dir, *given, *other, "--allow-other-model")
    assert allowed.code == 0
    assert "made on bert-t5-gemma, and this other is another model" in allowed.err


@pytest.mark.parametrize(
    ("prompt", "n_new", "message"),
    [
        (
            "caf\udce9 au lait",
            5,
            r"expected --prompt to be valid Unicode, got the lone surrogate '\udce9' (the byte 0xe9, which is not UTF-8) at character 4",
        ),
        ("\ud83d", 5, r"the lone surrogate '\ud83d' at character 1"),
        ("the sea " * 50, 5, "prompt tokens and 5 new ones; give a shorter prompt"),
        ("the sea", 500, "prompt tokens and 500 new ones; give a shorter prompt or max_new_tokens=6"),
    ],
    ids=["a byte", "half a pair", "long prompt", "long continuation"],
)
def test_what_cannot_be_continued(
    mtsae: Callable[..., Any], lm: HookedLM, tiny_sae_dir: Path, tmp_path: Path, prompt: str, n_new: int, message: str
) -> None:
    save_edit(tmp_path / "edit.json", FeatureEdit((1, 2)), lm.splice)
    outcome = mtsae("generate", tiny_sae_dir, "--edit", tmp_path / "edit.json", "--prompt", prompt, "--max-new-tokens", n_new)
    assert outcome.code == 2
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert outcome.err.endswith(f"{line}\n")
