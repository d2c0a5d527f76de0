"""Gates decide at which positions an edit applies.

All gates but `SequenceRateGate` are causal: the decision at position t depends only on positions <= t.

`register_gate` makes a gate known under a name, from this package or from outside; `docs/how-to/own-gate.md` shows one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.serialization import Serializable, register


class Gate(Serializable, ABC):
    """Base of all gates. A gate decides from feature activations where an edit applies.

    A gate is a frozen dataclass. Its fields are what is saved in `edit.json`, if the class is registered (`register_gate`).
    """

    causal: ClassVar[bool] = True
    """Whether the decision at a position never depends on later positions. Only a causal gate can be used in generation."""

    def observe(
        self, sae_in: Float[Tensor, "batch pos *d_in"], feature_acts: Float[Tensor, "batch pos d_sae"]
    ) -> Float[Tensor, "batch pos d"]:
        """Return what `score` and `open_from` read; by default, the feature activations.

        Args:
            sae_in: the SAE's input, zero at masked positions.
            feature_acts: the feature activations.
        """
        return feature_acts

    @abstractmethod
    def score(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos"]:
        """Score every position of whole contexts: the higher the score, the more evidence for opening.

        Args:
            feature_acts: feature activations of whole contexts.

        Returns:
            One score per position.
        """

    @abstractmethod
    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """Decide at which of some consecutive positions the edit applies.

        Args:
            feature_acts: feature activations of the positions.
            state: what the call for the positions before returned; None at the start of a context.

        Returns:
            True where the edit applies, and the state after the last position; None if the gate needs no state.
        """

    def describe(self) -> str:
        """Describe in a few words where the gate is open, as the end of a sentence in cards and reports."""
        return f"where a {type(self).__name__} is open"


GATES: dict[str, type[Gate]] = {}
"""Registered gates by their `kind` in a file."""

GateClass = TypeVar("GateClass", bound=type[Gate])


def register_gate(name: str) -> Callable[[GateClass], GateClass]:
    """Return a decorator that makes a gate known under a name, so that `save_edit` and `load_edit` handle it.

    Args:
        name: the `kind` of the gate in `edit.json`.

    Raises:
        ConfigError: the class does not inherit from `Gate`, or another gate has this name.
    """
    return register(GATES, Gate, name)  # type: ignore[return-value, type-abstract]


class ThresholdGate(Gate):
    """Base of the gates that are open where their score exceeds a field `threshold`."""

    threshold: float

    def with_threshold(self, threshold: float) -> Self:
        """Return the same gate with another threshold.

        Args:
            threshold: the new threshold.
        """
        return replace(self, threshold=threshold)  # type: ignore[type-var]  # gates are dataclasses


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


def gate_indices(features: Tensor) -> Tensor:
    """Return feature indices as a tensor.

    Args:
        features: indices, in a tensor or list.

    Raises:
        ConfigError: they are not indices.
    """
    indices = torch.as_tensor(features)
    if indices.ndim != 1 or indices.is_floating_point() or indices.dtype == torch.bool:
        raise ConfigError(f"expected feature indices for a gate, got {features!r}; give such as torch.tensor([3, 14])")
    if len(indices) and int(indices.min()) < 0:
        raise ConfigError(f"expected feature indices of at least 0 for a gate, got {int(indices.min())}; change them")
    return indices


def _fires(features: Tensor, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Bool[Tensor, "batch pos n"]:
    """Return where each of the features fires, after a check that the SAE has them."""
    check_width(features, feature_acts)
    return feature_acts[..., features.to(feature_acts.device)] > 0


def check_width(features: Tensor, feature_acts: Float[Tensor, "batch pos d_sae"]) -> None:
    """Check that the SAE has the features of a gate.

    Args:
        features: indices of features.
        feature_acts: the SAE's feature activations.

    Raises:
        ConfigError: a feature does not exist.
    """
    if len(features) and int(features.max()) >= feature_acts.shape[-1]:
        raise ConfigError(
            f"expected features of a gate from 0 to {feature_acts.shape[-1] - 1}, got up to {int(features.max())}; give indices of this "
            "SAE's features"
        )


def check_threshold(threshold: float) -> None:
    """Check that a threshold is a number.

    Args:
        threshold: the threshold.

    Raises:
        ConfigError: it is NaN.
    """
    if math.isnan(threshold):  # infinity is a gate that never opens
        raise ConfigError("expected a number as threshold of a gate, got NaN; change it")


def count_of(features: Tensor) -> str:
    """Return a number of features in words.

    Args:
        features: indices of features.
    """
    return f"{len(features)} feature{'s' * (len(features) != 1)}"
