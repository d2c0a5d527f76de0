"""Edits of features inside a running model, with the SAE's error term kept:

    h' = h + decode(e') - decode(e)

What the SAE does not explain stays as it was, so an edit of nothing is the identity.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.gates import AlwaysOpen, Gate

SUPPRESSION = "An edit at a hook is suppression, not deletion: without the hook the model is what it was."
"""What every report of an edit says."""


@dataclass(frozen=True)
class Reading:
    """What an SAE makes of activations at its hook; its reconstruction is made once, however many edits need it."""

    sae: SAE[Any]
    sae_in: Float[Tensor, "batch pos *d_in"]
    feature_acts: Float[Tensor, "batch pos d_sae"]

    @cached_property
    def sae_out(self) -> Tensor:
        """The reconstruction of the clean features."""
        return self.sae.decode(self.feature_acts)

    def rows(self, kept: Bool[Tensor, " batch"]) -> Reading:
        """Of some contexts of the batch."""
        return self if bool(kept.all()) else Reading(self.sae, self.sae_in[kept], self.feature_acts[kept])


@runtime_checkable
class Edit(Protocol):
    """What is done to activations wherever the gate is open."""

    @property
    def gate(self) -> Gate:
        """Says where."""
        ...

    def delta(self, reading: Reading) -> Float[Tensor, "batch pos *d_in"]:
        """What is added to the SAE's input at every position, were the gate open there."""
        ...


