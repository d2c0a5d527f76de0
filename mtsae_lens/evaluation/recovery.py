"""Measure how well an SAE recovers planted features, next to the best linear detector.

An SAE's features are matched one to one to the planted ones by the correlation of their activations (Hungarian algorithm, on SELECT). A
firing threshold is chosen for each match (on SELECT), and everything is scored on separate TEST sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mtsae_lens.data.planted import PlantedFeatures, PlantedSample, flatten_positions
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.temporal import gather_reads
from mtsae_lens.upstream import mean_correlation_coefficient

_SELECT, _TEST = 1, 2  # generator seeds; training blocks use random 32-bit seeds


@dataclass(frozen=True)
class PlantedSplits:
    """Two samples of the same planted features: SELECT for matching and thresholds, TEST for scores."""

    features: PlantedFeatures
    n_sequences: int = 128

    @cached_property
    def select(self) -> PlantedSample:
        """Return the sample for matching and thresholds."""
        return self.features.sample(self.n_sequences, torch.Generator().manual_seed(_SELECT))

    @cached_property
    def test(self) -> PlantedSample:
        """Return the sample for scores."""
        return self.features.sample(self.n_sequences, torch.Generator().manual_seed(_TEST))


def best_threshold(scores: Float[Tensor, " row"], truth: Bool[Tensor, " row"]) -> float:
    """Find the threshold that maximizes the F1 of `scores > threshold`.

    Args:
        scores: one score per row.
        truth: mask of the true rows.

    Returns:
        A threshold between two scores.
    """
    order = scores.argsort(descending=True)
    ranked = scores[order]
    hits = truth[order].cumsum(dim=0)
    n_called = torch.arange(1, len(scores) + 1, device=scores.device)
    f1 = 2 * hits / (n_called + truth.sum())
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # no threshold separates equal scores
    best = int(f1.argmax())
    called = float(ranked[best])
    if best + 1 == len(ranked):
        return called - max(1.0, abs(called))
    lower = float(ranked[best + 1])
    middle = float(ranked.new_tensor((called + lower) / 2))
    return middle if middle < called else lower  # there is no number between adjacent floats


def f1_score(called: Bool[Tensor, "*row"], truth: Bool[Tensor, "*row"]) -> float:
    """Compute `F1 = 2 TP / (called + true)`, between 0 and 1. Calling every row gives `2 p / (1 + p)` at a rate of p.

    Args:
        called: mask of the detected rows.
        truth: mask of the true rows.
    """
    return float(2 * (called & truth).sum() / (called.sum() + truth.sum()).clamp(min=1))


def match_features(
    feature_acts: Float[Tensor, "row d_sae"], planted_acts: Float[Tensor, "row feature"]
) -> tuple[Int[Tensor, " feature"], Float[Tensor, "feature d_sae"]]:
    """Find the one-to-one match that maximizes the summed Pearson correlation.

    Args:
        feature_acts: activations of the SAE's features.
        planted_acts: activations of the planted features.

    Returns:
        The index of the SAE's feature matched to each planted one, and all correlations `(feature, d_sae)`; those of a dead feature are 0.
    """

    def standard(x: Tensor) -> Tensor:
        centered = x - x.mean(dim=0)
        return centered / centered.norm(dim=0).clamp(min=1e-9)

    correlations = standard(planted_acts).T @ standard(feature_acts)
    _, matched = linear_sum_assignment(-correlations.cpu().numpy())
    return torch.from_numpy(matched), correlations


@dataclass(frozen=True, eq=False)
class Recovery:
    """The scores of every planted feature, and three numbers for all of them."""

    matched: Int[Tensor, " feature"]
    """The SAE's feature matched to each planted one."""
    correlation: Float[Tensor, " feature"]
    """Pearson correlation of the two activations on TEST; 1 is perfect, 0 chance."""
    f1: Float[Tensor, " feature"]
    """F1 of detection on TEST; 1 is perfect."""
    onset_recall: Float[Tensor, " feature"]
    """Share of planted onsets at which the matched feature fires at exactly that position."""
    cosine: Float[Tensor, " feature"]
    """Cosine between the decoder row and the planted direction."""
    mcc: float
    """SAELens's mean correlation coefficient: mean |cosine| under the best one-to-one match of directions, independent of firing."""
    explained_variance: float
    """Centered R^2 on TEST."""
    explained_variance_clean: float
    """R^2 relative to the activations without noise."""


