"""How often and how strongly every feature fires on a corpus, in one pass and memory of order d_sae."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.errors import DataError
from mtsae_lens.progress import track
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True, eq=False)
class FiringStatistics:
    """Of every feature, on one corpus, special tokens left out. Of questions, all of question and answer counts, padding does not."""

    corpus: str
    rate: Float[Tensor, " d_sae"]  # share of tokens at which it fires
    mean_activation: Float[Tensor, " d_sae"]  # over the tokens at which it fires; 0 if none
    n_tokens: int

    @property
    def mean(self) -> Float[Tensor, " d_sae"]:
        """Mean activation over all tokens: `rate * mean_activation`."""
        return self.rate * self.mean_activation


def firing_statistics(lm: HookedLM, table: TokenTable) -> FiringStatistics:
    """Compute the firing statistics in one pass over a corpus; sums are kept in float64."""
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
    """Halve a corpus at random: all contexts that begin in a document fall into the same half.

    Of packed contexts a document that began in the context before may have its two ends in different halves.

    Raises:
        DataError: a corpus of one document.
    """
    names = list(dict.fromkeys(table.documents))
    if len(names) < 2:
        raise DataError(f"{table.corpus}: one document cannot be halved; needed contexts of at least two")
    order = torch.randperm(len(names), generator=generator).tolist()
    first = {names[place] for place in order[: len(names) // 2]}
    in_first = torch.tensor([name in first for name in table.documents])
    return table.rows(in_first.nonzero()[:, 0]), table.rows((~in_first).nonzero()[:, 0])


def first_contexts(table: TokenTable, n_contexts: int) -> TokenTable:
    """Return the first contexts of a corpus, all if there are fewer."""
    return table.rows(torch.arange(min(n_contexts, len(table))))
