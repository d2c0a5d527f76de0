"""Define the kinds of edits that a sweep tries on chosen features. Everything besides features and multiplier is computed from SELECT
text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import ConfigError, ModelError, nearest
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit, Where
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.unlearning.selection.directions import mean_input
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence


@runtime_checkable
class MakeEdit(Protocol):
    """A function that makes the edit of some features."""

    def __call__(self, features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        """Make an edit.

        Args:
            features: indices of the features.
            multiplier: strength of the edit.
            gate: says at which positions the edit applies.
        """
        ...


Prepare = Callable[[SelectionEvidence], MakeEdit]


@dataclass(frozen=True)
class EditKind:
    """One kind of edit that a sweep tries.

    Args:
        formula: what the edit does, as reports show it.
        prepare: computes from SELECT text what the edit needs, and returns the function that makes it.
        has_strength: whether the multiplier has an effect.
        carried: whether the decoder of an SAE with memory carries the edit on; scores then estimate the effect of such edits.
    """

    formula: str
    prepare: Prepare
    has_strength: bool = True
    carried: bool = False


EDIT_KINDS: dict[str, EditKind] = {}
"""Kinds of edit by name. `m` is the multiplier; 0 is the weakest edit that removes a feature. Every edit acts only where the gate is
open.
"""


def register_edit_kind(
    name: str, formula: str, *, has_strength: bool = True, carried: bool = False
) -> Callable[[Prepare], Prepare]:
    """Return a decorator that makes a kind of edit known to `mtsae unlearn --edits` under a name.

    Args:
        name: the name in settings and reports.
        formula: what the edit does, as reports show it; m is the multiplier.
        has_strength: whether the multiplier has an effect; if not, the edit is tried once.
        carried: whether the decoder of an SAE with memory carries the edit on.

    Returns:
        A decorator for a function that takes the evidence and returns a `MakeEdit`.

    Raises:
        ConfigError: another function has this name.
    """

    def register(prepare: Prepare) -> Prepare:
        known = EDIT_KINDS.get(name)
        if known is not None and known.prepare.__qualname__ != prepare.__qualname__:  # type: ignore[attr-defined]
            raise ConfigError(
                f"expected a new name for a kind of edit, got {name!r}, which exists already; choose another name"
            )
        EDIT_KINDS[name] = EditKind(formula, prepare, has_strength, carried)
        return prepare

    return register


@register_edit_kind("scale", "e -> -m e where a feature fires")
def rescale(evidence: SelectionEvidence) -> MakeEdit:
    """Rescale each feature.

    Args:
        evidence: SELECT text of the corpora.
    """

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return FeatureEdit(tuple(features), multiplier, gate)

    return make


@register_edit_kind(
    "scale_carried", "e -> -m e where a feature fires, and the decoder's memory carries the change on", carried=True
)
def rescale_carried(evidence: SelectionEvidence) -> MakeEdit:
    """Rescale each feature, with a change that the decoder of an SAE with memory carries on to later positions.

    Args:
        evidence: SELECT text of the corpora.

    Raises:
        ModelError: the decoder has no memory, so this would be `scale`.
    """
    sae = evidence.lm.sae
    if not (isinstance(sae, TemporalEncoder) and sae.has_memory):
        raise ModelError(
            f"expected an SAE with memory for edits of kind 'scale_carried', got architecture {sae.cfg.architecture()!r} without it; train one "
            "with --set memory=predictive, or give --edits scale"
        )

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return FeatureEdit(tuple(features), multiplier, gate, carried=True)

    return make


@register_edit_kind("clamp", "e -> -m a where a feature fires; a: its mean where it fires on forget text")
def clamp(evidence: SelectionEvidence) -> MakeEdit:
    """Clamp each feature where it fires, in units of its mean activation, after Farrell et al. 2024 (arXiv 2410.19278).

    Args:
        evidence: SELECT text of the corpora.
    """
    return _clamp(evidence, "fires")


@register_edit_kind("clamp_all", "all e -> -m a where any of the features fires")
def clamp_all(evidence: SelectionEvidence) -> MakeEdit:
    """Clamp all features wherever one of them fires, after DSG (Muhamed et al. 2025, arXiv 2504.08192).

    Args:
        evidence: SELECT text of the corpora.
    """
    return _clamp(evidence, "any_fires")


@register_edit_kind("mean", "e -> its mean over retain text, at every position", has_strength=False)
def ablate_to_mean(evidence: SelectionEvidence) -> MakeEdit:
    """Set each feature to its mean over retain text.

    Args:
        evidence: SELECT text of the corpora.
    """
    retain = torch.stack([statistics.mean for statistics in evidence.retain_statistics]).mean(dim=0)

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        del multiplier
        return _clamped(features, retain, "everywhere", gate)

    return make


@register_edit_kind("project", "h -> h - (1 + m) B^T B (h - c); B: the features' decoder rows, c: the mean of retain text")
def project(evidence: SelectionEvidence) -> MakeEdit:
    """Project the decoder rows of the features out of the activations.

    Args:
        evidence: SELECT text of the corpora.
    """
    sae = evidence.lm.sae
    center = torch.stack([mean_input(evidence.lm, table) for table in evidence.retain]).mean(dim=0)

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return DirectionEdit(orthonormal_rows(sae.W_dec[list(features)]), center, multiplier, gate)

    return make


def check_edit_kind(name: str) -> None:
    """Check that a kind of edit exists.

    Args:
        name: a name in `EDIT_KINDS`.

    Raises:
        ConfigError: there is no such kind.
    """
    if name not in EDIT_KINDS:
        raise ConfigError(f"expected a known kind of edit, got {name!r}.{nearest(name, EDIT_KINDS)}")


def _clamp(evidence: SelectionEvidence, where: Where) -> MakeEdit:
    typical = evidence.forget_statistics.mean_activation

    def make(features: Sequence[int], *, multiplier: float, gate: Gate) -> Edit:
        return _clamped(features, -multiplier * typical, where, gate)

    return make


def _clamped(features: Sequence[int], values: Float[Tensor, " d_sae"], where: Where, gate: Gate) -> FeatureClamp:
    return FeatureClamp(tuple(features), tuple(values[list(features)].tolist()), where, gate)