@torch.no_grad()
def recover(sae: SAE[Any], splits: PlantedSplits) -> Recovery:
    """Match an SAE's features to the planted ones and score them; see `Recovery` for the scores.

    Args:
        sae: the SAE.
        splits: sequences to match on and to score on.

    Raises:
        ConfigError: the SAE has fewer features than are planted.
    """
    dictionary = splits.features.dictionary
    _, planted_select = flatten_positions(splits.select)
    h, planted = flatten_positions(splits.test)
    encoded = [sae.encode(sample.h.to(sae.device)) for sample in (splits.select, splits.test)]
    acts_select, acts = (x[:, 1:].flatten(0, 1).cpu() for x in encoded)
    if acts_select.shape[1] < planted.shape[1]:
        raise ConfigError(
            f"expected an SAE with at least {planted.shape[1]} features, one for each planted feature, got {acts_select.shape[1]}; train a "
            "wider SAE"
        )
    matched, _ = match_features(acts_select, planted_select)
    _, correlations = match_features(acts, planted)
    truth, onsets = planted > 0, splits.test.onsets[:, 1:].flatten(0, 1)
    f1, onset_recall = [], []
    for feature, match in enumerate(matched):
        # A feature that does not fire detects nothing, even if calling every row gave a higher F1.
        threshold = max(0.0, best_threshold(acts_select[:, match], planted_select[:, feature] > 0))
        called = acts[:, match] > threshold
        f1.append(f1_score(called, truth[:, feature]))
        onset_recall.append(float(called[onsets[:, feature]].float().mean()))
    directions = dictionary.feature_vectors
    sae_out, W_dec = sae.decode(encoded[1])[:, 1:].flatten(0, 1).cpu(), sae.W_dec.cpu()
    return Recovery(
        matched=matched,
        correlation=correlations[torch.arange(len(matched)), matched],
        f1=torch.tensor(f1),
        onset_recall=torch.tensor(onset_recall),
        cosine=torch.nn.functional.cosine_similarity(directions, W_dec[matched], dim=-1),
        mcc=mean_correlation_coefficient(W_dec, directions),
        explained_variance=explained_variance(h, sae_out),
        explained_variance_clean=explained_variance(dictionary(planted), sae_out),
    )


def explained_variance(target: Float[Tensor, "row d_in"], sae_out: Float[Tensor, "row d_in"]) -> float:
    """Compute `1 - sum ||h - h'||^2 / sum ||h - mean(h)||^2`: 1 is perfect, 0 is as good as the mean.

    Args:
        target: activations h.
        sae_out: reconstructions h'.
    """
    return float(1 - (target - sae_out).pow(2).sum() / (target - target.mean(dim=0)).pow(2).sum())


@torch.no_grad()
def linear_oracle(splits: PlantedSplits, offsets: Sequence[int] = (0,)) -> Float[Tensor, " feature"]:
    """Measure the F1 on TEST of a supervised linear probe (oracle) that is fitted on SELECT: Fisher's discriminant on the positions
    that are read.

    With `offsets=(0,)` this is about the best that features of a pointwise SAE can reach, because each of them thresholds one
    projection of one position. With the `read_offsets` of an MTSAE, it is the best that a linear encoder of that context can reach.

    Args:
        splits: sequences to fit on and to score on.
        offsets: positions that the probe reads, relative to the current one.

    Returns:
        One F1 per planted feature.
    """

    def read(sample: PlantedSample) -> Tensor:
        n_rows = sample.h.shape[0] * sample.h.shape[1]
        positions = torch.arange(n_rows).view(sample.h.shape[:2])[:, 1:].flatten()
        return gather_reads(sample.h, sample.masked, offsets, "causal")(positions)

    x_select, x = read(splits.select), read(splits.test)
    truth_select, truth = (flatten_positions(sample)[1] > 0 for sample in (splits.select, splits.test))
    covariance = torch.cov(x_select.T)
    ridge = 1e-4 * covariance.diagonal().mean() * torch.eye(len(covariance))
    present, absent = (
        (mask.float().T @ x_select) / mask.sum(dim=0).clamp(min=1)[:, None] for mask in (truth_select, ~truth_select)
    )
    weights = torch.linalg.solve(covariance + ridge, (present - absent).T)
    f1 = []
    for feature in range(truth.shape[1]):
        threshold = best_threshold(x_select @ weights[:, feature], truth_select[:, feature])
        f1.append(f1_score(x @ weights[:, feature] > threshold, truth[:, feature]))
    return torch.tensor(f1)
