"""Records of a recovery attack."""

from __future__ import annotations

from dataclasses import dataclass, field

from mtsae_lens.records import Interval, Record

SUBSPACES = ("blind", "nearly blind", "any direction")
"""Where a perturbation may lie: orthogonal to all that the edit reads, nearly so, or anywhere. For a change of weights, only the last."""


@dataclass(frozen=True, kw_only=True)
class Recovered(Record):
    """What the attacked model knows of the forget text."""

    nll: float
    """Loss under the attack, nats per token."""
    share: Interval | None = None
    """Share of the forgetting that the attack undoes: `(edited - attacked) / (edited - clean)` in losses, with a 95% interval over
    documents. 0 is none, 1 all of it; below 0, the loss rises. None if nothing was forgotten."""


@dataclass(frozen=True, kw_only=True)
class PerturbationResult(Record):
    """The attack with perturbations of one subspace."""

    n_directions: int
    """Dimensions of the subspace. With 0, no such perturbation exists, and nothing is attacked."""
    norm: float = 0.0
    """Norm of the perturbation that was found."""
    attacked: Recovered | None = None
    """Outcome on TEST with the gate asked again, as it would be in use."""
    gate_held: Recovered | None = None
    """Outcome with the edit applied where its gate is open without the perturbation; None without an edit."""
    random: Recovered | None = None
    """Outcome of random perturbations of the same subspace and norm, pooled over draws, with the gate asked again."""
    beyond_control: Interval | None = None
    """Share of the forgetting that `attacked` undoes beyond what a search in any direction gains on the unedited model."""
    drift: float | None = None
    """Mean absolute change of the edited features' activations over their mean activation; None if no feature is edited."""
    gate_open: tuple[float, float] | None = None
    """Share of the forget positions at which the gate is open, without the perturbation and with it."""
    others: dict[str, float] = field(default_factory=dict)
    """Nats per token that the perturbation adds to near and far text, with the edit in place."""
    parts: dict[str, Recovered] = field(default_factory=dict)
    """Outcomes when only a part of the perturbation reaches the edited model, with the gate held, by the names in `PARTS`. An edit without
    features has no edited and no untouched features; in results of earlier versions, it has none of the former and all of the latter."""


@dataclass(frozen=True, kw_only=True)
class ContextAttack(Record):
    """The attack with a perturbation for each context, which is fitted on its first half and measured on its second half."""

    nll_clean: float
    nll_edited: float
    attacked: Recovered
    gains: dict[str, float]
    """Nats per token by which the same search lowers the loss of the unedited model on the second halves."""


@dataclass(frozen=True, kw_only=True)
class Recovery(Record):
    """How much of the forgetting perturbations at the hook bring back."""

    epsilon: float
    radius: float
    """Largest norm of a perturbation."""
    d_in: int
    nll_clean: float
    nll_edited: float
    n_tokens: int
    n_documents: int
    gains: dict[str, float]
    """Nats per token by which the same search, in any direction, lowers the loss of models without an edit: `unedited`, and `reference` if
    there is one."""
    by_subspace: dict[str, PerturbationResult]
    """Results by the names in `SUBSPACES`."""
    by_context: ContextAttack | None = None
    """The attack by context, in the nearly blind subspace (for a change of weights, in any direction); None for questions."""

    @property
    def worst(self) -> Interval | None:
        """Return the largest share that a perturbation of any subspace brings back, by its mean; None if nothing was forgotten."""
        found = [r.attacked.share for r in self.by_subspace.values() if r.attacked is not None and r.attacked.share is not None]
        return max(found, key=lambda share: share.mean, default=None)
