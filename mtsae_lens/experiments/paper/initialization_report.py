"""Report the second part of `mtsae paper`: table 1 and the gradient of a model that does not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mtsae_lens.experiments.paper.initialization import CHANCE_OF_AN_ORDER, gradients_without_learning, null_distribution
from mtsae_lens.experiments.paper.published import GRAD_NORM_RANGE, SCALE_STD, STD_RATIO, PublishedSettings
from mtsae_lens.experiments.paper.results import NullDistribution, PaperRun, ZeroRateGradients
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.spreads import show_number
from mtsae_lens.experiments.parts import Part, as_json
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import gradient_norms, null_histogram
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.temporal import Padding
from mtsae_lens.trials import run_trials

_NULL_PADDINGS: tuple[Padding, ...] = ("circular", "zero")


def initialization_part(
    setup: PaperSetup,
    settings: PublishedSettings,
    runs: Sequence[PaperRun],
    *,
    n_draws: int,
    n_contexts: int,
    n_still_batches: int,
    out: Path,
) -> Part:
    """Measure table 1 and the gradient of a model that does not learn, and compare them with the paper's run.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        runs: the paper's run, one per seed.
        n_draws: random draws of untrained taps.
        n_contexts: held-out contexts whose activations the taps read.
        n_still_batches: number of batches with a learning rate of 0.
        out: folder of the trials.
    """
    record = setup.record | asdict(settings)
    record |= {"n_draws": n_draws, "n_contexts": n_contexts, "n_still_batches": n_still_batches}
    sae = MTTrainingSAEConfig.paper(2, 2)

    def null(padding: Padding) -> NullDistribution:
        h = setup.activations(setup.test_table(n_contexts).tokens)
        return null_distribution(h, sae.dilations, sae.kernel_size, padding, n_draws, torch.Generator().manual_seed(0))

    trials = {f"null/{padding}": as_json(partial(null, padding)) for padding in _NULL_PADDINGS}
    trials["gradients"] = as_json(partial(gradients_without_learning, setup, settings, 0, n_still_batches))
    found = run_trials(out / "trials", record, trials, "Initialization")
    nulls = {padding: NullDistribution.from_json(found[f"null/{padding}"]) for padding in _NULL_PADDINGS}
    gradients = ZeroRateGradients.from_json(found["gradients"])
    first, last = (str(dilation) for dilation in (min(SCALE_STD), max(SCALE_STD)))
    ratios = [run.table_1[last].std / run.table_1[first].std for run in runs]
    grad_norms = [step.grad_norm for step in runs[0].curve]
    apart = max(abs(a - b) / b for a, b in zip(grad_norms, gradients.grad_norms, strict=False))
    table = _null_table(nulls)
    sections = [_null_section(nulls, ratios, n_draws, table), _gradient_section(gradients, grad_norms, apart)]
    metrics = {
        "null": {padding: null_of.to_json() for padding, null_of in nulls.items()},
        "gradients": gradients.to_json(),
        "gradients_apart": apart,
    }
    return Part("initialisation", metrics, sections, [table])


def _null_table(nulls: Mapping[Padding, NullDistribution]) -> Table:
    shares = ["falls at every step", "95% interval", "chance", f"ratio <= {STD_RATIO:.3f}", "both", "as even", "ratio"]
    rows: list[list[Any]] = [
        [
            padding,
            f"{null.monotone_share:.1%}",
            f"{null.monotone_share_low:.1%} to {null.monotone_share_high:.1%}",
            f"{CHANCE_OF_AN_ORDER:.1%}",
            f"{null.share_at_or_below_published:.1%}",
            f"{null.share_like_published:.1%}",
            f"{null.share_as_even:.2%}",
            f"{null.ratio_mean:.3f} ± {null.ratio_std:.3f}",
            *(null.mean_std[str(d)] for d in SCALE_STD),
        ]
        for padding, null in nulls.items()
    ]
    return Table(["padding", *shares, *(f"std, {d}" for d in SCALE_STD)], rows)


def _null_section(nulls: Mapping[Padding, NullDistribution], ratios: Sequence[float], n_draws: int, table: Table) -> Section:
    """Make the section on untrained taps; `ratios` come from the trained seeds."""
    text = (
        f"{n_draws:,} random draws of untrained taps on this model's activations. Falls at every step: share of draws in which the standard "
        "deviation falls with every larger dilation; chance is that of any fixed order of four. Ratio: the last standard deviation over "
        f"the first, {STD_RATIO:.3f} in the paper. Both: it falls at every step, and as far as in the paper. As even: it falls in steps as "
        "even as the paper's, "
        "whatever their size. With zero padding, larger dilations read beyond the ends of a context more often. Dotted lines are the seeds "
        "above."
    )
    histogram = null_histogram({padding: null.ratios for padding, null in nulls.items()}, STD_RATIO, {"circular": ratios})
    return Section("Table 1 without training", text, table=table, figure=histogram)


def _gradient_section(gradients: ZeroRateGradients, grad_norms: Sequence[float], apart: float) -> Section:
    """Make the section on gradients.

    Args:
        gradients: gradient norms with a learning rate of 0.
        grad_norms: gradient norms of the steps of the paper's run, which reads the first of the same batches.
        apart: largest relative difference between the two.
    """
    low, high = GRAD_NORM_RANGE
    values = {
        "batches with a learning rate of 0": f"{len(gradients.grad_norms)}",
        "their gradient norm, mean ± std": f"{_show(gradients.mean)} ± {_show(gradients.std)}",
        "their gradient norm, lowest to highest": f"{_show(gradients.min)} to {_show(gradients.max)}",
        "steps of the paper's run": f"{len(grad_norms)}",
        "largest difference of their gradient norms from those without learning": f"{apart:.2%}",
    }
    text = (
        "The same run with a learning rate of 0, in which no weight changes, compared with the paper's run, which has the first of the "
        f"same batches. The band is the paper's {low} to {high}, from a different language model."
    )
    figure = gradient_norms({"learning rate 0": gradients.grad_norms, "the paper's steps": grad_norms}, GRAD_NORM_RANGE)
    return Section("Gradients without training", text, table=Table(["measure", "value"], list(values.items())), figure=figure)


def _show(value: float | None) -> str:
    return "not defined" if value is None else show_number(value)
