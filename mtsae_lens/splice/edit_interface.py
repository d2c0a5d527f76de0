"""Define the interface of an edit (`Edit`), and the registry of edits.

Those of features are in `mtsae_lens.splice.edits`, those of directions in `mtsae_lens.splice.direction_edits`, and those of the SAE's error in
`mtsae_lens.splice.error_edits`. `register_edit` makes an edit known under a name, from this package or from outside;
`docs/how-to/own-edit.md` shows one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.masks import zero_rows
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.sae_state import SAEState
from mtsae_lens.splice.serialization import Serializable, register

SUPPRESSION = "An edit at a hook is suppression, not deletion: without the hook the model behaves as before."
"""What every report of an edit says."""


class Edit(Serializable, ABC):
    """Base of all edits. An edit changes activations wherever its gate is open.

    An edit is a frozen dataclass with a field `gate`. Its fields are what is saved in `edit.json`, if the class is registered
    (`register_edit`).
    """

    gate: Gate
    """Where the edit applies."""

    stored_elsewhere: ClassVar[frozenset[str]] = frozenset({"gate"})

    @abstractmethod
    def delta(self, sae_state: SAEState) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the change that is added to the SAE's input wherever the gate is open.

        Args:
            sae_state: the SAE, its input and its features.

        Returns:
            The change, in the shape of `sae_state.target`; the caller drops it where the gate is closed.
        """

    def change(self, sae_state: SAEState, open_at: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos *d_in"]:
        """Compute the change of the SAE's input: `delta` where the edit applies, and zero elsewhere.

        Args:
            sae_state: the SAE, its input and its features.
            open_at: True where the edit applies.

        Returns:
            The change, in the shape of `sae_state.target`.
        """
        return zero_rows(self.delta(sae_state), ~open_at)

    def change_from(
        self, sae_state: SAEState, open_at: Bool[Tensor, "batch pos"], state: Any
    ) -> tuple[Float[Tensor, "batch pos *d_in"], Any]:
        """Compute the change of the SAE's input at positions that continue a context, as in generation.

        Args:
            sae_state: the SAE, its input and its features.
            open_at: True where the edit applies.
            state: what the call for the positions before returned; None at the start of a context.

        Returns:
            The change, and the state after the last position; by default that of `change`, and None.
        """
        return self.change(sae_state, open_at), None

    def describe(self) -> str:
        """Describe what the edit does, as the beginning of a sentence in cards and reports; the description of the gate follows."""
        return f"a {type(self).__name__} is applied"

    def as_projection(self, sae: SAE[Any]) -> Edit:
        """Return the always-open `DirectionEdit` that `mtsae export --form projected` writes into a model's weights.

        Args:
            sae: the SAE to which the edit belongs.

        Raises:
            ModelError: the edit has no directions, which is the default.
        """
        raise ModelError(
            f"expected an edit of at least one feature, or of directions, to project out, got a {type(self).__name__} without; export it in "
            "another form"
        )


EDITS: dict[str, type[Edit]] = {}
"""Registered edits by their `kind` in a file."""


EditClass = TypeVar("EditClass", bound=type[Edit])


def register_edit(name: str) -> Callable[[EditClass], EditClass]:
    """Return a decorator that makes an edit known under a name, so that `save_edit` and `load_edit` handle it.

    Args:
        name: the `kind` of the edit in `edit.json`.

    Raises:
        ConfigError: the class does not inherit from `Edit`, or another edit has this name.
    """
    return register(EDITS, Edit, name)  # type: ignore[return-value, type-abstract]


def check_finite(name: str, value: Any) -> None:
    """Check that a field of an edit has finite numbers.

    Args:
        name: the name of the field.
        value: a number, or a tensor.

    Raises:
        ConfigError: a number is NaN or infinite.
    """
    numbers = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    if not bool(numbers.isfinite().all()):
        raise ConfigError(f"expected a finite {name} of an edit, got NaN or infinity; give finite numbers")
