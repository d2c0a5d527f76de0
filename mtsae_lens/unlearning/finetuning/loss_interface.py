"""Define the interface of a loss that changes a model's weights (`UnlearningLoss`), and what it is computed from (`Step`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.errors import ConfigError
from mtsae_lens.unlearning.finetuning.batches import Batch


@dataclass(frozen=True, eq=False)
class Step:
    """What a loss is computed from: the model in training, the clean model, and one batch of each text."""

    model: AnyHookedModel
    clean: AnyHookedModel
    forget: Batch
    retain: Batch | None = None

    @property
    def retained(self) -> Batch:
        """Return the retain text.

        Raises:
            ConfigError: there is no retain text.
        """
        if self.retain is None:
            raise ConfigError("expected retain text for this loss, got none; give at least one table of it")
        return self.retain


@runtime_checkable
class UnlearningLoss(Protocol):
    """A loss that is minimized to change a model's weights. A class says which weights are trained and what the loss needs."""

    @property
    def uses_retain(self) -> bool:
        """Return whether the loss depends on retain text."""
        ...

    @property
    def negates(self) -> bool:
        """Return whether the change of the weights is subtracted instead of added, because the loss learns what should be forgotten."""
        ...

    def trained(self, model: AnyHookedModel) -> tuple[str, ...]:
        """Return the names of the parameters that are trained.

        Args:
            model: the model to train.
        """
        ...

    def value(self, step: Step) -> Float[Tensor, ""]:
        """Compute the loss of one step.

        Args:
            step: the models and the batches.

        Returns:
            A scalar.
        """
        ...


@runtime_checkable
class ChangesGradients(Protocol):
    """What a loss may have besides `UnlearningLoss`: a change of its gradients before every update.

    Plain gradient descent then follows the changed gradients, scaled together to a root mean square of 1, so that a learning rate means
    about the same as with AdamW. AdamW itself scales every entry, which would bring back what the change removes.
    """

    def change_gradients(self, step: Step, gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Change the gradients of one step.

        Args:
            step: the models and the batches that the gradients were computed from. The trained parameters require gradients.
            gradients: gradients of `value`, by parameter name.

        Returns:
            The gradients to follow, by parameter name.
        """
        ...
