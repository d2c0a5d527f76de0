"""Define the interface of a gate (`Gate`), which decides at which positions an edit applies, and the registry of gates.

`mtsae_lens.splice.gates` has gates that count firing features, and `mtsae_lens.splice.evidence_gates` those that accumulate evidence.
`register_gate` makes a gate known under a name, from this package or from outside; `docs/how-to/own-gate.md` shows one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import ClassVar, Self, TypeVar

import torch
from jaxtyping import Bool, Float
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
            sae_in: the SAE's input, zero at masked positions; of a transcoder, what is at the hook that it decodes.
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

    lowest_threshold: ClassVar[float] = -math.inf
    """The lowest threshold that text to keep may set. Below it, the score itself speaks against opening."""

    def with_threshold(self, threshold: float) -> Self:
        """Return the same gate with another threshold.

        Args:
            threshold: the new threshold.
        """
        return replace(self, threshold=threshold)  # type: ignore[type-var]  # gates are dataclasses


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
