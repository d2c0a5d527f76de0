"""Gates: at which positions an edit applies. All are causal: the answer at position t depends on positions <= t alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Gate(Protocol):
    """Says where an edit applies, from the feature activations."""

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

    def open_from(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], state: Tensor | None
    ) -> tuple[Bool[Tensor, "batch pos"], Tensor | None]:
        """True everywhere; there is no state."""
        return torch.ones(feature_acts.shape[:2], dtype=torch.bool, device=feature_acts.device), None


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

    def evidence(
        self, feature_acts: Float[Tensor, "batch pos d_sae"], before: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch pos"]:
        """The running sum, in nats, going on from the evidence `before` these positions."""
        device = feature_acts.device
        step = (feature_acts[..., self.features.to(device)] > 0).float() @ self.weights.to(device)
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
