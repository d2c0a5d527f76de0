"""Edits of features inside a running model, with the SAE's error term kept:

    h' = h + decode(e') - decode(e)

What the SAE does not explain stays as it was, so an edit of nothing is the identity. The decoder of an SAE with memory would carry a change of
the features on to later positions. By default it does not: an edit at a position changes the output at that position alone. With `carried=True`
it does, as under SAELens's hook `hook_sae_acts_post`.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.memory import Past
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_interface import Edit, check_finite, register_edit
from mtsae_lens.splice.feature_indices import check_features, feature_indices
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.sae_state import SAEState


class _EditOfFeatures(Edit):
    """Base of the edits that change feature activations."""

    features: tuple[int, ...]
    carried: bool

    newer: ClassVar[frozenset[str]] = frozenset({"carried"})

    @abstractmethod
    def apply(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """Return the edited feature activations.

        Raises:
            ConfigError: the SAE does not have one of the features.
        """

    def delta(self, sae_state: SAEState) -> Float[Tensor, "batch pos *d_in"]:
        """Compute `decode(e') - decode(e)`; for an affine decoder, only from the rows of the edited features.

        Args:
            sae_state: the SAE, its input and its features.
        """
        sae, feature_acts = sae_state.sae, sae_state.feature_acts
        check_features(self.features, feature_acts.shape[-1])
        chosen = list(dict.fromkeys(self.features))
        if len(chosen) >= feature_acts.shape[:-1].numel() or not _is_affine(sae):
            return sae_state.decode_change(self.apply(feature_acts))
        place = {feature: number for number, feature in enumerate(chosen)}
        alone = replace(self, features=tuple(place[feature] for feature in self.features))  # type: ignore[type-var]  # a dataclass
        before = feature_acts[..., chosen]
        change = alone.apply(before) - before
        one_hot = torch.zeros(len(chosen) + 1, feature_acts.shape[-1])
        one_hot[range(len(chosen)), chosen] = 1  # the last row stays zero: what is decoded from it is the bias
        decoded = sae.decode(one_hot.to(feature_acts))
        rows = decoded[:-1] - decoded[-1]
        return (change @ rows.flatten(1)).view(*feature_acts.shape[:-1], *rows.shape[1:])

    def change(self, sae_state: SAEState, open_at: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the change of the SAE's input: `delta` where the edit applies, or with `carried` what the decoder makes of the features.

            change_t = decode(e')_t - decode(e)_t,    e'_s edited at every position s <= t where the edit applies

        Args:
            sae_state: the SAE, its input and its features.
            open_at: True where the features are edited.
        """
        return self.change_from(sae_state, open_at, None)[0]

    def change_from(
        self, sae_state: SAEState, open_at: Bool[Tensor, "batch pos"], state: Past | None
    ) -> tuple[Float[Tensor, "batch pos *d_in"], Past | None]:
        """Compute what `change` does at positions that continue a context.

        Args:
            sae_state: the SAE, its input and its features.
            open_at: True where the features are edited.
            state: what the call for the positions before returned; None at the start of a context.

        Returns:
            The change, and with `carried` the past of the edited features, which the decoder of an SAE with memory goes on from.

        Raises:
            ConfigError: the edit is carried on, and the past of the edited features is missing.
        """
        if not self.carried:
            return super().change(sae_state, open_at), None
        if state is None and sae_state.past is not None:
            raise ConfigError(
                "expected the state of an edit that is carried on, got None after the start of a context; give what change_from returned for "
                "the positions before"
            )
        acts = sae_state.feature_acts
        edited = torch.where(open_at.unsqueeze(-1).to(acts.device), self.apply(acts), acts)
        decoded, state = sae_state.decode_from(edited, state)
        return decoded - sae_state.sae_out, state

    def _carried_on(self) -> str:
        return ", and the decoder carries the change on to later positions" if self.carried else ""

    def as_projection(self, sae: SAE[Any]) -> Edit:
        """Return an edit that projects out the span of the decoder rows of the features.

        This removes more than setting the features to zero, because it also removes what other features write along these rows.

        Args:
            sae: the SAE to which the edit belongs.

        Raises:
            ConfigError: the SAE does not have one of the features.
            ModelError: the edit has no feature.
        """
        if not self.features:
            return super().as_projection(sae)
        check_features(self.features, sae.cfg.d_sae)
        rows = sae.W_dec[list(self.features)].detach()
        return DirectionEdit(orthonormal_rows(rows), torch.zeros(rows.shape[-1]))


