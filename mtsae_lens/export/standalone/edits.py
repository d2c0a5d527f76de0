"""Compute the change of the residual stream where the gate is open."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class EditFunction(Protocol):
    """An edit: a function that computes a change of the residual stream. All functions in `EDITS` have these arguments."""

    def __call__(self, edit: dict[str, Any], tensors: dict[str, Tensor], h: Tensor, e: Tensor) -> Tensor:
        """Return the change where the gate is open, `(batch, pos, d_model)`.

        Args:
            edit: the edit in `edit.json`.
            tensors: the lists of the edit as tensors, by name, and the decoder `W_dec` and `b_dec`. For the parts of a combined edit, the place
                of the part comes before the name.
            h: the residual stream, `(batch, pos, d_model)`.
            e: feature activations, `(batch, pos, d_sae)`.
        """


def rescale_features(edit: dict[str, Any], tensors: dict[str, Tensor], h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `e_i -> -multiplier * e_i`."""
    return decode_change(edit, tensors, -(1 + edit["multiplier"]) * e[..., edit["features"]])


def clamp_features(edit: dict[str, Any], tensors: dict[str, Tensor], h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `e_i -> values_i`, where the feature fires, where any of the features fires, or everywhere."""
    chosen, where = e[..., edit["features"]], edit["where"]
    acts = chosen > 0
    if where != "fires":
        acts = (acts.any(-1, keepdim=True) | (where == "everywhere")).expand_as(chosen)
    return decode_change(edit, tensors, torch.where(acts, tensors["values"] - chosen, 0.0))


def remove_directions(edit: dict[str, Any], tensors: dict[str, Tensor], h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `h -> h - (1 + multiplier) * B^T B (h - center)`."""
    basis, center = tensors["basis"], tensors["center"]
    return -(1 + edit["multiplier"]) * ((h - center) @ basis.T) @ basis


def remove_from_error(edit: dict[str, Any], tensors: dict[str, Tensor], h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `h -> h - (1 + multiplier) * B^T B (h - decode(e) - center)`."""
    return remove_directions(edit, tensors, h - e @ tensors["W_dec"] - tensors["b_dec"], e)


def add_parts(edit: dict[str, Any], tensors: dict[str, Tensor], h: Tensor, e: Tensor) -> Tensor:
    """Compute the sum of the changes of several edits, each from the activations before any edit."""
    total = torch.zeros_like(h)
    for place, part in enumerate(edit["parts"]):
        own = {name.removeprefix(f"{place}."): tensor for name, tensor in tensors.items()}
        total = total + EDITS[part["kind"]](part, own, h, e)
    return total


def decode_change(edit: dict[str, Any], tensors: dict[str, Tensor], change: Tensor) -> Tensor:
    """Map a change of the edit's features to a change of the residual stream.

    Args:
        edit: the edit in `edit.json`.
        tensors: tensors by name, with the decoder `W_dec`.
        change: change of the edit's features, `(batch, pos, feature)`.
    """
    return change @ tensors["W_dec"][edit["features"]]


EDITS: dict[str, EditFunction] = {
    "features": rescale_features,
    "clamp": clamp_features,
    "directions": remove_directions,
    "error": remove_from_error,
    "combined": add_parts,
}
"""Edits by `kind`."""
