"""Edits of the activations themselves along directions, without the SAE."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.edit_interface import Edit, check_finite, register_edit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.sae_state import SAEState


@dataclass(frozen=True)
class EditOfDirections(Edit):
    """Base of the edits that remove directions from some vectors v: `v -> v - (1 + multiplier) * B^T B (v - center)`.

    Args:
        basis: B, with orthonormal rows (`orthonormal_rows`).
        center: the point towards which the vectors are projected.
        multiplier: strength of the edit. 0 projects the directions out, up to the center; a positive multiplier pushes beyond it.
        gate: says where the edit applies.

    Raises:
        ConfigError: the rows are not orthonormal, the center has another width, or numbers are not finite.
    """

    basis: Float[Tensor, "n d_in"]
    center: Float[Tensor, " d_in"]
    multiplier: float = 0.0
    gate: Gate = field(default_factory=AlwaysOpen)

    def __post_init__(self) -> None:
        check_finite("multiplier", self.multiplier)
        check_finite("center", self.center)
        if self.basis.ndim != 2 or self.center.shape != self.basis.shape[1:]:
            raise ConfigError(
                f"expected directions (n, d_in) and a center (d_in,), got {tuple(self.basis.shape)} and {tuple(self.center.shape)}; give both "
                "for one hook"
            )
        gram = self.basis @ self.basis.T
        if not torch.allclose(gram, torch.eye(len(gram), device=gram.device, dtype=gram.dtype), atol=1e-3):
            raise ConfigError("expected orthonormal directions, got others; give orthonormal_rows(directions)")

    def change_along(self, v: Float[Tensor, "batch pos *d_in"]) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the change of vectors along the directions.

        Args:
            v: the vectors, such as activations at the hook.

        Returns:
            The change, in the shape of `v`.

        Raises:
            ConfigError: the directions have another width than the vectors.
        """
        flat = v.flatten(2)
        if flat.shape[-1] != self.basis.shape[-1]:
            raise ConfigError(
                f"expected directions of width {flat.shape[-1]}, as the activations, got {self.basis.shape[-1]}; give directions of this hook"
            )
        basis, center = self.basis.to(flat), self.center.to(flat)
        return (-(1 + self.multiplier) * ((flat - center) @ basis.T) @ basis).view_as(v)

    def check_fits(self, d_sae: int, d_in: int) -> None:
        """Check that the directions have the width of the SAE's input.

        Args:
            d_sae: number of features of the SAE.
            d_in: width of its input.

        Raises:
            ConfigError: the width differs.
        """
        if len(self.center) != d_in:
            raise ConfigError(f"basis and center: expected a width of {d_in}, got {len(self.center)}")


@register_edit("directions")
@dataclass(frozen=True)
class DirectionEdit(EditOfDirections):
    """Remove directions from the activations themselves, without the SAE: `h' = h - (1 + multiplier) * B^T B (h - center)`.

    With decoder rows as directions, this removes what the features write; with a difference of means, it is the dense baseline.

    Args:
        basis: B, with orthonormal rows (`orthonormal_rows`).
        center: the point towards which the activations are projected.
        multiplier: strength of the edit, as in `EditOfDirections`.
        gate: says where the edit applies.

    Raises:
        ConfigError: the rows are not orthonormal, the center has another width, or numbers are not finite.
    """

    def delta(self, sae_state: SAEState) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the change along the directions, in the shape of the activations.

        Args:
            sae_state: the SAE, its input and its features.

        Raises:
            ConfigError: the directions have another width than the activations.
        """
        return self.change_along(sae_state.target)

    def describe(self) -> str:
        """Describe what the edit does."""
        return f"{len(self.basis)} directions are projected out of the activations, {1 + self.multiplier:g} times"

    def as_projection(self, sae: SAE[Any]) -> DirectionEdit:
        """Return the same edit without its gate.

        Args:
            sae: not used.
        """
        return DirectionEdit(self.basis, self.center, self.multiplier)


def orthonormal_rows(directions: Float[Tensor, "n d_in"]) -> Float[Tensor, "rank d_in"]:
    """Compute an orthonormal basis of the span of rows; rows that are linearly dependent on others are dropped.

    Args:
        directions: the rows.

    Returns:
        The basis, `(rank, d_in)`.

    Raises:
        ConfigError: there is no row.
    """
    if not len(directions):
        raise ConfigError("expected at least one direction, got none; give a feature or a row")
    # on the CPU, because some devices lack float64
    _, singular, rows = torch.linalg.svd(directions.detach().cpu().double(), full_matrices=False)
    return rows[singular > 1e-6 * singular.max().clamp(min=1e-30)].float().to(directions.device)
