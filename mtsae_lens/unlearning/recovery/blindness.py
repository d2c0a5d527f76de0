"""Find the perturbations that the encoder of some features does not read.

A feature of an encoder that reads the token alone does not change under a perturbation that is orthogonal to its column of `W_enc`. A temporal
encoder reads a perturbation of one position at several positions, through every scale k and every offset o of its filter:

    pre-activation at t - o changes by  (W_k - mean W_k) * f_ko . delta_t        with a layer norm; without one, by  W_k * f_ko . delta_t

so there is one row for each feature, scale and offset. An edit that projects directions out of the activations reads these directions instead.

What is not covered: a layer norm also divides by the standard deviation, which any perturbation changes a little; features of a top-k
encoder compete; and an SAE with memory reads its own past output, which other features change. So an attack reports how much the edited
features changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE, Transcoder
from torch import Tensor

from mtsae_lens.errors import ModelError
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.error_edits import parts_of
from mtsae_lens.splice.hook_pair import edited_width

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


def read_by(edit: Edit | None, sae: SAE[Any]) -> tuple[Float[Tensor, "n d_in"], Float[Tensor, "m d_in"]]:
    """Return the directions in which an edit reads a position to suppress what it reads. An `ErrorEdit` adds none, so that a combined edit is
    attacked with the same perturbations as its features alone.

    Args:
        edit: the edit; None for no edit, which reads nothing.
        sae: the SAE.

    Returns:
        The encoder rows of its features, and the directions of a `DirectionEdit`. A transcoder does not read the hook that is perturbed, the
        one that it decodes, so it has no rows.
    """
    nothing = torch.zeros(0, edited_width(sae), device=sae.device)
    features, parts = edited_features(edit), () if edit is None else parts_of(edit)
    bases = [part.basis.to(sae.device) for part in parts if isinstance(part, DirectionEdit)]
    reads_here = bool(features) and not isinstance(sae, Transcoder)
    return encoder_rows(sae, features) if reads_here else nothing, torch.cat(bases) if bases else nothing


def blind_subspace(
    rows: Float[Tensor, "n d_in"], tolerance: float, directions: Float[Tensor, "m d_in"] | None = None
) -> Float[Tensor, "rank d_in"]:
    """Compute a basis of what an edit does not read, or hardly reads.

    Encoder rows differ in length and overlap, so there are combinations of them that are hardly read, and the tolerance adds these. The
    directions that an edit projects out are all read fully, although one of many holds a small share of their squared norm. So the subspace
    is always orthogonal to them, and an edit of directions alone has no nearly blind directions beyond the blind ones.

    Args:
        rows: encoder rows of the edited features.
        tolerance: the share of the rows' squared norm that may lie in the subspace; 0 for what is orthogonal to all rows.
        directions: directions that the edit projects out; None for none.

    Returns:
        An orthonormal basis; without any row if everything is read.
    """
    rows_on_cpu = rows.detach().cpu().double()
    singular, free = _right_singular((rows[:0] if directions is None else directions).detach().cpu().double())
    free = free[singular <= _ZERO * singular.max()]
    longest = torch.linalg.matrix_norm(rows_on_cpu, 2) if len(rows) else torch.zeros((), dtype=torch.float64)
    singular, right = _right_singular(rows_on_cpu @ free.T)
    tail = singular.square().flip(0).cumsum(0).flip(0)
    unread = (singular <= _ZERO * longest) | (tail <= tolerance * rows_on_cpu.square().sum())
    return (right[unread] @ free).float().to(rows.device)


def _right_singular(rows: Float[Tensor, "n d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return the singular values, largest first and as many as there are columns, and the right singular vector of each."""
    padded = torch.cat([rows, torch.zeros(rows.shape[1], rows.shape[1], dtype=rows.dtype)])  # so that V is complete
    _, singular, right = torch.linalg.svd(padded, full_matrices=False)
    return singular, right
