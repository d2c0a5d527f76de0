"""Compute how often and how strongly every feature fires on a corpus, in one pass with memory proportional to d_sae."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True, eq=False)
class FiringStatistics:
    """Firing statistics of every feature on one corpus, without special tokens. For questions, the question and the answer are used,
    padding is not.
    """

    corpus: str
    rate: Float[Tensor, " d_sae"]  # share of tokens at which it fires
    mean_activation: Float[Tensor, " d_sae"]  # over the tokens at which it fires; 0 if it never fires
    n_tokens: int

    @property
    def mean(self) -> Float[Tensor, " d_sae"]:
        """Return the mean activation over all tokens: `rate * mean_activation`."""
        return self.rate * self.mean_activation


def firing_statistics(lm: HookedLM, table: TokenTable) -> FiringStatistics:
    """Compute the firing statistics in one pass over a corpus, with sums in float64.

    Args:
        lm: the model with its SAE.
        table: the text.
    """
    fired, total = torch.zeros(2, lm.sae.cfg.d_sae, dtype=torch.float64)
    n_tokens = 0
    for tokens in track(lm.batches(table), f"counting firings on {table.corpus}", "batch"):
        feature_acts = lm.feature_acts(tokens)[~lm.masked(tokens)].clamp(min=0)
        fired += (feature_acts > 0).sum(dim=0).cpu()
        total += feature_acts.sum(dim=0).cpu().double()
        n_tokens += feature_acts.shape[0]
    means = (fired / max(n_tokens, 1), total / fired.clamp(min=1))
    rate, mean_activation = (value.float().to(lm.sae.device) for value in means)
    return FiringStatistics(table.corpus, rate, mean_activation, n_tokens)


def document_halves(table: TokenTable, generator: torch.Generator) -> tuple[TokenTable, TokenTable]:
    """Halve a corpus at random. All contexts that begin in a document go to the same half.

    In packed contexts, a document that began in the previous context may have its two ends in different halves.

    Args:
        table: the contexts.
        generator: source of randomness.

    Raises:
        DataError: the corpus has only one document.
    """
    names = list(dict.fromkeys(table.documents))
    if len(names) < 2:
        raise DataError(f"{table.corpus}: expected contexts of at least two documents, got one; give more text")
    order = torch.randperm(len(names), generator=generator).tolist()
    first = {names[place] for place in order[: len(names) // 2]}
    in_first = torch.tensor([name in first for name in table.documents])
    return table.rows(in_first.nonzero()[:, 0]), table.rows((~in_first).nonzero()[:, 0])


def first_contexts(table: TokenTable, n_contexts: int) -> TokenTable:
    """Return the first contexts of a corpus, or all of them if there are fewer.

    Args:
        table: the contexts.
        n_contexts: number of contexts.
    """
    return table.rows(torch.arange(min(n_contexts, len(table))))
