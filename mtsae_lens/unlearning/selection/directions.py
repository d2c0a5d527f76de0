"""Find directions in the activations themselves, without an SAE."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.splice.hooked_lm import HookedLM


def difference_of_means(
    lm: HookedLM, forget: TokenTable, retain: Sequence[TokenTable]
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_in"]]:
    """Compute `mean(h | forget) - mean(h | retain)` over unmasked positions. Each retain corpus has the same weight.

    Args:
        lm: the model with its SAE.
        forget: the forget text.
        retain: the retain texts.

    Returns:
        The difference `(d_in,)`, and the mean over the retain text `(d_in,)`.
    """
    center = torch.stack([mean_input(lm, table) for table in retain]).mean(dim=0)
    return mean_input(lm, forget) - center, center


def mean_input(lm: HookedLM, table: TokenTable) -> Float[Tensor, " d_in"]:
    """Compute the mean activation at the hook of edits over unmasked positions, with heads flattened.

    Args:
        lm: the model with its SAE.
        table: the text.

    Returns:
        The mean, `(d_in,)`.
    """
    total, n_positions = torch.zeros(()), 0
    for tokens in lm.batches(table):
        rows = lm.target(tokens).flatten(2)[~lm.masked(tokens)]
        total = total.to(rows.device) + rows.sum(dim=0)
        n_positions += len(rows)
    return total / max(n_positions, 1)
