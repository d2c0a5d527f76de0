"""Test the columns of `features.parquet` that are means, or leave something out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.feature_table import Effects, _cofiring_columns, _effect_columns

NAN = torch.nan


def test_effects_are_means_over_the_examples_that_have_one() -> None:
    ablation = torch.tensor([[[1.0, 2.0], [NAN, 4.0], [3.0, NAN]], [[NAN, NAN]] * 3])
    columns = {
        name: column.to_pylist() for name, column in _effect_columns(Effects(ablation, torch.tensor([0.5, NAN]))).items()
    }
    assert columns == {
        "ablation_next_nll": [2.0, None],
        "ablation_rest_nll": [3.0, None],
        "n_ablated": [3, 0],
        "attribution": [0.5, None],
    }
    left_out = _effect_columns(Effects(torch.empty(2, 0, 2), torch.full((2,), NAN)))
    assert left_out["ablation_next_nll"].to_pylist() == [None, None]
    assert left_out["n_ablated"].to_pylist() == [0, 0]


def test_only_features_that_fire_together_more_than_by_chance_are_named(look: Any, lm: Any, corpora: Corpora) -> None:
    survey = look(lm, corpora)
    scores, features = survey.cofiring.strongest(32, 8)
    columns = _cofiring_columns(survey)
    assert not (scores <= 0).any()
    for feature in range(32):
        known = scores[feature] > 0  # NaN is not
        assert columns["cofiring"][feature].as_py() == features[feature][known].tolist()
        assert columns["cofiring_scores"][feature].as_py() == pytest.approx(scores[feature][known].tolist())
