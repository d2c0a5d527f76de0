"""Decide where an edit acts, from the features and the activations of the new positions."""

from __future__ import annotations

import math
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class GateFunction(Protocol):
    """A gate: a function that decides where an edit acts. All functions in `GATES` have these arguments."""

    def __call__(
        self, gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor
    ) -> Tensor:
        """Return where the gate is open, `(batch, pos)`.

        Args:
            gate: the gate in `edit.json`.
            tensors: the lists of the gate as tensors, by name.
            state: what the gate keeps between calls; a gate adds its own entries.
            e: feature activations of the new positions, `(batch, pos, d_sae)`.
            h: activations at the hook, `(batch, pos, d_model)`, zero at special tokens and padding.
        """


def always_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor) -> Tensor:
    """Return True everywhere."""
    return torch.ones(e.shape[:2], dtype=torch.bool, device=e.device)


def feature_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor) -> Tensor:
    """Return True where one of the gate's features fires."""
    return (e[..., gate["features"]] > 0).any(dim=-1)


def evidence_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor) -> Tensor:
    """Return True where a decaying sum of the weights of the features that fired exceeds the threshold."""
    step = (e[..., gate["features"]] > 0).float() @ tensors["weights"]
    running, evidence = state.get("evidence", torch.zeros_like(step[:, 0])), []
    for position in range(step.shape[1]):
        running = gate["decay"] * running + step[:, position]
        evidence.append(running)
    state["evidence"] = running
    return torch.stack(evidence, dim=1) > gate["threshold"]


def two_state_opens(gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor) -> Tensor:
    """Return True where the log odds of a two-state filter exceed the threshold."""
    evidence, is_step = evidence_steps(gate, tensors, e, h)
    opening, closing = evidence.new_tensor(gate["opening"]), evidence.new_tensor(gate["closing"])
    running = state.get("log_odds", (opening.log() - closing.log()).expand(len(evidence)))
    log_odds = []
    for position in range(evidence.shape[1]):
        predicted = opening + (1 - opening - closing) * torch.sigmoid(running)
        updated = predicted.log() - (-predicted).log1p() + evidence[:, position]
        running = torch.where(is_step[:, position], updated, running)
        log_odds.append(running)
    state["log_odds"] = running
    return torch.stack(log_odds, dim=1) > gate["threshold"]


def decayed_mean_opens(
    gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor
) -> Tensor:
    """Return True where the decayed mean of the evidence exceeds the threshold."""
    evidence, is_step = evidence_steps(gate, tensors, e, h)
    counts = torch.stack([torch.where(is_step, evidence, 0.0), is_step.to(evidence.dtype)], dim=-1)
    running, means = state.get("mean", torch.zeros_like(counts[:, 0])), []
    for position in range(evidence.shape[1]):
        running = torch.where(is_step[:, position, None], gate["decay"] * running + counts[:, position], running)
        means.append(running[:, 0] / running[:, 1].clamp(min=1e-9))
    state["mean"] = running
    return torch.stack(means, dim=1) > gate["threshold"]


def known_groups_open(
    gate: dict[str, Any], tensors: dict[str, Tensor], state: dict[str, Tensor], e: Tensor, h: Tensor
) -> Tensor:
    """Return True where the activations are more likely from a known group than from a new one, by more than the threshold."""
    means, variances, prior = tensors["means"], tensors["variances"], tensors["prior"]
    z = (h - tensors["center"]) @ tensors["projection"].T
    square = z.square() @ (1 / variances).T - 2 * z @ (means / variances).T + (means.square() / variances).sum(dim=-1)
    known = (-0.5 * (square + variances.log().sum(dim=-1))).logsumexp(dim=-1) - math.log(len(means))
    new = -0.5 * ((z.square() / prior).sum(dim=-1) + prior.log().sum())
    return (known - new > gate["threshold"]) & (h != 0).any(dim=-1)


def evidence_steps(gate: dict[str, Any], tensors: dict[str, Tensor], e: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return `log sum_k exp(w_k . phi_t + c_k)` at each position, and False where nothing is read (special tokens, padding).

    Args:
        gate: the gate in `edit.json`.
        tensors: the lists of the gate as tensors, by name.
        e: feature activations, `(batch, pos, d_sae)`.
        h: activations at the hook, `(batch, pos, d_model)`, zero at special tokens and padding.
    """
    observed = e if gate["reads"] == "features" else h
    phi = observed[..., gate["features"]] if gate["reads"] == "features" else observed
    each = phi @ tensors["weights"].T + tensors["bias"]
    return each.logsumexp(dim=-1), (observed != 0).any(dim=-1)


GATES: dict[str, GateFunction] = {
    "always": always_opens,
    "feature_active": feature_opens,
    "running_evidence": evidence_opens,
    "two_state": two_state_opens,
    "decayed_mean": decayed_mean_opens,
    "known_groups": known_groups_open,
}
"""Gates by `kind`."""
