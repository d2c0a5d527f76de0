"""Would other text, or another SAE, have led to the same choice?"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.feature_indices import check_features
from mtsae_lens.unlearning.selection.evidence import FeatureScore, SelectionEvidence, feature_scores
from mtsae_lens.unlearning.selection.ranking import select


def jaccard(one: Collection[int], other: Collection[int]) -> float:
    """Compute shared features over all features in two sets: 1 if they are the same, 0 if disjoint.

    Raises:
        ConfigError: two empty sets.
    """
    union = set(one) | set(other)
    if not union:
        raise ConfigError("two empty sets of features have no overlap")
    return len(set(one) & set(other)) / len(union)


def chance_jaccard(n_features: int, d_sae: int) -> float:
    """Compute the Jaccard overlap of two random sets of `n_features`, by their expected intersection `n_features^2 / d_sae`."""
    shared = n_features**2 / d_sae
    return shared / (2 * n_features - shared)


def half_overlap(score: FeatureScore, evidence: SelectionEvidence, n_features: int, generator: torch.Generator) -> float:
    """Compute the Jaccard overlap of the top features chosen from each half of the documents; compare with `chance_jaccard`.

    Each half has half the text, so the choice from all of it is steadier than this.

    Raises:
        DataError: a corpus of one document, or too few eligible features in a half.
    """
    one, other = (select(feature_scores(score, half), n_features) for half in evidence.halves(generator))
    return jaccard(one, other)


@dataclass(frozen=True)
class DecoderMatch:
    """How nearly the features chosen in one SAE are found among those chosen in another."""

    cosine: float
    """Mean over chosen features of the best |cosine| with a chosen feature of the other SAE; 1: the same directions."""
    chance: float
    """The same for as many random features of both, mean over draws: the level of a choice that does not repeat."""
    n_draws: int


def decoder_match(
    W_dec: Float[Tensor, "d_sae d_in"],
    chosen: Sequence[int],
    other_W_dec: Float[Tensor, "other_d_sae d_in"],
    other_chosen: Sequence[int],
    generator: torch.Generator,
    *,
    n_draws: int = 100,
) -> DecoderMatch:
    """Compare what two SAEs at one hook, such as two seeds of one architecture, chose: `mean_i max_j |cos(W_dec_i, W_dec'_j)|`.

    Numbers of features have no meaning across SAEs; decoder rows do. Not symmetric unless both sets have one size and match one to one.

    Raises:
        ConfigError: decoders of different widths, a feature that an SAE does not have, or nothing chosen.
    """
    if W_dec.shape[1] != other_W_dec.shape[1]:
        raise ConfigError(
            f"the decoders write {W_dec.shape[1]} and {other_W_dec.shape[1]} dimensions; give two SAEs of one hook"
        )
    if not chosen or not other_chosen:
        raise ConfigError("expected chosen features of both SAEs, got an empty set; choose at least one feature of each")
    check_features(chosen, len(W_dec))
    check_features(other_chosen, len(other_W_dec))
    cosines = (_unit_rows(W_dec) @ _unit_rows(other_W_dec).T).abs()
    found = cosines[list(chosen)][:, list(other_chosen)].amax(dim=1).mean().item()
    chance = 0.0
    for _ in range(n_draws):
        rows = torch.randperm(len(W_dec), generator=generator)[: len(chosen)]
        columns = torch.randperm(len(other_W_dec), generator=generator)[: len(other_chosen)]
        chance += cosines[rows][:, columns].amax(dim=1).mean().item() / n_draws
    return DecoderMatch(found, chance, n_draws)


def _unit_rows(W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
    return torch.nn.functional.normalize(W_dec.detach().float().cpu(), dim=1)
