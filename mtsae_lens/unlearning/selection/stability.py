"""Measure whether other text, or another SAE, would have led to the same choice of features."""

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
    """Compute the Jaccard overlap of two sets: shared features divided by all features. It is 1 if they are equal, 0 if disjoint.

    Args:
        one: feature indices.
        other: feature indices.

    Raises:
        ConfigError: both sets are empty.
    """
    union = set(one) | set(other)
    if not union:
        raise ConfigError("expected features in at least one of the two sets, got two empty sets; choose features first")
    return len(set(one) & set(other)) / len(union)


def chance_jaccard(n_features: int, d_sae: int) -> float:
    """Compute the Jaccard overlap of two random sets of features, from their expected intersection `n_features^2 / d_sae`.

    Args:
        n_features: features in each set.
        d_sae: number of features of the SAE.
    """
    shared = n_features**2 / d_sae
    return shared / (2 * n_features - shared)


def half_overlap(score: FeatureScore, evidence: SelectionEvidence, n_features: int, generator: torch.Generator) -> float:
    """Compute the Jaccard overlap of the top features chosen from each half of the documents; compare with `chance_jaccard`.

    Each half has half the text, so the choice from all of it is more stable than this.

    Args:
        score: the score.
        evidence: SELECT text of the corpora.
        n_features: features chosen from each half.
        generator: source of randomness of the split.

    Raises:
        DataError: a corpus has only one document, or a half has too few eligible features.
    """
    one, other = (select(feature_scores(score, half), n_features) for half in evidence.halves(generator))
    return jaccard(one, other)


@dataclass(frozen=True)
class DecoderMatch:
    """How closely the features chosen in one SAE match those chosen in another."""

    cosine: float
    """Mean over chosen features of the highest |cosine| with a chosen feature of the other SAE; 1 for the same directions."""
    chance: float
    """The same for as many random features of both SAEs, averaged over draws: the value of a choice that is not reproducible."""
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
    """Compare the choices in two SAEs at one hook, such as two seeds of one architecture: `mean_i max_j |cos(W_dec_i, W_dec'_j)|`.

    Feature indices have no meaning across SAEs, but decoder rows do. The result is symmetric only if the sets have equal size and match
    one to one.

    Args:
        W_dec: decoder of the first SAE.
        chosen: features chosen in the first SAE.
        other_W_dec: decoder of the second SAE.
        other_chosen: features chosen in the second SAE.
        generator: source of randomness of the random features.
        n_draws: number of random draws.

    Raises:
        ConfigError: the decoders have different widths, an SAE does not have a feature, or nothing was chosen.
    """
    if W_dec.shape[1] != other_W_dec.shape[1]:
        raise ConfigError(
            f"expected decoders of one width, got {W_dec.shape[1]} and {other_W_dec.shape[1]} dimensions; give two SAEs of one hook"
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
