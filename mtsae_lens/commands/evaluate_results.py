"""What an evaluation measures: the metrics and their meanings, the record of their values, and how both are shown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from typing_extensions import override

from mtsae_lens.evaluation.bits import BITS_MEANINGS
from mtsae_lens.evaluation.firing_in_time import FiringSummary
from mtsae_lens.evaluation.memory import MEMORY_MEANINGS
from mtsae_lens.evaluation.transcoding import TRANSCODING_MEANINGS
from mtsae_lens.records import MaybeNaN, Record
from mtsae_lens.reporting.page import Table
from mtsae_lens.sae.collapse import FiringCounts

METRIC_MEANINGS: dict[str, str] = {
    "explained_variance": "centered R^2 of the reconstruction; 1 is perfect, 0 as good as the mean",
    "explained_variance_without_massive": "the same without the massive_tokens, which outweigh all others",
    "massive_tokens": "tokens whose activations are over ten times as long as the median (attention sinks)",
    "l0": "mean number of features active at a token; lower is sparser",
    "l1": "sum of feature activations at a token",
    "mse": "squared error summed over dimensions; 0 is perfect",
    "cossim": "cosine of activation and reconstruction; 1 is perfect",
    "ce_loss_score": "share of the model's loss recovered against zero ablation; 1 is perfect, 0 as bad as zeros",
    "ce_loss_without_sae": "the model's own loss, nats per token",
    "ce_loss_with_sae": "the model's loss with the reconstruction in place of the activations, nats per token",
    "ce_loss_with_ablation": "the model's loss with the activations set to zero, nats per token",
    "kl_div_score": "share of the KL divergence of zero ablation that the reconstruction avoids; 1 is perfect, 0 as bad as zeros",
    "kl_div_with_sae": "KL divergence of the predictions with the reconstruction from the model's own, nats per token; 0 is perfect",
    "kl_div_with_ablation": "KL divergence of the predictions with zero ablation from the model's own, nats per token",
    "l2_ratio": "norm of the reconstruction over norm of the activation; 1 is unbiased",
    "relative_reconstruction_bias": "scale of the reconstruction; 1 is unbiased, below 1 it is too small",
    "dead_features": "features that fire on none of the n_tokens tokens; 0 is best, and on few tokens the count is too high",
    "always_on_features": "features that fire on more than half of the tokens; 0 is best, and a number near L0 means a collapsed SAE",
    "n_features": "features of the SAE",
    "n_tokens": "tokens in the measurement, without special tokens and position 0",
    "n_contexts": "contexts in the measurement",
    "future_leak": "share of the feature activation that depends on later tokens; 0 is causal",
}


@dataclass(frozen=True)
class ScaleResult(Record):
    """What the scales of a temporal SAE explain."""

    predictivity: dict[str, MaybeNaN]
    """R^2 of the features from scales (`ScalePredictivity.summary`)."""
    context_share: dict[str, MaybeNaN]
    """Quantiles over features of the share of context in their lift."""


@dataclass(frozen=True)
class EvaluateResult(Record):
    """What an evaluation measured. In JSON the metrics stand beside the other entries, not in a separate entry."""

    metrics: dict[str, int | float | None]
    """By the names of `METRIC_MEANINGS`; None where a value is not finite."""
    warning: str | None = None
    """What is wrong and what to do, if the SAE looks collapsed."""
    scales: ScaleResult | None = None
    """For a temporal SAE, if there was enough text."""
    firing: FiringSummary | None = None
    """When the features fire, if it was measured."""

    @override
    def to_json(self) -> dict[str, Any]:
        content = super().to_json()
        metrics: dict[str, Any] = content.pop("metrics")
        return metrics | content

    @classmethod
    @override
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        others = {name: content[name] for name in ("warning", "scales", "firing") if name in content}
        metrics = {name: value for name, value in content.items() if name not in others and name != "provenance"}
        return super().from_json({"metrics": metrics, **others})


def metrics_table(columns: Mapping[str, Mapping[str, float | None]]) -> Table:
    """Make the table of metrics, one column per SAE, with the meaning of each metric.

    Args:
        columns: metrics by SAE.
    """
    meanings = METRIC_MEANINGS | MEMORY_MEANINGS | BITS_MEANINGS | TRANSCODING_MEANINGS
    names = [name for name in meanings if any(name in column for column in columns.values())]
    rows = [[name, *(column.get(name) for column in columns.values()), meanings[name]] for name in names]
    return Table(["metric", *columns, "meaning"], rows)


def collapse_warning(measured: Mapping[str, float]) -> str | None:
    """Return one line that says that the SAE looks collapsed and what to do; None if it does not.

    Args:
        measured: the metrics of the SAE.
    """
    n_features, n_silent, n_always_on = (int(measured[name]) for name in ("n_features", "dead_features", "always_on_features"))
    return FiringCounts(n_features, n_silent, n_always_on, measured["l0"]).warning


def finite_or_none(measured: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics that JSON can hold: values that are not finite, such as 0 / 0 of an SAE that is dead on a text, become None.

    Args:
        measured: metrics by name.
    """
    return {name: value if math.isfinite(value) else None for name, value in measured.items()}


def fidelity_summary(measured: Mapping[str, float | None]) -> str:
    """Describe in words how much of the activations and of the model's loss an SAE keeps, and how many of its features are dead.

    Args:
        measured: the metrics of one SAE, under the names of `METRIC_MEANINGS`; None for a value that is not finite.
    """

    def share(name: str) -> str:
        value = measured.get(name)
        return "an unknown share" if value is None else f"{value:.1%}"

    typical = ""
    if measured.get("massive_tokens"):
        typical = (
            f" ({share('explained_variance_without_massive')} without the {measured['massive_tokens']:,} tokens that are over ten times "
            "as long as the median)"
        )
    return (
        f"explains {share('explained_variance')} of the variance of held-out activations{typical} and keeps "
        f"{share('ce_loss_score')} of what the model loses when they are set to zero, with {measured['l0']:.3g} features active at a token; "
        f"{measured['dead_features']:,} of {measured['n_features']:,} features never fired"
    )
