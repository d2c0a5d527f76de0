"""Report when the features of an SAE fire: the section of `mtsae evaluate`."""

from __future__ import annotations

from typing import Any

from mtsae_lens.evaluation.firing_in_time import FiringSummary
from mtsae_lens.reporting.figures import firing_curves
from mtsae_lens.reporting.page import Section, Table


def make_firing_section(found: FiringSummary) -> Section:
    """Make the section of the report: a table of the metrics beside their control, and the curves by lag and by position.

    Args:
        found: when the features fire.
    """
    rows: list[list[Any]] = [["persistence, mean over firings", found.persistence, found.persistence_control]]
    rows += [
        [f"persistence, {q} quantile of features", value, found.persistence_control_quantiles[q]]
        for q, value in found.persistence_quantiles.items()
    ]
    rows.append(["mean run length, in tokens", found.mean_run_length, found.mean_run_length_control])
    rows += [
        [f"autocorrelation at lag {lag}", own, control]
        for lag, own, control in zip(found.lags, found.autocorrelation, found.autocorrelation_control, strict=True)
    ]
    text = (
        f"On {found.n_features:,} features. Persistence: how often a feature that fires also fires at the next token. The control takes the "
        "later token from another context at the same position: it keeps what the position in the context alone explains, which a shuffle "
        "within contexts would not. Runs end at special tokens and at the end of a context. The right panel shows how often features fire "
        f"by position, over their mean rate; the control has the same curve. Quantiles are over the {found.n_frequent:,} features with at "
        "least 64 firings."
    )
    figure = firing_curves(
        found.lags,
        {"features": found.autocorrelation, "control": found.autocorrelation_control},
        found.first_positions,
        found.relative_rate_quantiles,
    )
    return Section("When features fire", text, table=Table(["metric", "features", "control"], rows), figure=figure)
