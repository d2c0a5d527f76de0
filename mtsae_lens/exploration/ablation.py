"""Measure what a feature does where it fires most: set its activation to zero at the peak, keep the error term, rerun the later layers.

    h'[t] = h[t] + decode(e'[t]) - decode(e[t])        e' = e but e'_i = 0;        h' = h at all other positions

The change of the loss, of the next token and of the tokens after it, is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mtsae_lens.exploration.firings import compute_features_at
from mtsae_lens.exploration.peaks import Peaks
from mtsae_lens.progress import track
from mtsae_lens.ranks import current_ranks
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.sae_state import SAEState

_ROWS_AT_ONCE = 32  # contexts rerun together


@torch.no_grad()
def measure_ablation(lm: HookedLM, peaks: Peaks) -> Float[Tensor, "peak 2"]:
    """Measure the change of the loss when each feature is set to zero at its peak. Several ranks (`mtsae_lens.ranks`) share the peaks.

    Args:
        lm: model and SAE.
        peaks: where each feature is ablated.

    Returns:
        Change in nats of the loss of the next token, and of the mean loss of the tokens after that one. Positive: without the feature the
        model predicts worse. NaN where there is no such token, or where it is a special token.
    """
    effects = torch.zeros(len(peaks), 2)
    order = peaks.context.argsort(stable=True)  # peaks of one context together, so that its clean run is made once
    batches = order.split(_ROWS_AT_ONCE) if len(peaks) else ()
    for rows in track(current_ranks().deal(batches), "ablating features", "batch"):
        effects[rows] = _effects(lm, peaks.select(rows))
    return current_ranks().sum_(effects)


def _effects(lm: HookedLM, peaks: Peaks) -> Float[Tensor, "peak 2"]:
    device = lm.model.cfg.device
    numbers, context = peaks.context.unique(return_inverse=True)
    clean_tokens = peaks.tokens[numbers].to(device)
    context, position, feature = context.to(device), peaks.position.to(device), peaks.feature.to(device)
    h = lm.activations(clean_tokens)
    delta = _ablated(lm, clean_tokens, h, context, position, feature)
    counted = ~lm.cutter.special_positions(clean_tokens)[:, 1:]
    nll = _nll(lm, clean_tokens, h, counted)[context]
    tokens, places = clean_tokens[context], torch.arange(clean_tokens.shape[1], device=device)
    at_peak = places == position.unsqueeze(1)
    edited = lm.splice.add_delta(h[context], delta, at_peak)
    after = counted[context] & (places[:-1] >= position.unsqueeze(1))
    change = _nll(lm, tokens, edited, after) - nll
    following = after & ~at_peak[:, :-1]
    return torch.stack([_mean(change, after & at_peak[:, :-1]), _mean(change, following)], dim=1).float().cpu()


def _mean(change: Float[Tensor, "row pred"], counted: Bool[Tensor, "row pred"]) -> Float[Tensor, " row"]:
    """Average over the counted predictions; NaN if there is none."""
    return change.masked_fill(~counted, 0.0).sum(dim=1) / counted.sum(dim=1)


def _ablated(lm: HookedLM, tokens: Tensor, h: Tensor, context: Tensor, position: Tensor, feature: Tensor) -> Tensor:
    """Return `decode(e') - decode(e)` of the peak, repeated at all positions of each row; the caller masks the other positions."""
    feature_acts, _ = compute_features_at(lm, tokens, h, context, position)
    edited = feature_acts.clone()
    edited[torch.arange(len(edited)), feature] = 0
    at_peaks = SAEState(lm.sae, lm.splice.as_sae_input(h)[context, position].unsqueeze(1), feature_acts.unsqueeze(1))
    delta = at_peaks.decode_change(edited.unsqueeze(1))
    return delta.expand(delta.shape[0], tokens.shape[1], *delta.shape[2:])


def _nll(lm: HookedLM, tokens: Tensor, h: Tensor, counted: Tensor) -> Float[Tensor, "row pred"]:
    """Return the loss of the counted predictions, and zero elsewhere."""
    nll = torch.zeros(counted.shape, device=tokens.device)
    nll[counted] = lm.lazy_logits_from(tokens, h)[:, :-1][counted].nll(tokens[:, 1:][counted]).float()
    return nll
