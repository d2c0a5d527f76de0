"""Define the interface of an activation function (`Activation`), and the registry of activations.

The four of the package are in `mtsae_lens.sae.activations`.
"""

# ruff: noqa: B027 -- a method without a body is a step that an activation may leave out

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.entries import Entries
from mtsae_lens.upstream import TrainCoefficientConfig, TrainStepInput


@dataclass(frozen=True)
class StateTensor:
    """A tensor that an activation keeps in the SAE."""

    start: float
    """Initial value."""

    per_feature: bool = True
    """Whether its shape is `(d_sae,)`; otherwise it is a scalar."""

    learned: bool = True
    """Whether it is a parameter that the optimizer changes; otherwise it is a buffer."""

    dtype: torch.dtype | None = None
    """Dtype that it keeps even if the SAE has another one; None for the dtype of the SAE."""


@dataclass(frozen=True, eq=False)
class ActiveEntries:
    """The entries of the pre-activations that a sparse step computes with, for the losses of an activation."""

    kept: Bool[Tensor, " row"]
    """The positions that are not walls; no entry is at a wall."""
    entries: Entries
    """What `Activation.find_entries` returned."""
    hidden_pre: Float[Tensor, " entry"]
    """Their pre-activations."""
    feature_acts: Float[Tensor, " entry"]
    """Their feature activations."""
    loss_entries: Entries
    """What `Activation.find_loss_entries` returned."""
    loss_hidden_pre: Float[Tensor, " loss_entry"]
    """Their pre-activations."""


_COUNTERPARTS: dict[str, tuple[str, ...]] = {
    "find_entries": ("function", "apply", "apply_in_training", "after_training_step"),
    "entry_losses": ("losses",),
}
"""For each method of the sparse step, those of the dense step that must say the same. A class that changes one of these alone has no sparse
step, rather than one that computes something else."""


