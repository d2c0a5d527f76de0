"""Which features fire together: the phi coefficient of two features over tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.exploration.firings import BatchReading, Firings
from mtsae_lens.exploration.plan import N_COFIRING_TOKENS

_FEATURES_AT_ONCE = 256


@dataclass
class CofiringSample:
    """Firings of whole contexts spread evenly over the text, about `N_COFIRING_TOKENS` tokens of it, as (token, feature)."""

    n_tokens: int = 0
    tokens: list[Int[Tensor, " firing"]] = field(default_factory=list)
    features: list[Int[Tensor, " firing"]] = field(default_factory=list)

    def add(self, first_context: int, every: int, reading: BatchReading, firings: Firings) -> None:
        """Add each `every`-th context, counted over all corpora."""
        n_contexts = reading.kept.shape[0]
        taken = (torch.arange(first_context, first_context + n_contexts, device=reading.kept.device) % every) == 0
        rows_of_taken = (reading.kept & taken.unsqueeze(1)).flatten()
        number = rows_of_taken.long().cumsum(dim=0) - 1 + self.n_tokens
        of_taken = rows_of_taken[firings.row]
        self.tokens.append(number[firings.row[of_taken]].int().cpu())
        self.features.append(firings.feature[of_taken].int().cpu())
        self.n_tokens += int(rows_of_taken.sum())

    def strongest(self, d_sae: int, n: int) -> tuple[Float[Tensor, "d_sae n"], Int[Tensor, "d_sae n"]]:
        """For each feature the `n` others with the highest phi, `(N n_11 - n_1 n_2) / sqrt(n_1 n_2 (N - n_1) (N - n_2))`, and its values.

        NaN for a feature that does not fire in the sample.
        """
        tokens, features = (
            torch.cat([torch.empty(0, dtype=torch.int32), *parts]).numpy() for parts in (self.tokens, self.features)
        )
        fires = scipy.sparse.csr_matrix(
            (torch.ones(len(tokens)).numpy(), (tokens, features)), shape=(max(self.n_tokens, 1), d_sae)
        )
        by_feature = fires.T.tocsr()
        count = torch.from_numpy(np.bincount(features, minlength=d_sae)).double()
        spread = (count * (self.n_tokens - count)).clamp(min=0).sqrt()
        values, indices = [], []
        for start in range(0, d_sae, _FEATURES_AT_ONCE):
            chunk = slice(start, min(start + _FEATURES_AT_ONCE, d_sae))
            both = torch.from_numpy((by_feature[chunk] @ fires).toarray()).double()
            phi = (self.n_tokens * both - count[chunk, None] * count) / (spread[chunk, None] * spread)
            phi = phi.nan_to_num(nan=-torch.inf)
            phi[torch.arange(len(phi)), torch.arange(chunk.start, chunk.stop)] = -torch.inf
            value, index = phi.topk(min(n, d_sae), dim=1)
            values.append(value.masked_fill(value == -torch.inf, torch.nan))
            indices.append(index)
        return torch.cat(values).float(), torch.cat(indices)


def sampling_interval(n_tokens: int) -> int:
    """Every how many-th context is sampled, given the text's tokens."""
    return max(1, round(n_tokens / N_COFIRING_TOKENS))
