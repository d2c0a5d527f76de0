"""Gates that need no more than a count of the features that fire: everywhere, where a feature fires, or after enough firing.

All gates but `SequenceRateGate` are causal: the decision at position t depends only on positions <= t.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.gate_interface import (
    Gate,
    ThresholdGate,
    check_threshold,
    check_width,
    count_of,
    gate_indices,
    register_gate,
)


@register_gate("always")
@dataclass(frozen=True)
class AlwaysOpen(Gate):
    """A gate that is open at every position."""

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """Return 0 everywhere, because this gate does not distinguish positions.

        Args:
            feature_acts: feature activations of whole contexts.
        """
        return torch.zeros(feature_acts.shape[:2], device=feature_acts.device)

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Return True everywhere; there is no state.

        Args:
            feature_acts: feature activations of the positions.
            state: not used.
        """
        return torch.ones(feature_acts.shape[:2], dtype=torch.bool, device=feature_acts.device), None

    def describe(self) -> str:
        """Describe where the gate is open."""
        return "everywhere except at special tokens and at the first token"


@register_gate("feature_active")
@dataclass(frozen=True)
class FeatureActiveGate(Gate):
    """A gate that is open where at least one of its features fires.

    Args:
        features: indices of features.

    Raises:
        ConfigError: `features` are not indices.
    """

    features: Int[Tensor, " n"]

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", gate_indices(self.features))

    def __repr__(self) -> str:
        return f"FeatureActiveGate({count_of(self.features)})"

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """Count the features of the gate that fire at each position.

        Args:
            feature_acts: feature activations of whole contexts.
        """
        return _fires(self.features, feature_acts).sum(dim=-1).to(feature_acts.dtype)

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Return True where one of the features fires; there is no state.

        Args:
            feature_acts: feature activations of the positions.
            state: not used.
        """
        return self.score(feature_acts) > 0, None

    def describe(self) -> str:
        """Describe where the gate is open."""
        return f"where one of {len(self.features)} features fires"


@register_gate("sequence_rate")
@dataclass(frozen=True)
class SequenceRateGate(ThresholdGate):
    """A gate that is open in a whole context if one of its features fires at more than a share `threshold` of the positions.

    This is the dynamic gate of DSG (Muhamed et al. 2025, arXiv 2504.08192). It reads the whole context before it decides for the first
    position, so it is not causal. Positions without any active feature (special tokens, padding) are not counted.

    Args:
        features: indices of features.
        threshold: share of positions, from 0 to 1.

    Raises:
        ConfigError: `features` are not indices, or the threshold is NaN.
    """

    features: Int[Tensor, " n"]
    threshold: float

    causal = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", gate_indices(self.features))
        check_threshold(self.threshold)

    def __repr__(self) -> str:
        return f"SequenceRateGate({count_of(self.features)}, threshold={self.threshold:.4g})"

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """Compute the share of positions where one of the features fires, which is the same at every position of a context.

        Args:
            feature_acts: feature activations of whole contexts.
        """
        fires = _fires(self.features, feature_acts).any(dim=-1)
        n_positions = (feature_acts > 0).any(dim=-1).sum(dim=-1, keepdim=True).clamp(min=1)
        return (fires.sum(dim=-1, keepdim=True) / n_positions).expand(feature_acts.shape[:2])

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Return True everywhere in a context whose share exceeds the threshold; there is no state.

        Args:
            feature_acts: feature activations of whole contexts.
            state: not used.
        """
        return self.score(feature_acts) > self.threshold, None

    def describe(self) -> str:
        """Describe where the gate is open."""
        return (
            f"in contexts where one of {len(self.features)} features fires at more than {self.threshold:.4g} of the positions"
        )


@register_gate("running_evidence")
@dataclass(frozen=True)
class RunningEvidenceGate(ThresholdGate):
    """A gate that is open where recent evidence for the forget text exceeds a threshold.

        evidence_t = decay * evidence_{t-1} + sum_i weight_i * [feature i fires at t],   evidence before the context = 0

    If `weight_i` is the log ratio of firing rates, this is a leaky sequential likelihood-ratio test (Wald 1945): it needs a few tokens
    to open, and evidence from the distant past decays.

    Args:
        features: indices of features.
        weights: evidence of each feature, in nats.
        decay: factor per token on earlier evidence; at least 0 and less than 1.
        threshold: evidence above which the gate is open, in nats.

    Raises:
        ConfigError: `features` are not indices, `weights` are not one finite number for each, or decay or threshold are out of range.
    """

    features: Int[Tensor, " n"]
    weights: Float[Tensor, " n"]
    decay: float
    threshold: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", gate_indices(self.features))
        object.__setattr__(self, "weights", torch.as_tensor(self.weights).float())
        if self.weights.shape != self.features.shape:
            raise ConfigError(
                f"expected one weight for each feature of a gate, got {self.weights.numel()} for {len(self.features)} features; give one each"
            )
        if not 0 <= self.decay < 1:
            raise ConfigError(f"expected a decay of at least 0 and less than 1, got {self.decay}; change it")
        check_threshold(self.threshold)
        if not bool(self.weights.isfinite().all()):
            raise ConfigError("expected finite weights of a gate, got NaN or infinity; give finite numbers")

    def __repr__(self) -> str:
        return f"RunningEvidenceGate({count_of(self.features)}, decay={self.decay:.4g}, threshold={self.threshold:.4g})"

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """Compute the evidence.

        Args:
            feature_acts: feature activations of whole contexts.
        """
        return self.evidence(feature_acts)

    def evidence(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], before: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos"]:
        """Compute the running sum of the evidence.

        Args:
            feature_acts: feature activations of consecutive positions.
            before: evidence at the position before them; None at the start of a context.

        Returns:
            The evidence at each position, in nats.
        """
        step = _fires(self.features, feature_acts).float() @ self.weights.to(feature_acts.device)
        evidence = torch.zeros_like(step)
        running = torch.zeros_like(step[:, 0]) if before is None else before
        for position in range(step.shape[1]):
            running = self.decay * running + step[:, position]
            evidence[:, position] = running
        return evidence

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Return True where the evidence exceeds the threshold; the state is the last evidence.

        Args:
            feature_acts: feature activations of the positions.
            state: evidence at the position before them; None at the start of a context.
        """
        evidence = self.evidence(feature_acts, state)
        return evidence > self.threshold, evidence[:, -1]

    def describe(self) -> str:
        """Describe where the gate is open."""
        about = f"{len(self.features)} features (decay {self.decay:g})"
        return f"where the running evidence of {about} exceeds {self.threshold:.4g} nats"


def _fires(features: Tensor, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Bool[Tensor, "batch pos n"]:
    """Return where each of the features fires, after a check that the SAE has them."""
    check_width(features, feature_acts)
    return feature_acts[..., features.to(feature_acts.device)] > 0
