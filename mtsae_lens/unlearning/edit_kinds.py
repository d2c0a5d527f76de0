"""Kinds of edits that a sweep tries on chosen features. What they need besides features and multiplier comes from SELECT text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.splice.edits import DirectionEdit, Edit, FeatureClamp, FeatureEdit, Where, orthonormal_rows
from mtsae_lens.splice.gates import Gate
from mtsae_lens.unlearning.selection.directions import mean_input
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence


@runtime_checkable
class MakeEdit(Protocol):
    """Makes the edit of some features."""

    def __call__(self, features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        """Make an edit.

        Args:
            features: indices of the features.
            multiplier: the strength.
            gate: where the edit applies.
        """
        ...


Prepare = Callable[[SelectionEvidence], MakeEdit]


@dataclass(frozen=True)
class EditKind:
    """One kind of edit that a sweep tries: what it does, in words and symbols, and how it is made."""

    formula: str
    prepare: Prepare
    has_strength: bool = True
    """Whether the multiplier matters."""


EDIT_KINDS: dict[str, EditKind] = {}
"""By name; m is the multiplier, of which 0 is the weakest that removes. Every edit acts only where the gate is open."""


def register_edit_kind(name: str, formula: str, *, has_strength: bool = True) -> Callable[[Prepare], Prepare]:
    """Return a decorator that makes a kind of edit known to `mtsae unlearn --edits` under a name.

    Args:
        name: the name in settings and reports.
        formula: what the edit does, as reports show it; m is the multiplier.
        has_strength: whether the multiplier matters; if not, the edit is tried once.

    Raises:
        ConfigError: another function has the name.
    """

    def register(prepare: Prepare) -> Prepare:
        known = EDIT_KINDS.get(name)
        if known is not None and known.prepare.__qualname__ != prepare.__qualname__:  # type: ignore[attr-defined]
            raise ConfigError(f"a kind of edit named {name!r} exists already; choose another name")
        EDIT_KINDS[name] = EditKind(formula, prepare, has_strength)
        return prepare

    return register


@register_edit_kind("scale", "e -> -m e where a feature fires")
def rescale(evidence: SelectionEvidence) -> MakeEdit:
    """Rescale each feature."""

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return FeatureEdit(tuple(features), multiplier, gate)

    return make


@register_edit_kind("clamp", "e -> -m a where a feature fires; a: its mean where it fires on forget text")
def clamp(evidence: SelectionEvidence) -> MakeEdit:
    """Clamp each feature that fires, in units of the feature, after Farrell et al. 2024 (arXiv 2410.19278)."""
    return _clamp(evidence, "fires")


@register_edit_kind("clamp_all", "all e -> -m a where any of the features fires")
def clamp_all(evidence: SelectionEvidence) -> MakeEdit:
    """Clamp all features where one of them fires, after DSG (Muhamed et al. 2025, arXiv 2504.08192)."""
    return _clamp(evidence, "any_fires")


@register_edit_kind("mean", "e -> its mean over retain text, at every position", has_strength=False)
def ablate_to_mean(evidence: SelectionEvidence) -> MakeEdit:
    """Set each feature to its mean over retain text."""
    retain = torch.stack([statistics.mean for statistics in evidence.retain_statistics]).mean(dim=0)

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        del multiplier
        return _clamped(features, retain, "everywhere", gate)

    return make


@register_edit_kind("project", "h -> h - (1 + m) B^T B (h - c); B: the features' decoder rows, c: the mean of retain text")
def project(evidence: SelectionEvidence) -> MakeEdit:
    """Project the decoder rows of the features out of the activations."""
    sae = evidence.lm.sae
    center = torch.stack([mean_input(evidence.lm, table) for table in evidence.retain]).mean(dim=0)

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return DirectionEdit(orthonormal_rows(sae.W_dec[list(features)]), center, multiplier, gate)

    return make


def check_edit_kind(name: str) -> None:
    """Raise `ConfigError` for a kind that is not known."""
    if name not in EDIT_KINDS:
        raise ConfigError(f"no kind of edit {name!r}.{nearest(name, EDIT_KINDS)}")


def _clamp(evidence: SelectionEvidence, where: Where) -> MakeEdit:
    typical = evidence.forget_statistics.mean_activation

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return _clamped(features, -multiplier * typical, where, gate)

    return make


def _clamped(features: Sequence[int], values: Float[Tensor, " d_sae"], where: Where, gate: Gate) -> FeatureClamp:
    return FeatureClamp(tuple(features), tuple(values[list(features)].tolist()), where, gate)
