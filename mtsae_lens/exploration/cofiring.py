"""Find features that fire together, by the phi coefficient of two features over tokens."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.exploration.firings import BatchReading, Firings
from mtsae_lens.exploration.plan import N_COFIRING_TOKENS
from mtsae_lens.progress import track

_PAIRS_AT_ONCE = 2_000_000  # 24 bytes each, several times over


@dataclass(eq=False)
class CofiringSample:
    """Firings, as pairs (token, feature), of a sample of contexts that is spread evenly over the text: about `N_COFIRING_TOKENS` tokens."""

    n_tokens: int = 0
    tokens: list[Int[Tensor, " firing"]] = field(default_factory=list)
    features: list[Int[Tensor, " firing"]] = field(default_factory=list)

    def add(self, first_context: int, every: int, reading: BatchReading, firings: Firings) -> None:
        """Add the sampled contexts of a batch.

        Args:
            first_context: number of the batch's first context, over all corpora.
            every: interval of the sample: contexts whose number is a multiple of it are taken.
            reading: the batch as the SAE reads it.
            firings: its firings.
        """
        n_contexts = reading.kept.shape[0]
        taken = (torch.arange(first_context, first_context + n_contexts, device=reading.kept.device) % every) == 0
        rows_of_taken = (reading.kept & taken.unsqueeze(1)).flatten()
        number = rows_of_taken.long().cumsum(dim=0) - 1 + self.n_tokens
        of_taken = rows_of_taken[firings.row]
        self.tokens.append(number[firings.row[of_taken]].int().cpu())
        self.features.append(firings.feature[of_taken].int().cpu())
        self.n_tokens += int(rows_of_taken.sum())

    def merge(self, other: CofiringSample) -> None:
        """Add the sample of other contexts.

        Args:
            other: their sample; its tokens are numbered after those of this one.
        """
        self.tokens += [tokens + self.n_tokens for tokens in other.tokens]
        self.features += other.features
        self.n_tokens += other.n_tokens

    def strongest(self, d_sae: int, n: int) -> tuple[Float[Tensor, "d_sae n"], Int[Tensor, "d_sae n"]]:
        """Find for each feature the `n` other features with the highest positive phi coefficient.

            phi = (N n_12 - n_1 n_2) / sqrt(n_1 n_2 (N - n_1) (N - n_2))

        Here `N` is the number of tokens, `n_1` and `n_2` count the firings of either feature, and `n_12` counts the tokens on which both
        fire. Only pairs that fire together on some token are compared, because phi of all others is negative or undefined. Time grows with
        the number of such pairs at each token, memory with `d_sae`.

        Args:
            d_sae: number of features.
            n: features listed for each.

        Returns:
            The coefficients, highest first, NaN where a feature has fewer than `n`; and the features. Ties are ordered by number.
        """
        tokens, features = (
            torch.cat([torch.empty(0, dtype=torch.int32), *parts]).numpy() for parts in (self.tokens, self.features)
        )
        shape = (max(self.n_tokens, 1), d_sae)
        fires = scipy.sparse.csr_matrix((np.ones(len(tokens), np.int32), (tokens, features)), shape=shape)
        by_feature = fires.T.tocsr()
        count = np.bincount(features, minlength=d_sae).astype(float)
        spread = np.sqrt(np.clip(count * (self.n_tokens - count), 0, None))
        values = np.full((d_sae, n), np.nan)
        others = np.zeros((d_sae, n), np.int64)
        for group in track(_groups(by_feature, np.diff(fires.indptr)), "finding what fires together", "group"):
            both = (by_feature[group] @ fires).tocoo()
            row, other = both.row + group.start, both.col
            with np.errstate(divide="ignore", invalid="ignore"):  # a feature that fires everywhere has no phi
                phi = (self.n_tokens * both.data - count[row] * count[other]) / (spread[row] * spread[other])
            known = (phi > 0) & np.isfinite(phi) & (row != other)
            row, other, phi = row[known], other[known], phi[known]
            order = np.lexsort((other, -phi, row))
            row, other, phi = row[order], other[order], phi[order]
            rank = np.arange(len(row)) - np.searchsorted(row, row)
            listed = rank < n
            values[row[listed], rank[listed]] = phi[listed]
            others[row[listed], rank[listed]] = other[listed]
        return torch.from_numpy(values).float(), torch.from_numpy(others)


def _groups(by_feature: scipy.sparse.csr_matrix, n_firing: np.ndarray) -> list[slice]:
    """Split the features into groups with about `_PAIRS_AT_ONCE` pairs each; a feature with more pairs is in a separate group."""
    at_tokens = np.concatenate([[0], np.cumsum(n_firing[by_feature.indices], dtype=np.int64)])
    met = at_tokens[by_feature.indptr]
    d_sae, edges = len(met) - 1, [0]
    while edges[-1] < d_sae:
        end = int(np.searchsorted(met, met[edges[-1]] + _PAIRS_AT_ONCE, side="right")) - 1
        edges.append(min(max(end, edges[-1] + 1), d_sae))
    return [slice(start, end) for start, end in itertools.pairwise(edges)]


def choose_sampling_interval(n_tokens: int) -> int:
    """Return the interval at which contexts are sampled, so that about `N_COFIRING_TOKENS` tokens are.

    Args:
        n_tokens: tokens of the whole text.
    """
    return max(1, round(n_tokens / N_COFIRING_TOKENS))
