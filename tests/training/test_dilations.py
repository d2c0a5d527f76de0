"""Test that the dilations selected from data are the lags in the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import position_0
from torch import Tensor

from mtsae_lens.data.planted import PlantedConfig, PlantedFeatures
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.training import recipe
from mtsae_lens.training.dilations import lag_covariances, predictability, select_dilations


def select(h: Tensor, n_dilations: int, masked: Tensor | None = None, **settings: Any) -> tuple[int, ...]:
    return select_dilations(h, position_0(h) if masked is None else masked, n_dilations, **settings)


def echoing(*lags: int, n_positions: int = 64, d_in: int = 6) -> Tensor:
    """White noise that repeats itself, weaker, after each of these lags."""
    noise = torch.randn(64, n_positions + max(lags), d_in, generator=torch.Generator().manual_seed(0))
    total = noise.clone()
    for lag in lags:
        total[:, lag:] += 0.7 * noise[:, :-lag]
    h = total[:, max(lags) :]
    h[:, 0] = 0
    return h


@pytest.mark.parametrize(("lag", "kernel_size", "expected"), [(5, 2, 5), (7, 2, 7), (11, 2, 11)])
def test_the_lag_of_an_echo_is_selected_first(lag: int, kernel_size: int, expected: int) -> None:
    assert select(echoing(lag), 1, kernel_size=kernel_size) == (0, expected)


def test_two_echoes_give_two_dilations_in_order() -> None:
    assert select(echoing(5, 13), 2, kernel_size=2) in {(0, 5, 13), (0, 5, 8), (0, 8, 13)}  # 8 is their difference
    assert select(echoing(3, 6), 1, kernel_size=3) == (0, 3)  # one dilation with taps at both


def test_planted_lags_beside_the_powers_of_two_are_found() -> None:
    features = PlantedFeatures(PlantedConfig(durations=(), lags=((3, 6), (10, 20)), n_patterns_per_lags=4, pattern_rate=0.04))
    h = features.sample(512, torch.Generator().manual_seed(0)).h
    assert set(select(h, 2)) == {0, 3, 10}


def test_predictability_is_the_r_squared_of_a_regression() -> None:
    h = echoing(4, n_positions=200)
    covariances = lag_covariances(h, position_0(h), 12, n_components=6)
    now, then = (h[:, 1 + 12 :], h[:, 1 + 8 : -4])
    x, y = then.flatten(0, 1).double(), now.flatten(0, 1).double()
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    residual = y - x @ torch.linalg.lstsq(x, y).solution
    expected = 1 - residual.pow(2).sum() / y.pow(2).sum()
    assert predictability(covariances, [4]) == pytest.approx(float(expected), abs=0.01)
    assert predictability(covariances, [4]) > 0.15 > predictability(covariances, [3])
    assert predictability(covariances, []) == 0
    assert predictability(covariances, [3, 4, 7]) >= predictability(covariances, [4])


def test_several_lags_are_one_regression_where_dimensions_lead_each_other() -> None:
    """Dimension 0 leads dimension 1 by three positions, so lag covariances are not symmetric."""
    noise = torch.randn(200, 103, 2, generator=torch.Generator().manual_seed(0))
    h = noise[:, 3:].clone()
    h[..., 1] += noise[:, :-3, 0]
    h[..., 0] += 0.8 * noise[:, 1:-2, 1]
    lags = [1, 2, 3, 5]
    y = h[:, 5:].flatten(0, 1).double()
    x = torch.cat([h[:, 5 - lag : 100 - lag].flatten(0, 1) for lag in lags], dim=1).double()
    residual = y - x @ torch.linalg.lstsq(x, y).solution
    expected = 1 - residual.pow(2).sum() / y.pow(2).sum()
    assert predictability(lag_covariances(h, position_0(h), 6, n_components=2), lags) == pytest.approx(
        float(expected), abs=0.01
    )


def test_walls_are_left_out() -> None:
    h = echoing(5)
    masked = torch.zeros(h.shape[:2], dtype=torch.bool)
    masked[:, ::4] = True
    h[masked] = 100 * h[masked].roll(1, dims=0)  # long, and of another context, so that it would hide the echo
    assert select(h, 1, masked, kernel_size=2) == (0, 5)
    assert select(h, 1, kernel_size=2) != (0, 5)
    with pytest.raises(DataError, match="every position is masked"):
        select(h, 1, torch.ones_like(masked))


@pytest.mark.parametrize("n_dilations", [0, 40])
def test_more_dilations_than_there_are_is_an_error(n_dilations: int) -> None:
    with pytest.raises(ConfigError, match=f"n_dilations from 1 to 16.* got {n_dilations}"):
        select(echoing(5), n_dilations)


@pytest.mark.parametrize(("value", "message"), [(2.0, "that vary"), (float("nan"), "NaN or infinity"), (1e-30, "rescale")])
def test_activations_that_tell_nothing_are_refused(value: float, message: str) -> None:
    with pytest.raises(DataError, match=message):
        select(torch.full((4, 32, 6), value), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sae": {"k": 4, "memory": "predictive"}},
            r"^expected memory='none' for dilations='auto', got 'predictive', where the encoder reads the token alone; leave dilations out$",
        ),
        ({"architecture": "topk"}, r"^expected architecture 'mtsae' for dilations='auto', got 'topk'; leave dilations out$"),
    ],
)
def test_a_selection_that_no_encoder_reads_is_refused_before_the_model_is_loaded(
    changes: dict[str, Any],
    message: str,
    tiny_settings: Callable[..., recipe.TrainSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(recipe, "load_language_model")
    settings = tiny_settings(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message):
        recipe.train_sae(settings.model_copy(update={"sae": settings.sae | {"dilations": "auto"}}))