@dataclass(frozen=True)
class FeatureEdit:
    """Where a chosen feature fires and the gate is open, `e_i -> -multiplier * e_i`.

    `multiplier=0` is zero ablation; a positive one clamps the feature below zero in units of its own activation, which means the same
    in every SAE (a fixed negative value would not); -1 changes nothing, and below that the feature is amplified.

    Raises:
        ConfigError: `features` are no whole numbers in a tuple, list or tensor.
    """

    features: tuple[int, ...]
    multiplier: float = 0.0
    gate: Gate = field(default_factory=AlwaysOpen)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_indices(self.features))
        _check_finite("multiplier", self.multiplier)

    def apply(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """The edited activations.

        Raises:
            ConfigError: a feature that the SAE does not have.
        """
        check_features(self.features, feature_acts.shape[-1])
        factor = torch.ones(feature_acts.shape[-1], device=feature_acts.device, dtype=feature_acts.dtype)
        factor[list(self.features)] = -self.multiplier
        return feature_acts * factor

    def delta(self, reading: Reading) -> Tensor:
        """`decode(e') - decode(e)`."""
        return reading.sae.decode(self.apply(reading.feature_acts)) - reading.sae_out


Where = Literal["fires", "any_fires", "everywhere"]


@dataclass(frozen=True)
class FeatureClamp:
    """Chosen features are set to fixed values where the gate is open: `e_i -> values_i`.

    `where="fires"`: only a feature that fires is set (Farrell et al. 2024, arXiv 2410.19278, with one negative value for all). `"any_fires"`:
    all chosen features are set where at least one of them fires (DSG, Muhamed et al. 2025). `"everywhere"`: at every position; with the
    means over a retain corpus as values this is mean ablation.

    Raises:
        ConfigError: `features` are no whole numbers in a tuple, list or tensor, or `values` are not one for each.
    """

    features: tuple[int, ...]
    values: tuple[float, ...]
    where: Where = "fires"
    gate: Gate = field(default_factory=AlwaysOpen)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_indices(self.features))
        values = torch.as_tensor(self.values, dtype=torch.float64)
        if values.shape != (len(self.features),):
            came = f"{len(values)} for" if values.ndim == 1 else f"{self.values!r} for"
            raise ConfigError(
                f"a clamp needs a value for each feature; got {came} {len(self.features)} features (one for all: "
                "FeatureClamp(features, (value,) * len(features)))"
            )
        _check_finite("values", values)
        object.__setattr__(self, "values", tuple(values.tolist()))
        if self.where not in get_args(Where):
            raise ConfigError(f"where must be one of {', '.join(get_args(Where))}; got {self.where!r}")

    def apply(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """The edited activations.

        Raises:
            ConfigError: a feature that the SAE does not have.
        """
        check_features(self.features, feature_acts.shape[-1])
        chosen = list(self.features)
        values = torch.tensor(self.values, device=feature_acts.device, dtype=feature_acts.dtype)
        fires = feature_acts[..., chosen] > 0
        if self.where == "any_fires":
            fires = fires.any(dim=-1, keepdim=True).expand_as(fires)
        elif self.where == "everywhere":
            fires = torch.ones_like(fires)
        edited = feature_acts.clone()
        edited[..., chosen] = torch.where(fires, values, feature_acts[..., chosen])
        return edited

    def delta(self, reading: Reading) -> Tensor:
        """`decode(e') - decode(e)`."""
        return reading.sae.decode(self.apply(reading.feature_acts)) - reading.sae_out


@dataclass(frozen=True)
class DirectionEdit:
    """Directions of the activations themselves, past the SAE: `h' = h - (1 + multiplier) * B^T B (h - center)`.

    `multiplier=0` projects the directions out (up to the center), a positive one pushes beyond, as `FeatureEdit` does. With
    decoder rows as directions this removes what they write; with a difference of means it is the dense baseline.
    """

    basis: Float[Tensor, "n d_in"]  # orthonormal rows
    center: Float[Tensor, " d_in"]
    multiplier: float = 0.0
    gate: Gate = field(default_factory=AlwaysOpen)

    def __post_init__(self) -> None:
        _check_finite("multiplier", self.multiplier)
        _check_finite("center", self.center)
        if self.basis.ndim != 2 or self.center.shape != self.basis.shape[1:]:
            raise ConfigError(
                f"an edit needs directions (n, d_in) and a center (d_in,); got {tuple(self.basis.shape)} and {tuple(self.center.shape)}"
            )
        gram = self.basis @ self.basis.T
        if not torch.allclose(gram, torch.eye(len(gram), device=gram.device, dtype=gram.dtype), atol=1e-3):
            raise ConfigError("the directions of an edit must be orthonormal; give orthonormal_rows(directions)")

    def delta(self, reading: Reading) -> Tensor:
        """The change along the directions, in the shape of the activations."""
        flat = reading.sae_in.flatten(2)
        if flat.shape[-1] != self.basis.shape[-1]:
            raise ConfigError(f"the directions have width {self.basis.shape[-1]}, the activations {flat.shape[-1]}")
        basis, center = self.basis.to(flat), self.center.to(flat)
        return (-(1 + self.multiplier) * ((flat - center) @ basis.T) @ basis).view_as(reading.sae_in)


def orthonormal_rows(directions: Float[Tensor, "n d_in"]) -> Float[Tensor, "rank d_in"]:
    """An orthonormal basis of what the rows span; rows that add nothing are dropped.

    Raises:
        ConfigError: no row.
    """
    if not len(directions):
        raise ConfigError("no direction to edit; give at least one feature or row")
    # on the CPU, as not every device has float64
    _, singular, rows = torch.linalg.svd(directions.detach().cpu().double(), full_matrices=False)
    return rows[singular > 1e-6 * singular.max().clamp(min=1e-30)].float().to(directions.device)


def feature_indices(features: Any) -> tuple[int, ...]:
    """Indices from a tuple, list, array or tensor of whole numbers.

    Raises:
        ConfigError: something else, such as a single number.
    """
    try:
        given: list[Any] = features.tolist() if hasattr(features, "tolist") else list(features)
        if any(isinstance(feature, bool) for feature in given):
            raise TypeError("a truth value is no index")
        return tuple(operator.index(feature) for feature in given)
    except TypeError as error:
        raise ConfigError(
            f"features must be whole numbers in a tuple, list or tensor, such as (3, 14); got {features!r}"
        ) from error


def _check_finite(name: str, value: Any) -> None:
    if not bool(torch.as_tensor(value, dtype=torch.float64).isfinite().all()):
        raise ConfigError(f"the {name} of an edit must be finite; got NaN or infinity")


def check_features(features: Sequence[int], d_sae: int) -> None:
    """Raise `ConfigError` for a feature that the SAE does not have."""
    if any(not 0 <= feature < d_sae for feature in features):
        raise ConfigError(f"features must lie between 0 and {d_sae - 1}; got {min(features)} to {max(features)}")
