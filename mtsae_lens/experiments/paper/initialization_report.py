"""The second part of `mtsae paper`: what its table 1 and its steady gradient say about learning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mtsae_lens.experiments.paper.initialization import CHANCE_OF_AN_ORDER, gradients_without_learning, null_distribution
from mtsae_lens.experiments.paper.published import GRAD_NORM_RANGE, SCALE_STD, STD_RATIO, PublishedSettings
from mtsae_lens.experiments.paper.setup import Subject
from mtsae_lens.experiments.paper.verdicts import show
from mtsae_lens.experiments.parts import Part
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import gradient_norms, null_histogram
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.temporal import Padding
from mtsae_lens.trials import run_trials

_NULL_PADDINGS: tuple[Padding, ...] = ("circular", "zero")


def initialisation_part(
    subject: Subject,
    settings: PublishedSettings,
    reproduction: Part,
    *,
    n_draws: int,
    n_contexts: int,
    n_still_batches: int,
    out: Path,
) -> Part:
    """What table 1 and the steady gradient say about learning: the same from a model that learns nothing."""
    record = subject.record | asdict(settings)
    record |= {"n_draws": n_draws, "n_contexts": n_contexts, "n_still_batches": n_still_batches}
    sae = MTTrainingSAEConfig.paper(2, 2)

    def null(padding: Padding) -> dict[str, Any]:
        h = subject.activations(subject.test_table(n_contexts).tokens)
        return null_distribution(h, sae.dilations, sae.kernel_size, padding, n_draws, torch.Generator().manual_seed(0))

    trials: dict[str, Any] = {f"null/{padding}": (lambda padding=padding: null(padding)) for padding in _NULL_PADDINGS}
    trials["gradients"] = lambda: gradients_without_learning(subject, settings, 0, n_still_batches)
    found = run_trials(out / "trials", record, trials, "Initialisation")
    nulls: dict[str, Any] = {padding: found[f"null/{padding}"] for padding in _NULL_PADDINGS}
    runs = list(reproduction.metrics["seeds"].values())
    first, last = (str(dilation) for dilation in (min(SCALE_STD), max(SCALE_STD)))
    ratios = [run["table_1"][last]["std"] / run["table_1"][first]["std"] for run in runs]
    grad_norms = [row["grad_norm"] for row in runs[0]["curve"]]
    table, gradients = _null_table(nulls), found["gradients"]
    apart = max(abs(a - b) / b for a, b in zip(grad_norms, gradients["grad_norms"], strict=False))
    sections = [_null_section(nulls, ratios, n_draws, table), _gradient_section(gradients, grad_norms, apart)]
    return Part("initialisation", {"null": nulls, "gradients": gradients, "gradients_apart": apart}, sections, [table])


def _null_table(nulls: Mapping[str, Any]) -> Table:
    shares = ["falls at every step", "95% interval", "chance", f"ratio <= {STD_RATIO:.3f}", "both", "as even"]
    rows: list[list[Any]] = [
        [
            padding,
            f"{row['monotone_share']:.1%}",
            f"{row['monotone_share_low']:.1%} to {row['monotone_share_high']:.1%}",
            f"{CHANCE_OF_AN_ORDER:.1%}",
            f"{row['share_at_or_below_published']:.1%}",
            f"{row['share_like_published']:.1%}",
            f"{row['share_as_even']:.2%}",
            *(row["mean_std"][str(d)] for d in SCALE_STD),
        ]
        for padding, row in nulls.items()
    ]
    return Table(["padding", *shares, *(f"std, {d}" for d in SCALE_STD)], rows)


def _null_section(nulls: Mapping[str, Any], ratios: list[float], n_draws: int, table: Table) -> Section:
    """`ratios`: of the trained seeds."""
    circular, zero = nulls["circular"], nulls["zero"]
    deviations = (STD_RATIO - circular["ratio_mean"]) / circular["ratio_std"]
    text = (
        f"{n_draws:,} random draws of the taps on this model's activations, nothing trained. Under circular padding the deviation falls at "
        f"every step of the dilation in {circular['monotone_share']:.1%} of draws (any fixed order of four: {CHANCE_OF_AN_ORDER:.1%}), "
        f"and the ratio of the last to the first is {circular['ratio_mean']:.3f} ± {circular['ratio_std']:.3f}: the paper's "
        f"{STD_RATIO:.3f} lies {deviations:+.1f} deviations from the mean. Under zero padding larger dilations read past the ends more often; "
        f"there it falls in {zero['monotone_share']:.1%} of draws, with a ratio of {zero['ratio_mean']:.3f} ± {zero['ratio_std']:.3f}. "
        f"Falling at every step and as far as the paper's: {circular['share_like_published']:.1%} of draws (circular), "
        f"{zero['share_like_published']:.1%} (zero). Falling in steps as even as the paper's, whatever their size: "
        f"{circular['share_as_even']:.2%} and {zero['share_as_even']:.2%}. Dotted lines are the seeds above."
    )
    histogram = null_histogram({padding: row["ratios"] for padding, row in nulls.items()}, STD_RATIO, {"circular": ratios})
    return Section("Table 1 without training", text, table=table, figure=histogram)


def _gradient_section(gradients: Mapping[str, Any], grad_norms: list[float], apart: float) -> Section:
    """`grad_norms`: of the steps that the paper's run takes; `apart`: the largest relative difference of the two."""
    low, high = GRAD_NORM_RANGE
    text = (
        f"The same run with a learning rate of 0, on {len(gradients['grad_norms'])} batches: nothing learns, and the gradient norm stays at "
        f"{show(gradients['mean'])} ± {show(gradients['std'])} ({show(gradients['min'])} to {show(gradients['max'])}). The "
        f"{len(grad_norms)} real steps see the first of these batches; their gradient norms differ from those without "
        f"learning by {apart:.2%} at most, so a steady gradient is no sign of stable learning. The band is the paper's {low} to {high}, of "
        "another model."
    )
    figure = gradient_norms({"learning rate 0": gradients["grad_norms"], "the paper's steps": grad_norms}, GRAD_NORM_RANGE)
    return Section("Gradients without training", text, figure=figure)
