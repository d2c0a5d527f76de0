"""Test edits of the error part on cases worked out by hand, and what cannot be done with them."""

from __future__ import annotations

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit, parts_of
from mtsae_lens.splice.gates import FeatureActiveGate
from mtsae_lens.splice.splicing import Splice

H = torch.tensor([[[9.0, 9.0, 9.0], [2.0, 5.0, 1.0]]])
"""A first position, which no edit touches, and one with feature 0 at 2 and an error of (0, 5, 1)."""


def splice() -> Splice:
    """Return an SAE of one feature, which reads and writes the first dimension."""
    sae = StandardSAE(StandardSAEConfig(d_in=3, d_sae=1))
    sae.W_enc.data, sae.W_dec.data = torch.eye(3)[:, :1].clone(), torch.eye(3)[:1].clone()
    sae.cfg.metadata.hook_name = "blocks.0.hook_resid_post"
    return Splice(sae)


MASKED = torch.tensor([[True, False]])


def test_the_error_alone_loses_the_direction() -> None:
    edit = ErrorEdit(torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0.0, 2.0, 7.0]))
    assert splice().edited(H, edit, MASKED)[0].tolist() == [[9.0, 9.0, 9.0], [2.0, 2.0, 1.0]]
    beyond = ErrorEdit(edit.basis, edit.center, 1.0)
    assert splice().edited(H, beyond, MASKED)[0, 1].tolist() == [2.0, -1.0, 1.0]


def test_what_the_features_write_is_no_error() -> None:
    edit = ErrorEdit(torch.eye(3)[:1], torch.zeros(3))
    assert torch.equal(splice().edited(H, edit, MASKED), H)


def test_without_any_error_only_the_features_are_left() -> None:
    edit = ErrorEdit(torch.eye(3), torch.tensor([0.0, 1.0, 1.0]))
    assert splice().edited(H, edit, MASKED)[0, 1].tolist() == [2.0, 1.0, 1.0]


def test_a_combined_edit_changes_features_and_error_behind_one_gate() -> None:
    error = ErrorEdit(torch.eye(3), torch.zeros(3))
    combined = CombinedEdit((FeatureEdit((0,), 1.5), error), FeatureActiveGate(torch.tensor([0])))
    assert splice().edited(H, combined, MASKED)[0, 1].tolist() == [-3.0, 0.0, 0.0]
    closed = -H  # the feature does not fire
    assert torch.equal(splice().edited(closed, combined, MASKED), closed)
    assert list(parts_of(combined)) == [FeatureEdit((0,), 1.5), error]
    assert list(parts_of(error)) == [error]
    assert combined.describe() == (
        "1 features e_i become -1.5 e_i where they fire, and 3 directions are projected out of the SAE's error, 1 times"
    )


@pytest.mark.parametrize("parts", [(), (CombinedEdit((FeatureEdit((0,)),)),), (3,)], ids=["none", "nested", "no edit"])
def test_only_plain_edits_are_combined(parts: tuple[FeatureEdit, ...]) -> None:
    with pytest.raises(ConfigError, match=r"expected edits to combine, got .*; give such as"):
        CombinedEdit(parts)


def test_directions_are_checked() -> None:
    with pytest.raises(ConfigError, match="orthonormal"):
        ErrorEdit(2 * torch.eye(3), torch.zeros(3))


@pytest.mark.parametrize(
    "edit", [ErrorEdit(torch.eye(3), torch.zeros(3)), CombinedEdit((FeatureEdit((0,)),))], ids=["error", "combined"]
)
def test_weights_cannot_carry_it_out(edit: ErrorEdit | CombinedEdit) -> None:
    with pytest.raises(ModelError, match=r"needs the SAE's error; export it with --form hooked"):
        edit.as_projection(splice().sae)
