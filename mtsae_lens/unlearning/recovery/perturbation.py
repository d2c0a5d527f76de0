"""Perturb the residual stream at the hook, before an edit, and find the perturbation that brings the forget text back.

One vector is added at every position that is not masked. It lies in a given subspace, and its norm is at most a share of the mean norm of the
activations. It is fitted by gradient descent (Adam, projected onto the ball) on the loss on forget text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import cycle, islice

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel
from mtsae_lens.data.token_tables import TokenBatch, TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import track
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hook_pair import edited_width
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import open_positions


@dataclass(frozen=True)
class RecoverySettings:
    """How the attacker searches.

    Raises:
        ConfigError: a number is out of range.
    """

    epsilon: float = 0.5
    """Largest norm of the perturbation, as a share of the mean norm of the activations."""
    tolerance: float = 0.01
    """Share of the squared norm of the edited features' encoder rows that the nearly blind subspace may hold."""
    n_steps: int = 40
    """Steps of the perturbation that is shared by all contexts."""
    n_context_steps: int = 20
    """Steps of a perturbation for each context; 0 leaves this attack out."""
    lr: float = 0.1
    """Largest length of a step, as a share of the largest norm; it falls to 0 along a cosine."""
    n_random: int = 2
    """Number of random perturbations of the same norm, as a control."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not (
            self.epsilon > 0 and 0 <= self.tolerance < 1 and self.n_steps > 0 and self.n_context_steps >= 0 and self.lr > 0
        ):
            raise ConfigError(
                "expected epsilon, n_steps and lr above 0, n_context_steps of at least 0, and a tolerance of at least 0 and below 1, got "
                f"{self.epsilon}, {self.n_steps}, {self.lr}, {self.n_context_steps} and {self.tolerance}; change them"
            )
        if self.n_random < 1:
            raise ConfigError(f"expected n_random of at least 1, got {self.n_random}; raise it")


@dataclass(frozen=True, eq=False)
class Target:
    """A model under attack: any weights, with an edit at the hook or without one."""

    lm: HookedLM
    edit: Edit | None = None

    def states(
        self,
        tokens: Int[Tensor, "batch pos"],
        shift: Float[Tensor, "*one d_in"],
        h: Tensor | None = None,
        open_at: Bool[Tensor, "batch pos"] | None = None,
    ) -> Tensor:
        """Perturb the activations at the hook, then apply the edit; gradients flow to the perturbation.

        Args:
            tokens: contexts.
            shift: the perturbation, of all contexts `(d_in,)` or of each `(batch, d_in)`; added at every position that is not masked.
            h: activations at the hook, if they are computed already.
            open_at: where the edit applies; None to ask its gate about the perturbed activations.

        Returns:
            The activations after both, in the shape of `h`.
        """
        splice, masked = self.lm.splice, self.lm.masked(tokens)
        h = self.lm.activations(tokens) if h is None else h
        moved = splice.add_delta(h, as_change(self.lm, h, shift), ~masked)
        if self.edit is None:
            return moved
        feature_acts = splice.feature_acts(moved, masked)
        if open_at is None:
            with torch.no_grad():
                (open_at,) = open_positions(splice.sae_state(moved, feature_acts), [self.edit], masked)
        return splice.apply_edit(moved, feature_acts, self.edit, open_at)

    @torch.no_grad()
    def gate_without(self, tokens: Int[Tensor, "batch pos"], h: Tensor) -> Bool[Tensor, "batch pos"] | None:
        """Return where the edit applies without a perturbation; None without an edit.

        Args:
            tokens: contexts.
            h: their activations at the hook.
        """
        if self.edit is None:
            return None
        splice, masked = self.lm.splice, self.lm.masked(tokens)
        return open_positions(splice.sae_state(h, splice.feature_acts(h, masked)), [self.edit], masked)[0]

    def logits(self, shift: Float[Tensor, " d_in"] | None, *, hold_gate: bool = False) -> LazyModel:
        """Return the perturbed model as a function from tokens to logits.

        Args:
            shift: the perturbation; None for none.
            hold_gate: apply the edit where its gate is open without the perturbation, instead of asking the gate again.
        """
        moved = torch.zeros(edited_width(self.lm.sae), device=self.lm.sae.device) if shift is None else shift

        def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
            tokens = tokens.to(self.lm.model.cfg.device)
            h = self.lm.activations(tokens)
            open_at = self.gate_without(tokens, h) if hold_gate else None
            return self.lm.lazy_logits_from(tokens, self.states(tokens, moved, h, open_at))

        return LazyModel(lazy)


def as_change(lm: HookedLM, h: Tensor, shift: Float[Tensor, "*one d_in"]) -> Tensor:
    """Lay out a perturbation as a change of the activations that edits change, at every position.

    Args:
        lm: the model with its SAE.
        h: activations at the hook.
        shift: `(d_in,)` or `(batch, d_in)`.
    """
    target = lm.splice.as_target(h)
    rows = shift.view(-1, 1, shift.shape[-1]).expand(h.shape[0], h.shape[1], -1)
    return rows.reshape(target.shape).to(target)


def mean_norm(lm: HookedLM, table: TokenTable) -> float:
    """Compute the mean norm of the activations that edits change over the positions that are not masked.

    Args:
        lm: the model with its SAE.
        table: the text.
    """
    norms = [lm.target(tokens).flatten(2).norm(dim=-1)[~lm.masked(tokens)] for tokens in lm.batches(table)]
    return torch.cat(norms).mean().item()


def fit_perturbation(
    target: Target, table: TokenTable, subspace: Float[Tensor, "rank d_in"], radius: float, settings: RecoverySettings
) -> Float[Tensor, " d_in"]:
    """Find one perturbation for all positions of all contexts that lowers the loss on a text.

    The gate is held where it is open without the perturbation.

    Args:
        target: the model under attack.
        table: forget text that the attacker has.
        subspace: orthonormal rows; the perturbation is a combination of them.
        radius: largest norm of the perturbation.
        settings: number and length of steps.

    Returns:
        The perturbation.
    """
    known = [_Known.of(target, batch) for batch in target.lm.counted_batches(table)[: settings.n_steps]]
    steps = islice(cycle(known), settings.n_steps)
    search = _Search(torch.zeros(1, len(subspace), device=subspace.device), subspace, radius, settings.lr, settings.n_steps)
    for text in track(steps, "searching a perturbation", "step", settings.n_steps):
        search.step(target, text, text.batch.counted)
    return search.shift[0]


def fit_by_context(
    target: Target,
    batch: TokenBatch,
    read: Bool[Tensor, "batch pred"],
    subspace: Tensor,
    radius: float,
    settings: RecoverySettings,
) -> Float[Tensor, "batch d_in"]:
    """Find one perturbation for each context that lowers the loss on some of its predictions.

    Args:
        target: the model under attack.
        batch: the contexts.
        read: the predictions that the attacker knows.
        subspace: orthonormal rows.
        radius: largest norm of each perturbation.
        settings: number and length of steps.

    Returns:
        The perturbations.
    """
    text = _Known.of(target, batch)
    coordinates = torch.zeros(len(batch.tokens), len(subspace), device=subspace.device)
    search = _Search(coordinates, subspace, radius, settings.lr, settings.n_context_steps)
    for _ in range(settings.n_context_steps):
        search.step(target, text, read)
    return search.shift


@dataclass(frozen=True, eq=False)
class _Known:
    """Contexts with what does not change during a search: their activations, and where the edit applies."""

    batch: TokenBatch
    h: Tensor
    open_at: Bool[Tensor, "batch pos"] | None

    @classmethod
    def of(cls, target: Target, batch: TokenBatch) -> _Known:
        h = target.lm.activations(batch.tokens)
        return cls(batch, h, target.gate_without(batch.tokens, h))


class _Search:
    """Adam on the coordinates of perturbations, projected onto a ball after every step."""

    def __init__(self, coordinates: Float[Tensor, "n rank"], subspace: Tensor, radius: float, lr: float, n_steps: int) -> None:
        self.coordinates, self.subspace, self.radius = coordinates.requires_grad_(), subspace, radius
        self.optimizer = torch.optim.Adam([self.coordinates], lr=lr * radius / math.sqrt(max(len(subspace), 1)))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, n_steps)

    @property
    def shift(self) -> Float[Tensor, "n d_in"]:
        """The perturbations as they are now."""
        return self.coordinates.detach() @ self.subspace

    def step(self, target: Target, text: _Known, read: Bool[Tensor, "batch pred"]) -> None:
        """Take one step down the loss of the predictions that are read; each perturbation has the gradient of its contexts' mean loss."""
        with torch.enable_grad():
            tokens = text.batch.tokens
            states = target.states(tokens, self.coordinates @ self.subspace, text.h, text.open_at)
            nll = target.lm.lazy_logits_from(tokens, states)[:, :-1][read].nll(tokens[:, 1:][read])
            (self.coordinates.grad,) = torch.autograd.grad(nll.sum() / max(len(nll), 1), self.coordinates)
        self.optimizer.step()
        self.schedule.step()
        with torch.no_grad():
            norms = self.coordinates.norm(dim=-1, keepdim=True)
            self.coordinates *= (self.radius / norms.clamp(min=1e-12)).clamp(max=1.0)
