"""Kinds of edits that a sweep tries on chosen features. What they need besides features and strength comes from SELECT text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
        """At this strength, behind this gate."""
        ...


@dataclass(frozen=True)
class EditKind:
    """One kind of edit: what it does, in words and symbols, and how it is made."""

    formula: str
    prepare: Callable[[SelectionEvidence], MakeEdit]
    has_strength: bool = True
    """Whether the multiplier matters."""


def _scale(evidence: SelectionEvidence) -> MakeEdit:
    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return FeatureEdit(tuple(features), multiplier, gate)

    return make


def _clamp(evidence: SelectionEvidence, where: Where) -> MakeEdit:
    typical = evidence.forget_statistics.mean_activation

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return _clamped(features, -multiplier * typical, where, gate)

    return make


def _mean(evidence: SelectionEvidence) -> MakeEdit:
    retain = torch.stack([statistics.mean for statistics in evidence.retain_statistics]).mean(dim=0)

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        del multiplier
        return _clamped(features, retain, "everywhere", gate)

    return make


def _clamped(features: Sequence[int], values: Float[Tensor, " d_sae"], where: Where, gate: Gate) -> FeatureClamp:
    return FeatureClamp(tuple(features), tuple(values[list(features)].tolist()), where, gate)


def _project(evidence: SelectionEvidence) -> MakeEdit:
    sae = evidence.lm.sae
    center = torch.stack([mean_input(evidence.lm, table) for table in evidence.retain]).mean(dim=0)

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return DirectionEdit(orthonormal_rows(sae.W_dec[list(features)]), center, multiplier, gate)

    return make


EDIT_KINDS: dict[str, EditKind] = {
    "scale": EditKind("e -> -m e where a feature fires", _scale),
    "clamp": EditKind(
        "e -> -m a where a feature fires; a: its mean where it fires on forget text", partial(_clamp, where="fires")
    ),
    "clamp_all": EditKind("all e -> -m a where any of the features fires", partial(_clamp, where="any_fires")),
    "mean": EditKind("e -> its mean over retain text, at every position", _mean, has_strength=False),
    "project": EditKind("h -> h - (1 + m) B^T B (h - c); B: the features' decoder rows, c: the mean of retain text", _project),
}
"""By name; m is the multiplier, of which 0 is the weakest that removes. Every edit acts only where the gate is open. `clamp`: after Farrell et
al. 2024 (arXiv 2410.19278), in units of each feature; `clamp_all`: after DSG (Muhamed et al. 2025, arXiv 2504.08192)."""


def check_edit_kind(name: str) -> None:
    """Raise `ConfigError` for a kind that is not known."""
    if name not in EDIT_KINDS:
        raise ConfigError(f"no kind of edit {name!r}.{nearest(name, EDIT_KINDS)}")
