"""Test that frozen weights keep their start, and the others are trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.errors import ConfigError
from mtsae_lens.opening import load_sae
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.several import settings_of_each

SAES: dict[str, dict[str, Any]] = {
    "topk": {"architecture": "topk", "sae": {"k": 4}},
    "mtsae": {"architecture": "mtsae", "sae": {"k": 4}},
    "memory": {"architecture": "mtsae", "sae": {"k": 4, "memory": "predictive"}},
    "standard": {"architecture": "standard", "sae": {"l1_coefficient": 0.1}},
}


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", SAES)
def test_the_decoder_or_everything_keeps_its_start(
    name: str, tmp_path: Path, tiny_settings: Callable[..., TrainSettings]
) -> None:
    def trained(frozen: str | None, n_steps: int = 12) -> dict[str, torch.Tensor]:
        out = tmp_path / f"{frozen}-{n_steps}"
        train_sae(
            tiny_settings(out, frozen=frozen, training_tokens=n_steps * 4 * 32, normalize_activations="none", **SAES[name])
        )
        return load_sae(out).state_dict()

    usual, decoder, everything, once = trained(None), trained("decoder"), trained("all"), trained("all", 11)
    torch.testing.assert_close(decoder["W_dec"], everything["W_dec"])
    assert distance(usual["W_dec"], everything["W_dec"]) > 1e-2
    assert distance(decoder["W_enc"], everything["W_enc"]) > 1e-2
    assert everything["b_dec"].any()
    for weight, value in everything.items():
        if not weight.startswith(
            ("b_", "W_memory")
        ):  # these start from the first activations, of which a shorter run has fewer
            torch.testing.assert_close(value, once[weight])


def test_a_run_with_everything_frozen_can_be_resumed(tmp_path: Path, tiny_settings: Callable[..., TrainSettings]) -> None:
    settings = tiny_settings(tmp_path / "out", frozen="all")
    before = train_sae(settings).state_dict()
    (tmp_path / "out" / "cfg.json").unlink()
    again = train_sae(settings, resume=True).state_dict()
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_saes_of_one_pass_may_differ_in_it(tmp_path: Path, tiny_settings: Callable[..., TrainSettings]) -> None:
    entries = ({"name": "usual"}, {"name": "random", "frozen": "decoder"})
    assert [each.frozen for each in settings_of_each(tiny_settings(tmp_path, saes=entries))] == [None, "decoder"]


def test_other_weights_cannot_be_frozen() -> None:
    with pytest.raises(ConfigError, match="expected frozen of decoder or all or None, got 'encoder'"):
        TrainerOptions(frozen="encoder")  # type: ignore[arg-type]
