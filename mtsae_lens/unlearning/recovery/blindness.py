"""Find the perturbations that the encoder of some features does not read.

A feature of an encoder that reads the token alone does not change under a perturbation that is orthogonal to its column of `W_enc`. A temporal
encoder reads a perturbation of one position at several positions, through every scale k and every offset o of its filter:

    pre-activation at t - o changes by  (W_k - mean W_k) * f_ko . delta_t        with a layer norm; without one, by  W_k * f_ko . delta_t

so there is one row for each feature, scale and offset. What is not covered: a layer norm also divides by the standard deviation, which any
perturbation changes a little; features of a top-k encoder compete; and an SAE with memory reads its own past output, which other features
change. So an attack reports how much the edited features changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ModelError
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.error_edits import parts_of

_ZERO = 1e-5  # of the largest singular value


def edited_features(edit: Edit | None) -> tuple[int, ...]:
    """Return the features that an edit changes, each once.

    Args:
        edit: the edit; None for no edit.
    """
    parts = () if edit is None else parts_of(edit)
    return tuple(dict.fromkeys(feature for part in parts for feature in getattr(part, "features", ())))


@torch.no_grad()
def encoder_rows(sae: SAE[Any], features: Sequence[int]) -> Float[Tensor, "n d_in"]:
    """Return the directions in which the encoder reads a position for some features.

    Args:
        sae: the SAE.
        features: indices of the features.

    Returns:
        One row for each feature; for a temporal encoder, one for each feature, scale and offset. With a rescaled layer norm, also the direction
        of the mean.

    Raises:
        ModelError: the SAE has no matrix `W_enc`.
    """
    chosen = list(features)
    if not isinstance(sae, TemporalEncoder):
        if not isinstance(getattr(sae, "W_enc", None), Tensor):
            raise ModelError(
                f"expected an SAE with an encoder matrix W_enc, got architecture {sae.cfg.architecture()!r}; attack without the constraint"
            )
        return sae.W_enc[:, chosen].detach().T
    weights = sae.encoder_by_scale(torch.tensor(chosen, dtype=torch.long, device=sae.device))
    weights = weights * torch.tensor([1.0] + [sae.cfg.context_gain] * (len(weights) - 1), device=sae.device).view(-1, 1, 1)
    raw = weights
    if sae.cfg.scale_norm != "none":
        weights = weights - weights.mean(dim=1, keepdim=True)
    filters = sae.filters  # (scale, read, d_in)
    rows = torch.einsum("kdf,kod->kofd", weights, filters).flatten(0, 2)
    if chosen and sae.cfg.scale_norm == "rescaled_layer_norm":  # the mean of the position, which the norm puts back
        rows = torch.cat([rows, torch.ones_like(rows[:1]) * raw.sum(dim=(0, 1)).norm() / sae.cfg.d_in])
    return rows[rows.abs().amax(dim=-1) > 0]


def read_by(edit: Edit | None, sae: SAE[Any]) -> Float[Tensor, "n d_in"]:
    """Return the directions in which an edit reads a position to suppress what it reads: encoder rows of its features, and the directions of
    a `DirectionEdit`. An `ErrorEdit` adds none, so that a combined edit is attacked with the same perturbations as its features alone.

    Args:
        edit: the edit; None for no edit, which reads nothing.
        sae: the SAE.
    """
    rows = [encoder_rows(sae, edited_features(edit))] if edited_features(edit) else []
    rows += [] if edit is None else [part.basis.to(sae.device) for part in parts_of(edit) if isinstance(part, DirectionEdit)]
    return torch.cat(rows) if rows else torch.zeros(0, sae.cfg.d_in, device=sae.device)


def blind_subspace(rows: Float[Tensor, "n d_in"], tolerance: float) -> Float[Tensor, "rank d_in"]:
    """Compute a basis of the directions that rows hardly read.

    Args:
        rows: the directions that are read.
        tolerance: the share of the rows' squared norm that may lie in the subspace; 0 for the directions orthogonal to all rows.

    Returns:
        An orthonormal basis; without any row if every direction is read.
    """
    d_in = rows.shape[1]
    padded = torch.cat([rows.detach().cpu().double(), torch.zeros(d_in, d_in, dtype=torch.float64)])  # so that V is complete
    _, singular, right = torch.linalg.svd(padded, full_matrices=False)
    energy = singular.square()
    tail = energy.flip(0).cumsum(0).flip(0)
    unread = (singular <= _ZERO * singular.max().clamp(min=1e-30)) | (tail <= tolerance * energy.sum())
    return right[unread].float().to(rows.device)