class Activation(ABC):
    """Turn pre-activations into feature activations.

    Args:
        name: the name under which it is registered.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    """Names of the settings that it reads."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def inference(self) -> str:
        """Return the name of the activation that a trained SAE is saved with."""
        return self.name

    def check(self, cfg: Any) -> None:
        """Check the settings that training and inference share.

        Args:
            cfg: an `MTSAEConfig` or `MTTrainingSAEConfig`.

        Raises:
            ConfigError: a setting does not fit the activation.
        """

    def check_training(self, cfg: Any) -> None:
        """Check the settings of training.

        Args:
            cfg: an `MTTrainingSAEConfig`.

        Raises:
            ConfigError: a setting does not fit the activation.
        """

    def state(self, cfg: Any, *, training: bool) -> Mapping[str, StateTensor]:
        """Return the tensors that it keeps in the SAE.

        Args:
            cfg: the configuration of the SAE.
            training: whether the SAE is in training.

        Returns:
            The tensors by name.
        """
        return {}

    @abstractmethod
    def function(self, cfg: Any) -> Callable[[Tensor], Tensor]:
        """Return the function that SAELens calls the SAE's `activation_fn`.

        Args:
            cfg: the configuration of the SAE.
        """

    def apply(self, sae: SAE[Any], hidden_pre: Float[Tensor, "*row d_sae"]) -> Float[Tensor, "*row d_sae"]:
        """Compute feature activations in inference.

        Args:
            sae: the SAE; `sae.activation_fn` is the result of `function`.
            hidden_pre: pre-activations `(..., d_sae)`.

        Returns:
            Feature activations of the same shape.
        """
        return sae.activation_fn(hidden_pre)

    def apply_in_training(
        self, sae: SAE[Any], hidden_pre: Float[Tensor, "*row d_sae"], kept: Bool[Tensor, "*row"]
    ) -> Float[Tensor, "*row d_sae"]:
        """Compute feature activations in training.

        Args:
            sae: the SAE in training.
            hidden_pre: pre-activations `(..., d_sae)`.
            kept: the positions that are not walls, `(...)`; at the others the result is not used.

        Returns:
            Feature activations of the same shape as `hidden_pre`.
        """
        return self.apply(sae, hidden_pre)

    def coefficients(self, cfg: Any) -> dict[str, float | TrainCoefficientConfig]:
        """Return the weights of its losses that SAELens schedules, by name.

        Args:
            cfg: the configuration of the SAE.
        """
        return {}

    def before_training_step(self, sae: SAE[Any]) -> None:
        """Move the tensors that it keeps back into their range, in place.

        Args:
            sae: the SAE in training.
        """

    def losses(
        self,
        sae: SAE[Any],
        step_input: TrainStepInput,
        feature_acts: Float[Tensor, "row d_sae"],
        hidden_pre: Float[Tensor, "row d_sae"],
        sae_out: Float[Tensor, "row d_in"],
    ) -> dict[str, Tensor]:
        """Compute its sparsity or auxiliary losses.

        Args:
            sae: the SAE in training.
            step_input: SAELens's input of a training step, with the rows of positions that are not walls.
            feature_acts: their feature activations.
            hidden_pre: their pre-activations.
            sae_out: their reconstructions.

        Returns:
            Weighted losses by name, scalars.
        """
        return {}

    @property
    def has_sparse_step(self) -> bool:
        """Whether a training step can compute with the active features alone (`find_entries` and `entry_losses`)."""

        def depth(name: str) -> int:  # of the class that defines the method; 0 for the class of this activation
            return next(depth for depth, kind in enumerate(type(self).__mro__) if name in vars(kind))

        return type(self).find_entries is not Activation.find_entries and all(
            depth(sparse) <= depth(dense) for sparse, names in _COUNTERPARTS.items() for dense in names
        )

    def find_entries(
        self, sae: SAE[Any], hidden_pre: Float[Tensor, "row d_sae"], kept: Bool[Tensor, " row"], most: int
    ) -> Entries | None:
        """Find the pre-activations on which the feature activations, or the gradient through them, depend, for a sparse step.

        Args:
            sae: the SAE in training.
            hidden_pre: pre-activations `(row, d_sae)`, without a gradient.
            kept: the positions that are not walls, `(row,)`; only they may have entries.
            most: the largest number of entries that a sparse step is worth.

        Returns:
            The entries; every feature activation elsewhere is zero. None if there are more than `most`, or if the activation has no
            sparse step.
        """
        return None

    def activate_entries(self, sae: SAE[Any], hidden_pre: Float[Tensor, " entry"], entries: Entries) -> Float[Tensor, " entry"]:
        """Compute the feature activations of the entries that `find_entries` found.

        Args:
            sae: the SAE in training.
            hidden_pre: their pre-activations, `(entry,)`.
            entries: the entries.

        Returns:
            Feature activations `(entry,)`.
        """
        return hidden_pre

    def find_loss_entries(
        self, sae: SAE[Any], step_input: TrainStepInput, hidden_pre: Float[Tensor, "row d_sae"], kept: Bool[Tensor, " row"]
    ) -> Entries | None:
        """Find the pre-activations on which its losses depend besides the active ones, such as those of dead features.

        Args:
            sae: the SAE in training.
            step_input: what SAELens gives to a training step.
            hidden_pre: pre-activations `(row, d_sae)`, without a gradient.
            kept: the positions that are not walls, `(row,)`; only they may have entries.

        Returns:
            The entries; None for no such dependence.
        """
        return None

    def entry_losses(
        self, sae: SAE[Any], step_input: TrainStepInput, active: ActiveEntries, sae_out: Float[Tensor, "row d_in"]
    ) -> dict[str, Tensor]:
        """Compute what `losses` does, from entries.

        Args:
            sae: the SAE in training.
            step_input: what SAELens gives to a training step; `sae_in` holds all rows, those of walls included.
            active: the entries, with their values.
            sae_out: the reconstructions of all rows.

        Returns:
            Weighted losses by name, scalars.
        """
        return {}

    def after_training_step(self, sae: SAE[Any], feature_acts: Float[Tensor, "*entry"]) -> dict[str, Tensor | float]:
        """Update the tensors that it keeps but that the optimizer does not learn.

        Args:
            sae: the SAE in training.
            feature_acts: the feature activations of the batch, `(row, d_sae)`; after a sparse step only those of the entries, `(entry,)`.

        Returns:
            Metrics to log, by name.
        """
        return {}

    def to_inference(self, sae: SAE[Any], state_dict: dict[str, Tensor]) -> None:
        """Change the weights of an SAE in training, in place, to those of the SAE for inference with the activation `inference`.

        Args:
            sae: the SAE in training.
            state_dict: a copy of its weights by name.
        """

    def scale_features(self, sae: SAE[Any], factors: Float[Tensor, " d_sae"]) -> None:
        """Adapt to a change of every pre-activation by a factor, so that feature activations change by the same factor, in place.

        Folding decoder norms makes such a change. Folding the scale of activations does not change pre-activations, so it needs no call.

        Args:
            sae: the SAE.
            factors: the positive factor of every feature, `(d_sae,)`.

        Raises:
            NotImplementedError: different features would be active.
        """

    def export(self, sae: SAE[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what `mtsae_lens.export.standalone` needs, for an MTSAE or a SAELens SAE of the same activation.

        Args:
            sae: an SAE for inference.

        Returns:
            Tensors by name, and settings.
        """
        return {}, {"activation": self.name}

    @abstractmethod
    def describe(self, cfg: Any) -> str:
        """Describe in a few words which features are active at a position, for the card of a published SAE.

        Args:
            cfg: the configuration of the SAE.
        """


def state_tensor(sae: SAE[Any], name: str) -> Tensor:
    """Return a tensor that an activation keeps in an SAE (`Activation.state`)."""
    tensor = getattr(sae, name)
    assert isinstance(tensor, Tensor)
    return tensor


ACTIVATIONS: dict[str, Activation] = {}


def register_activation(name: str) -> Callable[[type[Activation]], type[Activation]]:
    """Make an activation known under a name; a decorator of a class.

    Args:
        name: the value of `MTSAEConfig.activation`.

    Returns:
        A function that registers a class and returns it.

    Raises:
        ConfigError: another class has this name.
    """

    def register(activation: type[Activation]) -> type[Activation]:
        known = type(ACTIVATIONS[name]) if name in ACTIVATIONS else activation
        if (known.__module__, known.__qualname__) != (activation.__module__, activation.__qualname__):
            raise ConfigError(
                f"expected a new name, got {name!r}, which {known.__module__}.{known.__qualname__} has; register it under another name"
            )
        ACTIVATIONS[name] = activation(name)
        return activation

    return register
