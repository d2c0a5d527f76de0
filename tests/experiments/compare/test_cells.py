"""Which errors of one SAE the comparison records, and which end it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import HOOK

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import DataError
from mtsae_lens.experiments.compare.cells import TuneText, code_cell, train_cell
from mtsae_lens.experiments.compare.held_out import HeldOutText
from mtsae_lens.upstream import SAEMetadata


@pytest.fixture
def text(tiny_model_dir: Path, text_file: Path) -> HeldOutText:
    return HeldOutText(str(tiny_model_dir), "float32", str(text_file), 32, True, True, "cpu")


def test_a_loss_that_is_not_finite_is_recorded(tmp_path: Path, tiny_settings: Callable[..., Any], text: HeldOutText) -> None:
    settings = tiny_settings(tmp_path / "sae", lr=1e18)
    trained = train_cell(settings, None, TuneText(text, 2), keep=True)
    assert trained.failed.startswith("expected a finite loss at step ")
    assert not settings.out.exists()


def test_an_error_of_the_text_is_not_a_divergence(tmp_path: Path, tiny_settings: Callable[..., Any], text: HeldOutText) -> None:
    short = tmp_path / "short.txt"
    short.write_text("The sea.")
    settings = tiny_settings(tmp_path / "sae", dataset=str(short))
    with pytest.raises(DataError, match=r"^expected training documents that fill a context"):
        train_cell(settings, None, TuneText(text, 2), keep=True)


def save_silent(folder: Path, d_in: int) -> Path:
    """Save an SAE of which no feature fires."""
    cfg = MTSAEConfig(d_in=d_in, d_sae=8, activation="relu", context_size=32, metadata=SAEMetadata(hook_name=HOOK))
    sae = MTSAE(cfg)
    sae.b_enc.data.fill_(-1e6)
    sae.save_model(folder)
    return folder


def test_an_sae_that_never_fires_has_no_bits(tmp_path: Path, tiny_model: Any, text: HeldOutText) -> None:
    coded = code_cell(save_silent(tmp_path / "sae", tiny_model.cfg.d_model), text, 2, 4)
    assert all(math.isnan(value) for value in vars(coded).values())


def test_an_sae_that_cannot_read_the_activations_is_not_silent(tmp_path: Path, tiny_model: Any, text: HeldOutText) -> None:
    with pytest.raises(DataError, match=f"expected .*got .*{tiny_model.cfg.d_model}"):
        code_cell(save_silent(tmp_path / "sae", tiny_model.cfg.d_model // 2), text, 2, 4)
