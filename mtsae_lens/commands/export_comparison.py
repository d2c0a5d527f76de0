"""Compare an exported model with the edit at its hook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.data.lazy_logits import Logits, in_chunks, lazily
from mtsae_lens.progress import track
from mtsae_lens.splice.edits import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_edits, measure_model
from mtsae_lens.unlearning.measures.predictions import kl_of_logits


def compare(lm: HookedLM, table: TokenTable, edit: Edit, models: Mapping[str, Logits]) -> dict[str, Any]:
    """Compare the effects of an edit at its hook and of other models on a text, in nats per token.

    Args:
        lm: the model with its SAE.
        table: the text.
        edit: the edit.
        models: models by name.

    Returns:
        `n_tokens`; `hook` with `nll_delta` and `kl` relative to the clean model; for every other model the same, and `kl_from_hook`,
        which is KL(model with the edit at its hook || this model).
    """
    (hook,) = measure_edits(lm, table, [edit])
    compared: dict[str, Any] = {"n_tokens": int(hook.n_tokens.sum())}
    compared["hook"] = {"nll_delta": hook.nll_delta, "kl": hook.mean(hook.kl)}
    for name, logits in models.items():
        effect = measure_model(logits, lm.model, lm.cutter, table, lm.batch_size)
        from_hook = mean_kl(lm, table, edited_logits(lm, edit), logits)
        compared[name] = {"nll_delta": effect.nll_delta, "kl": effect.mean(effect.kl), "kl_from_hook": from_hook}
    return compared


@torch.no_grad()
def mean_kl(lm: HookedLM, table: TokenTable, target: Logits, model: Logits) -> float:
    """Compute `KL(target || model)` of the predictions of counted tokens, in nats per token.

    Args:
        lm: the model, for its tokenization.
        table: the text.
        target: the model that the other one should imitate.
        model: the other model.
    """
    total, n_tokens = 0.0, 0
    for tokens, counted, _ in track(lm.counted_batches(table), f"comparing with the hook on {table.corpus}", "batch"):
        both = [lazily(each, tokens)[:, :-1][counted] for each in (target, model)]
        total += float(in_chunks(kl_of_logits, both).sum())
        n_tokens += int(counted.sum())
    return total / max(n_tokens, 1)
