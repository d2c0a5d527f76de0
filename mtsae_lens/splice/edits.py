"""Edits of features inside a running model, with the SAE's error term kept:

    h' = h + decode(e') - decode(e)

What the SAE does not explain stays as it was, so an edit of nothing is the identity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.gates import AlwaysOpen, Gate


@dataclass(frozen=True)
class FeatureEdit:
    """Where a chosen feature fires and the gate is open, `e_i -> -multiplier * e_i`.

    `multiplier=0` is zero ablation; a positive one clamps the feature below zero in units of its own activation, which means the same
    in every SAE (a fixed negative value would not).
    """

    features: tuple[int, ...]
    multiplier: float = 0.0
    gate: Gate = field(default_factory=AlwaysOpen)

    def apply(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], open_at: Bool[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_sae"]:
        """The edited activations.

        Raises:
            ConfigError: a feature that the SAE does not have.
        """
        d_sae = feature_acts.shape[-1]
        if any(not 0 <= feature < d_sae for feature in self.features):
            raise ConfigError(f"features must lie between 0 and {d_sae - 1}; got {min(self.features)} to {max(self.features)}")
        factor = torch.ones(feature_acts.shape[-1], device=feature_acts.device, dtype=feature_acts.dtype)
        factor[list(self.features)] = -self.multiplier
        return torch.where(open_at.unsqueeze(-1), feature_acts * factor, feature_acts)


def open_positions(
    feature_acts: Float[Tensor, "batch pos d_sae"], edits: Sequence[FeatureEdit]
) -> list[Bool[Tensor, "batch pos"]]:
    """Where each edit applies. Edits often share a gate, and a gate runs through the positions one by one: each is asked once."""
    gates = {id(edit.gate): edit.gate for edit in edits}
    opened = {key: gate.open_from(feature_acts, None)[0] for key, gate in gates.items()}
    return [opened[id(edit.gate)] for edit in edits]


@dataclass(frozen=True)
class Splice:
    """An SAE at its hook in a model.

    >>> splice = Splice(sae)                                                                   # doctest: +SKIP
    >>> with model.hooks(fwd_hooks=[splice.hook(FeatureEdit((3, 14), multiplier=2.0))]):       # doctest: +SKIP
    ...     logits = model(tokens)
    """

    sae: SAE[Any]

    def __post_init__(self) -> None:
        if self.sae.cfg.metadata.hook_name is None:
            raise ConfigError("the SAE does not say which hook it belongs to (metadata.hook_name)")

    @property
    def hook_name(self) -> str:
        """Name of the SAE's hook."""
        return self.sae.cfg.metadata.hook_name  # type: ignore[return-value]

    def as_sae_input(self, h: Tensor) -> Tensor:
        """Activations at the hook as the SAE takes them: heads flattened, or the SAE's own head."""
        head = self.sae.cfg.metadata.hook_head_index
        if head is not None:
            return h[:, :, head]
        return h.flatten(2) if h.ndim == 4 and self.sae.cfg.reshape_activations != "hook_z" else h

    def feature_acts(self, h: Tensor, masked: Bool[Tensor, "batch pos"] | None = None) -> Float[Tensor, "batch pos d_sae"]:
        """Features of activations at the hook. Masked positions (special tokens) have none and, as in training, are walls."""
        sae_in = self.as_sae_input(h)
        if masked is None:
            return self.sae.encode(sae_in)
        sae_in = sae_in.masked_fill(masked.view(*masked.shape, *(1,) * (sae_in.ndim - 2)), 0.0)
        return self.sae.encode(sae_in).masked_fill(masked.unsqueeze(-1), 0.0)

    def edited(self, h: Tensor, edit: FeatureEdit, masked: Bool[Tensor, "batch pos"] | None = None) -> Tensor:
        """`h` with the edit applied; masked positions are left alone."""
        feature_acts = self.feature_acts(h, masked)
        return self.edited_from_features(h, feature_acts, [edit], open_positions(feature_acts, [edit]))[0]

    def edited_from_features(
        self, h: Tensor, feature_acts: Tensor, edits: Sequence[FeatureEdit], opened: Sequence[Bool[Tensor, "batch pos"]]
    ) -> list[Tensor]:
        """`edited` for several edits of the same activations, which are encoded once; `opened` comes from `open_positions`."""
        clean = self.sae.decode(feature_acts)
        return [
            self._add(h, self.sae.decode(edit.apply(feature_acts, open_at)) - clean)
            for edit, open_at in zip(edits, opened, strict=True)
        ]

    def _add(self, h: Tensor, delta: Tensor) -> Tensor:
        head = self.sae.cfg.metadata.hook_head_index
        if head is None:
            return h + delta.view_as(h)
        h = h.clone()
        h[:, :, head] += delta
        return h

    def hook(self, edit: FeatureEdit, masked: Bool[Tensor, "batch pos"] | None = None) -> tuple[str, Any]:
        """`(name, function)` as TransformerLens takes hooks."""
        return self.hook_name, lambda h, hook: self.edited(h, edit, masked)
