"""Decide where an edit acts, from the features of the new positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def always_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor) -> Tensor:
    """Return True everywhere.

    Args:
        gate: the gate in `edit.json`.
        tensors: the lists of the gate as tensors, by name.
        state: what the gate keeps between calls; a gate adds its own entries.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    return torch.ones(e.shape[:2], dtype=torch.bool, device=e.device)


def feature_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor) -> Tensor:
    """Return True where one of the gate's features fires.

    Args:
        gate: the gate in `edit.json`.
        tensors: the lists of the gate as tensors, by name.
        state: what the gate keeps between calls; a gate adds its own entries.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    return (e[..., gate["features"]] > 0).any(dim=-1)


def evidence_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor) -> Tensor:
    """Return True where a decaying sum of the weights of the features that fired exceeds the threshold.

    Args:
        gate: the gate in `edit.json`.
        tensors: the lists of the gate as tensors, by name.
        state: what the gate keeps between calls; a gate adds its own entries.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    step = (e[..., gate["features"]] > 0).float() @ tensors["weights"]
    running, evidence = state.get("evidence", torch.zeros_like(step[:, 0])), []
    for position in range(step.shape[1]):
        running = gate["decay"] * running + step[:, position]
        evidence.append(running)
    state["evidence"] = running
    return torch.stack(evidence, dim=1) > gate["threshold"]


GATES: dict[str, Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor], Tensor], Tensor]] = {
    "always": always_opens,
    "feature_active": feature_opens,
    "running_evidence": evidence_opens,
}
"""Gates by `kind`: functions of the features of the new positions that return where the gate is open, `(batch, pos)`."""
