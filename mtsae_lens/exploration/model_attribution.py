"""Attribute a feature's pre-activation to earlier tokens through the language model: gradient times input embedding.

    a_s = < d hidden_pre_i[t] / d embed[s], embed[s] >

Here t is the peak of feature i, and the gradient runs through the SAE's encoder and the layers before the hook. This is a first-order
estimate, because the layers below the hook are not linear. The contributions of the encoder's own taps are exact: see `offset_contributions`.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.precision import in_float32
from mtsae_lens.exploration.firings import compute_features_at
from mtsae_lens.exploration.peaks import Peaks
from mtsae_lens.progress import track
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.upstream import extract_stop_at_layer_from_tlens_hook_name

_ROWS_AT_ONCE = 16  # whole contexts with gradients; larger batches take more memory and save no time


def attribute_to_tokens(lm: HookedLM, peaks: Peaks, before: int, after: int) -> Float[Tensor, "peak window"]:
    """Attribute each peak to the tokens of the window around it. Several ranks (`mtsae_lens.ranks`) share the peaks.

    Args:
        lm: model and SAE.
        peaks: where each feature's pre-activation is attributed.
        before: tokens before the peak.
        after: tokens after the peak; with a causal encoder their attribution is 0.

    Returns:
        The attribution of each token; NaN beyond the ends of the context.
    """
    n_positions = peaks.tokens.shape[1]
    found = torch.zeros(len(peaks), before + 1 + after)
    # Contexts are cut after the last peak of a batch. The longest come first, so that later batches reuse their memory.
    order = peaks.position.argsort(stable=True, descending=True)
    batches = order.split(_ROWS_AT_ONCE) if len(peaks) else ()
    for rows in track(current_ranks().deal(batches), "attributing to tokens", "batch"):
        chosen = peaks.select(rows)
        end = n_positions if _reads_ahead(lm) else int(chosen.position.max()) + 1
        values = _attribute(lm, chosen.tokens[chosen.context], end, chosen.position, chosen.feature)
        values = torch.nn.functional.pad(values, (0, n_positions - end))
        where = chosen.position[:, None] + torch.arange(-before, after + 1)
        inside = (where >= 0) & (where < n_positions)
        found[rows] = values.gather(1, where.clamp(0, n_positions - 1)).masked_fill(~inside, torch.nan)
    return current_ranks().sum_(found)


def _reads_ahead(lm: HookedLM) -> bool:
    return isinstance(lm.sae, TemporalEncoder) and lm.sae.receptive_field[1] > 0


def _attribute(
    lm: HookedLM, contexts: Int[Tensor, "row pos"], end: int, position: Int[Tensor, " row"], feature: Int[Tensor, " row"]
) -> Float[Tensor, "row end"]:
    """Attribute pre-activations to the first `end` tokens of their contexts, which hold every position."""
    contexts = contexts.to(lm.model.cfg.device)
    tokens, options = contexts[:, :end], {name: mask[:, :end] for name, mask in lm.attention_options(contexts).items()}
    rows = torch.arange(len(tokens), device=tokens.device)
    embeddings: list[Tensor] = []

    def as_leaf(embed: Tensor, hook: Any) -> Tensor:
        embeddings.append(embed.detach().requires_grad_())
        return embeddings[0]

    caught: list[Tensor] = []

    def catch(h: Tensor, hook: Any) -> None:
        caught.append(h)

    with torch.enable_grad():
        lm.model.run_with_hooks(
            tokens,
            fwd_hooks=[("hook_embed", as_leaf), (lm.splice.hook_name, catch)],
            prepend_bos=False,
            stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(lm.splice.hook_name),
            **options,
        )
        _, hidden_pre = compute_features_at(lm, tokens, caught[0], rows, position.to(tokens.device))
        (gradient,) = torch.autograd.grad(hidden_pre[rows, feature.to(tokens.device)].sum(), embeddings[0])
    return (in_float32(gradient) * in_float32(embeddings[0].detach())).sum(dim=-1).float().cpu()
