"""Estimate the effect of every feature on the loss on a corpus to first order, with one backward pass for all features.

    attribution_i = -(1 / n) sum_t e_ti * dNLL/de_ti,    dNLL/de_ti = <W_dec_i, dNLL/dh_t> for a linear decoder

is the first-order change of the loss when feature i is set to zero at every position (attribution patching; Farrell et al. 2024,
arXiv 2410.19278, choose features by it). The gradient runs through the layers after the hook and through `sae.decode`, with the
error term kept: `h' = h + decode(e') - decode(e)`. It does not run through the encoder, because an edit changes features and not the
activations that they are computed from.

For an SAE with memory there are two such effects. By default the gradient is that of the output at position t alone, as an edit changes it.
With `carried=True` it also runs through the recursion of the decoder to later positions, as the change of an edit with `carried=True` does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.ranks import current_ranks
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True, eq=False)
class LossChange:
    """Expected change of the mean loss of counted tokens, in nats per token, when each feature alone is set to zero."""

    first_order: Float[Tensor, " d_sae"]
    """`-(1 / n) sum_t e_ti g_ti`; it is signed, so effects of opposite sign at different tokens cancel."""
    fisher: Float[Tensor, " d_sae"]
    """`(1 / 2n) sum_t (e_ti g_ti)^2`: the second-order term, with squared gradients in place of the Hessian's diagonal; never negative."""

    @property
    def second_order(self) -> Float[Tensor, " d_sae"]:
        """Return the sum of both terms."""
        return self.first_order + self.fisher


def loss_change(lm: HookedLM, table: TokenTable, *, carried: bool = False, shared: bool = False) -> LossChange:
    """Estimate how ablating each feature changes the loss on a corpus, from one backward pass per batch.

    Args:
        lm: the model with its SAE.
        table: the contexts of the corpus.
        carried: whether the decoder of an SAE with memory carries the ablation on, as in `FeatureEdit`.
        shared: whether several ranks (`mtsae_lens.ranks`) share the batches; all of them must call this, and all get the result.

    Returns:
        The expected change for every feature.

    Raises:
        DataError: the table has no counted token.
    """
    n_counted = int(table.counted(lm.cutter).sum())
    if not n_counted:
        raise DataError(f"{table.corpus}: expected tokens whose prediction is counted, got none; give another text")
    sums = torch.zeros(2, lm.sae.cfg.d_sae, dtype=torch.float64)
    batches = lm.counted_batches(table)
    for tokens, counted, _ in track(
        current_ranks().deal(batches) if shared else batches, f"attributing the loss on {table.corpus}", "batch"
    ):
        h = lm.activations(tokens)
        feature_acts = lm.feature_acts(tokens, h)
        change = -feature_acts * _nll_gradient(lm, tokens, counted, h, feature_acts, carried=carried)
        sums[0] += change.sum(dim=(0, 1)).cpu().double()
        sums[1] += change.square().sum(dim=(0, 1)).cpu().double()
    first, squares = current_ranks().sum_(sums) if shared else sums
    return LossChange((first / n_counted).float().to(lm.sae.device), (squares / (2 * n_counted)).float().to(lm.sae.device))


def attribution(lm: HookedLM, table: TokenTable, *, carried: bool = False, shared: bool = False) -> Float[Tensor, " d_sae"]:
    """Compute the first-order change of the mean loss of counted tokens, in nats per token, when each feature alone is set to zero.

    A positive value means that the model predicts this text worse without the feature. For
    `FeatureEdit((i,), multiplier)` the first-order change is `(1 + multiplier)` times as large.

    Args:
        lm: the model with its SAE.
        table: the contexts of the corpus.
        carried: whether the decoder of an SAE with memory carries the ablation on, as in `FeatureEdit`.
        shared: whether several ranks share the batches, as in `loss_change`.

    Returns:
        One value per feature.

    Raises:
        DataError: the table has no counted token.
    """
    return loss_change(lm, table, carried=carried, shared=shared).first_order


def _nll_gradient(
    lm: HookedLM,
    tokens: Int[Tensor, "batch pos"],
    counted: Bool[Tensor, "batch pred"],
    h: Tensor,
    feature_acts: Tensor,
    *,
    carried: bool,
) -> Float[Tensor, "batch pos d_sae"]:
    """Compute the gradient of the summed loss of counted tokens with respect to the feature activations."""
    with torch.enable_grad():
        edited = feature_acts.detach().clone().requires_grad_()
        delta = lm.splice.sae_state(h, feature_acts).decode_change(edited, carried=carried)
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        logits = lm.lazy_logits_from(tokens, lm.splice.add_delta(h, delta, everywhere))
        nll = logits[:, :-1][counted].nll(tokens[:, 1:][counted])
        (gradient,) = torch.autograd.grad(nll.sum(), edited)
    return gradient
