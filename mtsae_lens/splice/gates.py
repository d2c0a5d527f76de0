"""Gates: at which positions an edit applies. All but `SequenceRateGate` are causal: the answer at t depends on positions <= t alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.errors import ConfigError


def _indices(features: Tensor) -> Tensor:
    indices = torch.as_tensor(features)
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise ConfigError(f"the features of a gate must be indices, such as torch.tensor([3, 14]); got {features!r}")
    if len(indices) and int(indices.min()) < 0:
        raise ConfigError(f"the features of a gate must be indices from 0 on; got {int(indices.min())}")
    return indices


def _fires(features: Tensor, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Bool[Tensor, "batch pos n"]:
    """Where each of the features fires; refuse a feature that the SAE does not have."""
    if len(features) and int(features.max()) >= feature_acts.shape[-1]:
        raise ConfigError(
            f"the features of a gate must lie between 0 and {feature_acts.shape[-1] - 1}; got up to {int(features.max())}"
        )
    return feature_acts[..., features.to(feature_acts.device)] > 0


def _check_threshold(threshold: float) -> None:
    if math.isnan(threshold):  # infinity is a gate that never opens
        raise ConfigError("the threshold of a gate must be a number; got NaN")


def _count(features: Tensor) -> str:
    return f"{len(features)} feature{'s' * (len(features) != 1)}"


@runtime_checkable
class Gate(Protocol):
    """Says where an edit applies, from the feature activations. A class says `causal: bool`; only a causal gate can generate text."""

    @property
    def causal(self) -> bool:
        """Whether the answer at a position never depends on later ones."""
        ...

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """How much speaks for opening, at every position of whole contexts: higher is more; the gate is its threshold."""
        ...

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """True where the edit applies, and the state after the last position, from which the next positions go on.

        Args:
            feature_acts: of consecutive positions.
            state: what the call before gave back; None at the start of a context.
        """
        ...


@dataclass(frozen=True)
class AlwaysOpen:
    """Every position."""

    causal = True

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """The same everywhere: it tells nothing apart."""
        return torch.zeros(feature_acts.shape[:2], device=feature_acts.device)

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """True everywhere; there is no state."""
        return torch.ones(feature_acts.shape[:2], dtype=torch.bool, device=feature_acts.device), None


@dataclass(frozen=True)
class FeatureActiveGate:
    """Open at a position where at least one of these features fires."""

    features: Tensor  # (n,) indices

    causal = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _indices(self.features))

    def __repr__(self) -> str:
        return f"FeatureActiveGate({_count(self.features)})"

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """How many of them fire."""
        return _fires(self.features, feature_acts).sum(dim=-1).to(feature_acts.dtype)

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """True where one fires; there is no state."""
        return self.score(feature_acts) > 0, None


@dataclass(frozen=True)
class SequenceRateGate:
    """Open in the whole of a context if at least one of these features fires at more than a share `threshold` of its positions.

    The dynamic gate of DSG (Muhamed et al. 2025). It reads the whole context before it answers for the first position: not causal.
    Positions without any feature (special tokens, padding) do not count.
    """

    features: Tensor  # (n,) indices
    threshold: float

    causal = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _indices(self.features))
        _check_threshold(self.threshold)

    def __repr__(self) -> str:
        return f"SequenceRateGate({_count(self.features)}, threshold={self.threshold:.4g})"

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """The share, the same at every position of a context."""
        fires = _fires(self.features, feature_acts).any(dim=-1)
        n_positions = (feature_acts > 0).any(dim=-1).sum(dim=-1, keepdim=True).clamp(min=1)
        return (fires.sum(dim=-1, keepdim=True) / n_positions).expand(feature_acts.shape[:2])

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """True everywhere in a context whose share exceeds the threshold; there is no state."""
        return self.score(feature_acts) > self.threshold, None


@dataclass(frozen=True)
class RunningEvidenceGate:
    """Open where recent evidence that this is the text to forget exceeds a threshold.

        evidence_t = decay * evidence_{t-1} + sum_i weight_i * [feature i fires at t],     evidence before the context = 0

    With `weight_i` the log ratio of firing rates this is a leaky sequential likelihood-ratio test (Wald 1945): it needs a few
    tokens to open and forgets what is long past.
    """

    features: Tensor  # (n,) indices
    weights: Tensor  # (n,) nats
    decay: float
    threshold: float

    causal = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", _indices(self.features))
        object.__setattr__(self, "weights", torch.as_tensor(self.weights).float())
        if self.weights.shape != self.features.shape:
            raise ConfigError(
                f"the gate needs a weight for each feature; got {self.weights.numel()} for {len(self.features)} features"
            )
        if not 0 <= self.decay < 1:
            raise ConfigError(f"the decay of a gate must be at least 0 and less than 1; got {self.decay}")
        _check_threshold(self.threshold)
        if not bool(self.weights.isfinite().all()):
            raise ConfigError("the weights of a gate must be finite numbers; got NaN or infinity")

    def __repr__(self) -> str:
        return f"RunningEvidenceGate({_count(self.features)}, decay={self.decay:.4g}, threshold={self.threshold:.4g})"

    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """The evidence."""
        return self.evidence(feature_acts)

    def evidence(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], before: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos"]:
        """The running sum, in nats, going on from the evidence `before` these positions."""
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
        """True where the evidence exceeds the threshold; the state is the last evidence."""
        evidence = self.evidence(feature_acts, state)
        return evidence > self.threshold, evidence[:, -1]
