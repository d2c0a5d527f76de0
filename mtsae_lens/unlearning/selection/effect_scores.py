"""Score features by how editing them changes the loss: to first order for all features, exactly for a few."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.unlearning.selection.attribution import single_feature_effects
from mtsae_lens.unlearning.selection.evidence import FeatureScore, SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import keep_eligible
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.statistics import first_contexts

RETAIN_WEIGHT = 3.0  # one nat per token of damage to retain text offsets three nats on forget text


def net_effect(
    forget: Float[Tensor, " feature"], highest_retain: Float[Tensor, " feature"], retain_weight: float
) -> Float[Tensor, " feature"]:
    """Compute `forget - retain_weight * max(0, highest retain effect)`, in nats per token.

    An edit that happens to improve retain text gets no credit for it.

    Args:
        forget: effect on the loss of the forget text, one per feature.
        highest_retain: effect on the retain text that is affected most, one per feature.
        retain_weight: weight of the retain text.

    Returns:
        One score per feature; `-inf` if editing the feature does not raise the loss on the forget text.
    """
    return keep_eligible(forget > 0, forget - retain_weight * highest_retain.clamp(min=0))


@dataclass(frozen=True)
class Attribution:
    """First-order effect of zero ablation on the forget corpus, minus `retain_weight` times the largest effect on a retain corpus.

    Attribution as in Farrell et al. 2024 (arXiv 2410.19278), see `attribution`; the weighting against retain text is ours.
    """

    retain_weight: float = RETAIN_WEIGHT

    name = "attribution"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Score the features by `net_effect`.

        Args:
            evidence: SELECT text of the corpora.
        """
        retain = torch.stack([change.first_order for change in evidence.retain_changes]).amax(dim=0)
        return net_effect(evidence.forget_change.first_order, retain, self.retain_weight)


@dataclass(frozen=True)
class FisherAttribution:
    """`Attribution` with the second-order term, so that effects of opposite sign on different tokens of retain text do not cancel.

    To first order, the effects of ablation on text that the model predicts well cancel between tokens, and a feature that this text
    needs looks harmless. Squared gradients replace the Hessian's diagonal, as in Fisher pruning (Theis et al. 2018, arXiv 1801.05787);
    positions are assumed to be independent.
    """

    retain_weight: float = RETAIN_WEIGHT

    name = "fisher_attribution"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Score the features by `net_effect`.

        Args:
            evidence: SELECT text of the corpora.
        """
        retain = torch.stack([change.second_order for change in evidence.retain_changes]).amax(dim=0)
        return net_effect(evidence.forget_change.second_order, retain, self.retain_weight)


@dataclass(frozen=True)
class SingleEffect:
    """Exact effect of editing each candidate alone, minus `retain_weight` times the largest effect on a retain corpus.

    It is exact for one feature at a time; the effects of several features do not add up exactly.
    """

    candidates: FeatureScore = field(default_factory=Attribution)
    """The score whose best features are tried."""
    n_candidates: int = 64
    multiplier: float = 0.0
    """Multiplier of the `FeatureEdit` that is tried; 0 is zero ablation."""
    n_contexts: int = 16
    """Largest number of contexts per corpus on which each candidate is tried; the cost is one rerun per feature and corpus."""
    retain_weight: float = RETAIN_WEIGHT

    name = "single_effect"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Score the features by `net_effect`; all features except the candidates are `-inf`.

        Args:
            evidence: SELECT text of the corpora.
        """
        score = self.candidates(evidence)
        tried = list(ranking(score)[: self.n_candidates])

        def effects(table: TokenTable) -> Float[Tensor, " feature"]:
            contexts = first_contexts(table, self.n_contexts)
            return single_feature_effects(evidence.lm, contexts, tried, self.multiplier, carried=evidence.carried)

        highest_retain = torch.stack([effects(table) for table in evidence.retain]).amax(dim=0)
        exact = torch.full_like(score, -torch.inf)
        exact[tried] = net_effect(effects(evidence.forget), highest_retain, self.retain_weight)
        return exact