def _is_affine(sae: SAE[Any]) -> bool:
    """Return whether `decode` is known to be a matrix and a bias, the same at every position."""
    if isinstance(sae, TemporalEncoder) and sae.has_memory:
        return False
    plain = sae.cfg.normalize_activations in (
        "none",
        "expected_average_only_in",
    )  # others undo what `encode` did at each position
    hooked = any(hook.fwd_hooks for hook in sae.hook_dict.values())
    return type(sae).decode.__module__.startswith(("sae_lens.", "mtsae_lens.")) and plain and not hooked


@register_edit("features")
@dataclass(frozen=True)
class FeatureEdit(_EditOfFeatures):
    """Rescale chosen features where they fire and the gate is open: `e_i -> -multiplier * e_i`.

    `multiplier=0` is zero ablation. A positive multiplier clamps the feature below zero in units of the feature's activation, which means the
    same in every SAE, unlike a fixed negative value. -1 changes nothing, and a multiplier below -1 amplifies the feature.

    Args:
        features: indices of features, in a tuple, list or tensor.
        multiplier: strength of the edit.
        gate: says where the edit applies.
        carried: whether the decoder of an SAE with memory carries the change on to later positions, where the gate may be closed.

    Raises:
        ConfigError: `features` are not integers in a tuple, list or tensor, or the multiplier is not finite.
    """

    features: tuple[int, ...]
    multiplier: float = 0.0
    gate: Gate = field(default_factory=AlwaysOpen)
    carried: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_indices(self.features))
        check_finite("multiplier", self.multiplier)

    def apply(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """Return the edited feature activations.

        Args:
            feature_acts: the feature activations.

        Raises:
            ConfigError: the SAE does not have one of the features.
        """
        check_features(self.features, feature_acts.shape[-1])
        factor = torch.ones(feature_acts.shape[-1], device=feature_acts.device, dtype=feature_acts.dtype)
        factor[list(self.features)] = -self.multiplier
        return feature_acts * factor

    def describe(self) -> str:
        """Describe what the edit does."""
        return f"{len(self.features)} features e_i become {-self.multiplier:g} e_i where they fire{self._carried_on()}"


Where = Literal["fires", "any_fires", "everywhere"]


@register_edit("clamp")
@dataclass(frozen=True)
class FeatureClamp(_EditOfFeatures):
    """Set chosen features to fixed values where the gate is open: `e_i -> values_i`.

    Args:
        features: indices of features, in a tuple, list or tensor.
        values: the value of each.
        where: `"fires"` sets only a feature that fires (Farrell et al. 2024, arXiv 2410.19278, with one negative value for all).
            `"any_fires"` sets all chosen features where at least one of them fires (DSG, Muhamed et al. 2025). `"everywhere"` sets
            them at every position; with means over a retain corpus as values, this is mean ablation.
        gate: says where the edit applies.
        carried: as in `FeatureEdit`.

    Raises:
        ConfigError: `features` are not integers in a tuple, list or tensor, or `values` are not one finite number for each.
    """

    features: tuple[int, ...]
    values: tuple[float, ...]
    where: Where = "fires"
    gate: Gate = field(default_factory=AlwaysOpen)
    carried: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", feature_indices(self.features))
        given = self.values.detach().cpu() if isinstance(self.values, Tensor) else self.values  # some devices lack float64
        values = torch.as_tensor(given, dtype=torch.float64)
        if values.shape != (len(self.features),):
            came = f"{len(values)} for" if values.ndim == 1 else f"{self.values!r} for"
            raise ConfigError(
                f"expected one value for each feature of a clamp, got {came} {len(self.features)} features; give one value to all with "
                "FeatureClamp(features, (value,) * len(features))"
            )
        check_finite("values", values)
        object.__setattr__(self, "values", tuple(values.tolist()))
        if self.where not in get_args(Where):
            raise ConfigError(f"expected where out of {', '.join(get_args(Where))}, got {self.where!r}; give one of them")

    def apply(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """Return the edited feature activations.

        Args:
            feature_acts: the feature activations.

        Raises:
            ConfigError: the SAE does not have one of the features.
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

    def describe(self) -> str:
        """Describe what the edit does."""
        return f"{len(self.features)} features are set to fixed values ({self.where.replace('_', ' ')}){self._carried_on()}"
