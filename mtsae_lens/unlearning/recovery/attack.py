"""Measure how much of the forgetting a perturbation at the hook brings back, with the edit active (after arXiv 2606.18322)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import Logits
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.progress import track
from mtsae_lens.splice.hook_pair import edited_width
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import open_positions
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.measures.effects import model_losses
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.recovery.blindness import blind_subspace, edited_features, read_by
from mtsae_lens.unlearning.recovery.context_attack import attack_contexts
from mtsae_lens.unlearning.recovery.perturbation import (
    RecoverySettings,
    Target,
    fit_perturbation,
    mean_norm,
)
from mtsae_lens.unlearning.recovery.replay import parts_under, replayed_logits
from mtsae_lens.unlearning.recovery.results import SUBSPACES, PerturbationResult, Recovery
from mtsae_lens.unlearning.recovery.shares import recovered, share_of_forgetting


@dataclass(frozen=True, eq=False)
class AttackedTexts:
    """The texts of a recovery attack: forget text that the attacker has, forget text to measure, and other texts to measure by name."""

    known: TokenTable
    measured: TokenTable
    others: Mapping[str, TokenTable] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Controls:
    """What the same search, in any direction, gains on models without an edit.

    Args:
        gains: by name (`unedited`, and `reference` if there is one), the losses on the measured text: before the perturbation as `nll_clean`,
            and with it as `nll_edited`.
    """

    gains: Mapping[str, EditLoss]

    def nats(self) -> dict[str, float]:
        """Return the gains in nats per token."""
        return {name: -loss.nll_delta for name, loss in self.gains.items()}


def measure_controls(
    lm: HookedLM, texts: AttackedTexts, settings: RecoverySettings, reference: AnyHookedModel | None = None
) -> Controls:
    """Search a perturbation in any direction for the unedited model and for the reference. It may use the directions of every subspace.

    Args:
        lm: the clean model with its SAE.
        texts: as in `attack_recovery`.
        settings: as in `attack_recovery`.
        reference: the model trained without the forget text; None without one.

    Returns:
        The controls, which do not depend on the edit.
    """
    targets = {"unedited": Target(lm)} | ({} if reference is None else {"reference": Target(replace(lm, model=reference))})
    basis, radius = torch.eye(edited_width(lm.sae), device=lm.sae.device), settings.epsilon * mean_norm(lm, texts.known)
    gains = {}
    for name, target in targets.items():
        shift = fit_perturbation(target, texts.known, basis, radius, settings)
        before, after = _losses(lm, [target.logits(None), target.logits(shift)], texts.measured)
        gains[name] = replace(after, nll_clean=before.nll_edited)
    return Controls(gains)


def attack_recovery(
    lm: HookedLM,
    change: Change,
    texts: AttackedTexts,
    settings: RecoverySettings | None = None,
    *,
    controls: Controls | None = None,
    subspaces: Sequence[str] = SUBSPACES,
) -> Recovery:
    """Search perturbations that bring the forget text back while the change stays in place, and measure them.

    Args:
        lm: the clean model with its SAE.
        change: an edit at the hook, or other weights, which read nothing that a perturbation could avoid.
        texts: text that the attacker has, from SELECT, and text to measure, from TEST.
        settings: size and number of steps of the search.
        controls: what the same search gains on models without an edit; None measures the unedited model.
        subspaces: names in `SUBSPACES`.

    Returns:
        The outcomes.

    Raises:
        ModelError: the SAE has no encoder matrix, so blindness is unknown.
    """
    settings = settings or RecoverySettings()
    controls = controls or measure_controls(lm, texts, settings)
    target = Target(lm if change.weights is None else replace(lm, model=change.weights), change.edit)
    radius = settings.epsilon * mean_norm(lm, texts.known)
    allowed = {
        name: _subspace(lm, change, name, settings) for name in subspaces if change.edit is not None or name == SUBSPACES[-1]
    }
    (edited,) = _losses(lm, [target.logits(None)], texts.measured)
    before = {name: _losses(lm, [target.logits(None)], table)[0] for name, table in texts.others.items()}
    found: dict[str, PerturbationResult] = {}
    for name, basis in track(allowed.items(), "attacking with perturbations", "subspace", len(allowed)):
        same = next(
            (found[other] for other in found if len(allowed[other]) == len(basis)), None
        )  # each one holds the one before
        found[name] = same or _attack_within(lm, target, controls, texts, basis, radius, edited, before, settings)
    by_context = None
    if settings.n_context_steps and texts.measured.answers is None:
        basis = allowed.get(SUBSPACES[1], next(reversed(allowed.values())))
        by_context = attack_contexts(target, Target(lm), texts.measured, basis, radius, settings)
    return Recovery(
        epsilon=settings.epsilon,
        radius=radius,
        d_in=edited_width(lm.sae),
        nll_clean=edited.mean(edited.nll_clean),
        nll_edited=edited.mean(edited.nll_edited),
        n_tokens=int(edited.n_tokens.sum()),
        n_documents=len(set(edited.documents)),
        gains=controls.nats(),
        by_subspace=found,
        by_context=by_context,
    )


def recovered_share(lm: HookedLM, change: Change, texts: AttackedTexts, settings: RecoverySettings) -> float:
    """Return only the share of the forgetting that a perturbation in any direction brings back, for a choice among edits.

    Args:
        lm: the clean model with its SAE.
        change: the change under attack.
        texts: text that the attacker has, and text to measure.
        settings: size and number of steps of the search.

    Returns:
        The share; 0 if nothing was forgotten.
    """
    target = Target(lm if change.weights is None else replace(lm, model=change.weights), change.edit)
    basis, radius = torch.eye(edited_width(lm.sae), device=lm.sae.device), settings.epsilon * mean_norm(lm, texts.known)
    shift = fit_perturbation(target, texts.known, basis, radius, settings)
    edited, attacked = _losses(lm, [target.logits(None), target.logits(shift)], texts.measured)
    share = recovered(edited, attacked, settings.seed).share
    return 0.0 if share is None else share.mean


def _subspace(lm: HookedLM, change: Change, name: str, settings: RecoverySettings) -> Float[Tensor, "rank d_in"]:
    rows, directions = read_by(None if name == SUBSPACES[-1] else change.edit, lm.sae)
    return blind_subspace(rows, settings.tolerance if name == SUBSPACES[1] else 0.0, directions)


def _losses(lm: HookedLM, models: Sequence[Logits], table: TokenTable) -> list[EditLoss]:
    return model_losses(models, lm.model, lm.cutter, table, lm.batch_size)


def _attack_within(
    lm: HookedLM,
    target: Target,
    controls: Controls,
    texts: AttackedTexts,
    basis: Float[Tensor, "rank d_in"],
    radius: float,
    edited: EditLoss,
    before: Mapping[str, EditLoss],
    settings: RecoverySettings,
) -> PerturbationResult:
    if not len(basis):
        return PerturbationResult(n_directions=0)
    shift = fit_perturbation(target, texts.known, basis, radius, settings)
    models: dict[str, Logits] = {"attacked": target.logits(shift)}
    models |= {f"random {n}": target.logits(draw) for n, draw in enumerate(_random(basis, shift, settings))}
    parts = () if target.edit is None else parts_under(target.edit)
    if target.edit is not None:
        models["held"] = target.logits(shift, hold_gate=True)
        models |= {part: replayed_logits(target, shift, part) for part in parts}
    losses = dict(zip(models, _losses(lm, list(models.values()), texts.measured), strict=True))
    draws = torch.stack([losses[f"random {n}"].nll_edited for n in range(settings.n_random)])
    gained = controls.gains["unedited"]
    drift, opened = _reactions(target, shift, texts.measured)
    after = {name: _losses(lm, [target.logits(shift)], table)[0] for name, table in texts.others.items()}
    return PerturbationResult(
        n_directions=len(basis),
        norm=shift.norm().item(),
        attacked=recovered(edited, losses["attacked"], settings.seed),
        gate_held=recovered(edited, losses["held"], settings.seed) if "held" in losses else None,
        random=recovered(edited, replace(edited, nll_edited=draws.mean(dim=0)), settings.seed),
        beyond_control=share_of_forgetting(
            edited, edited.nll_edited - losses["attacked"].nll_edited - (gained.nll_clean - gained.nll_edited), settings.seed
        ),
        drift=drift,
        gate_open=opened,
        others={name: loss.mean(loss.nll_edited - before[name].nll_edited) for name, loss in after.items()},
        parts={part: recovered(edited, losses[part], settings.seed) for part in parts},
    )


def _random(basis: Float[Tensor, "rank d_in"], shift: Float[Tensor, " d_in"], settings: RecoverySettings) -> list[Tensor]:
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = [torch.randn(len(basis), generator=generator).to(basis.device) @ basis for _ in range(settings.n_random)]
    return [row / row.norm() * shift.norm() for row in drawn]


@torch.no_grad()
def _reactions(
    target: Target, shift: Float[Tensor, " d_in"], table: TokenTable
) -> tuple[float | None, tuple[float, float] | None]:
    """Return how much the edited features change, and how often the gate is open before and after."""
    if target.edit is None:
        return None, None
    splice, features, moved_only = target.lm.splice, list(edited_features(target.edit)), Target(target.lm)
    changed = total = 0.0
    opened, n_positions = torch.zeros(2), 0
    for tokens in target.lm.batches(table):
        masked, h = target.lm.masked(tokens), target.lm.activations(tokens)
        states = [h, moved_only.states(tokens, shift, h)]
        before, after = (splice.feature_acts(each, masked) for each in states)
        changed += (after - before)[..., features].abs().sum().item()
        total += before[..., features].sum().item()
        sae_states = map(splice.sae_state, states, (before, after))
        opened += torch.tensor([float(open_positions(state, [target.edit], masked)[0].sum()) for state in sae_states])
        n_positions += int((~masked).sum())
    shares = (opened / max(n_positions, 1)).tolist()
    return (changed / total if features and total else None), (shares[0], shares[1])
