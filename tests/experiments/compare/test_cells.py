"""Which errors of one SAE the comparison records, and which end it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.errors import DataError
from mtsae_lens.experiments.compare.cells import TuneText, train_cell
from mtsae_lens.experiments.compare.held_out import HeldOutText


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
