"""Attack every context with a perturbation fitted on its first half, and measure the second half."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenBatch, TokenTable
from mtsae_lens.progress import track
from mtsae_lens.unlearning.measures.predictions import CleanPredictions, sum_losses
from mtsae_lens.unlearning.measures.results import EditLoss
from mtsae_lens.unlearning.recovery.perturbation import (
    RecoverySettings,
    Target,
    fit_by_context,
)
from mtsae_lens.unlearning.recovery.results import ContextAttack
from mtsae_lens.unlearning.recovery.shares import recovered


def attack_contexts(
    target: Target,
    control: Target,
    table: TokenTable,
    basis: Float[Tensor, "rank d_in"],
    radius: float,
    settings: RecoverySettings,
) -> ContextAttack | None:
    """Fit a perturbation on the first half of each context, and measure the second half.

    Args:
        target: the model under attack, with its edit.
        control: the model without an edit, on which the same is done.
        table: the text.
        basis: the directions that the perturbation may use.
        radius: its largest norm.
        settings: number of steps and seed.

    Returns:
        The outcome; None if there is no direction.
    """
    if not len(basis):
        return None
    rows: dict[str, list[Tensor]] = {"edited": [], "attacked": [], "unedited": []}
    for batch in track(control.lm.counted_batches(table), "attacking every context", "batch"):
        first = batch.counted & (
            torch.arange(batch.counted.shape[1], device=batch.counted.device) < batch.counted.shape[1] // 2
        )
        late = batch._replace(counted=batch.counted & ~first)
        nothing = torch.zeros(len(batch.tokens), basis.shape[1], device=basis.device)
        shifts = {
            name: fit_by_context(t, batch, first, basis, radius, settings)
            for name, t in (("attacked", target), ("unedited", control))
        }
        states = {"edited": target.states(batch.tokens, nothing), "attacked": target.states(batch.tokens, shifts["attacked"])}
        states["unedited"] = control.states(batch.tokens, shifts["unedited"])
        for name, losses in _sums(target, control, late, states).items():
            rows[name].append(losses)
    found = {
        name: EditLoss(table.corpus, table.pieces.documents, 1.0, *torch.cat(r).double().unbind(dim=1))
        for name, r in rows.items()
    }
    edited = found["edited"]
    return ContextAttack(
        nll_clean=edited.mean(edited.nll_clean),
        nll_edited=edited.mean(edited.nll_edited),
        attacked=recovered(edited, found["attacked"], settings.seed),
        gains={"unedited": -found["unedited"].nll_delta},
    )


@torch.no_grad()
def _sums(
    target: Target, control: Target, batch: TokenBatch, states: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "piece 3"]]:
    clean = CleanPredictions.of(batch, control.lm.lazy_logits_from(batch.tokens, control.lm.activations(batch.tokens)))
    counted: Bool[Tensor, "batch pred"] = batch.counted
    models = {name: (control if name == "unedited" else target).lm for name in states}
    return {
        name: sum_losses(clean, models[name].lazy_logits_from(batch.tokens, h)[:, :-1][counted]) for name, h in states.items()
    }
