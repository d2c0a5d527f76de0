"""Test that an encoder is blind to perturbations of the subspace that is computed for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ModelError
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.unlearning.recovery.blindness import blind_subspace, edited_features, encoder_rows, read_by

FEATURES = (1, 4)


def temporal(**settings: Any) -> MTSAE:
    defaults = {"d_in": 48, "d_sae": 12, "k": 12, "context_size": 12, "dilations": (0, 1, 2), "activation": "relu"}
    sae = MTSAE(MTSAEConfig(**(defaults | settings)))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return sae


@torch.no_grad()
def pre_activations(sae: MTSAE, h: torch.Tensor) -> torch.Tensor:
    return sae.encoder_input(sae.encode_scales(*sae.read_contexts(h))) @ sae.W_enc + sae.b_enc


@pytest.mark.parametrize("settings", [{}, {"context_rank": 5}, {"context_gain": 0.3}], ids=str)
def test_a_linear_temporal_encoder_does_not_read_it_at_any_offset(settings: dict[str, Any]) -> None:
    sae = temporal(scale_norm="none", **settings)
    rows = encoder_rows(sae, FEATURES)
    assert len(rows) == 2 * 7  # scale 0 reads one offset, the two others three each
    basis = blind_subspace(rows, 0.0)
    assert len(basis) == 48 - len(rows)
    h = torch.randn(2, 12, 48, generator=torch.Generator().manual_seed(1))
    moved = h.clone()
    moved[:, 5] += 30.0 * basis[0]  # one position alone, which later positions read through the dilations
    change = (pre_activations(sae, moved) - pre_activations(sae, h)).abs().amax(dim=(0, 1))
    assert change[list(FEATURES)].max() < 1e-3
    assert change[0] > 1.0


@pytest.mark.parametrize("scale_norm", ["layer_norm", "rescaled_layer_norm"])
def test_with_a_norm_only_the_scale_changes(scale_norm: str) -> None:
    """Of a single scale, all pre-activations that are blind change by the same factor."""
    sae = temporal(scale_norm=scale_norm, dilations=(0,))
    basis = blind_subspace(encoder_rows(sae, FEATURES), 0.0)
    h = torch.randn(2, 12, 48, generator=torch.Generator().manual_seed(1))
    (x, walls), (moved, _) = (sae.read_contexts(each) for each in (h, h + 2.0 * basis[0]))
    mean = sae.W_enc.sum(dim=0) * (x.mean(dim=-1, keepdim=True) if scale_norm == "rescaled_layer_norm" else torch.zeros(()))
    before, after = (sae.encoder_input(sae.encode_scales(each, walls)) @ sae.W_enc - mean for each in (x, moved))
    factor = (after / before)[:, 1:]
    assert torch.allclose(factor[..., 1], factor[..., 4], atol=1e-3)
    assert not torch.allclose(factor[..., 1], factor[..., 0], atol=1e-2)


def test_a_pointwise_encoder_has_one_row_for_each_feature() -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=9))
    assert torch.equal(encoder_rows(sae, (2, 7)), sae.W_enc.data[:, [2, 7]].T)
    basis = blind_subspace(encoder_rows(sae, (2, 7)), 0.0)
    assert len(basis) == 4
    assert (basis @ sae.W_enc[:, [2, 7]]).abs().max() < 1e-5


def test_tolerance_adds_the_directions_that_are_read_least() -> None:
    rows = torch.diag(torch.tensor([10.0, 1.0, 0.5, 0.0]))  # squared: 100, 1, 0.25, 0
    found = [len(blind_subspace(rows, tolerance)) for tolerance in (0.0, 0.005, 0.02, 0.999)]
    assert found == [1, 2, 3, 3]
    assert torch.allclose(blind_subspace(rows, 0.0).abs(), torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert len(blind_subspace(torch.zeros(0, 4), 0.0)) == 4
    assert len(blind_subspace(torch.randn(9, 4), 0.0)) == 0


@pytest.mark.parametrize("tolerance", [0.0, 0.01, 0.9])
def test_no_direction_that_is_projected_out_is_nearly_blind(tolerance: float) -> None:
    """Each of 150 orthonormal directions holds less than 1% of their squared norm, and is read fully."""
    sae = StandardSAE(StandardSAEConfig(d_in=200, d_sae=9))
    directions = torch.linalg.qr(torch.randn(200, 150, generator=torch.Generator().manual_seed(0)))[0].T
    edit = DirectionEdit(directions, torch.zeros(200))
    rows, projected = read_by(edit, sae)
    basis = blind_subspace(rows, tolerance, projected)
    assert len(basis) == 50
    assert (basis @ directions.T).abs().max() < 1e-5
    assert len(blind_subspace(rows, tolerance, torch.eye(200))) == 0
    assert (
        len(blind_subspace(rows, tolerance, torch.cat([directions, directions[:20]]))) == 50
    )  # two parts may share directions


def test_tolerance_of_a_combined_edit_is_that_of_its_encoder_rows() -> None:
    rows = torch.diag(torch.tensor([10.0, 1.0, 0.5, 0.0, 0.0]))
    projected = torch.eye(5)[[1, 3]]
    for tolerance, expected in ((0.0, [4]), (0.005, [2, 4]), (0.02, [2, 4]), (0.98, [2, 4])):
        basis = blind_subspace(rows, tolerance, projected)
        assert basis.square().sum(dim=0) == pytest.approx([float(place in expected) for place in range(5)], abs=1e-6)
    tiny = 1e-3 * torch.eye(5)[:2]
    assert len(blind_subspace(tiny, 0.01, torch.eye(5)[[3]])) == 2  # short encoder rows beside long directions are read as well


def test_an_edit_reads_its_features_and_directions_but_not_the_error() -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=9))
    features, directions = FeatureEdit((2, 7, 2)), DirectionEdit(torch.eye(6)[:1], torch.zeros(6))
    error = ErrorEdit(torch.eye(6), torch.zeros(6))
    assert edited_features(CombinedEdit((features, directions, error))) == (2, 7)
    rows, projected = read_by(CombinedEdit((features, directions, error)), sae)
    assert torch.equal(rows, encoder_rows(sae, (2, 7)))
    assert torch.equal(projected, torch.eye(6)[:1])
    assert [len(read) for edit in (error, None) for read in read_by(edit, sae)] == [0] * 4
    assert edited_features(None) == ()


def test_an_sae_without_a_matrix_is_refused() -> None:
    sae = StandardSAE(StandardSAEConfig(d_in=6, d_sae=9))
    del sae.W_enc
    with pytest.raises(ModelError, match="expected an SAE with an encoder matrix W_enc"):
        encoder_rows(sae, (1,))
