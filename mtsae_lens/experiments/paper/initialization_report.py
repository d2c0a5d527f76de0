"""Report the second part of `mtsae paper`: table 1 and the gradient of a model that does not learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtsae_lens.experiments.paper.initialization import CHANCE_OF_AN_ORDER
from mtsae_lens.experiments.paper.published import GRAD_NORM_RANGE, SCALE_STD, STD_RATIO
from mtsae_lens.experiments.paper.results import Initialization, NullDistribution, PaperRun, ZeroRateGradients
from mtsae_lens.experiments.paper.spreads import show_number
from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import gradient_norms, null_histogram
from mtsae_lens.sae.temporal import Padding


def report_initialization(found: Initialization, runs: Sequence[PaperRun]) -> PartReport:
    """Compare a model that does not learn with the paper's run.

    Args:
        found: what was measured without learning.
        runs: the paper's run, one per seed.
    """
    first, last = (str(dilation) for dilation in (min(SCALE_STD), max(SCALE_STD)))
    ratios = [run.table_1[last].std / run.table_1[first].std for run in runs]
    grad_norms = [step.grad_norm for step in runs[0].curve]
    table = _null_table(found.null)
    sections = [
        _null_section(found.null, ratios, table),
        _gradient_section(found.gradients, grad_norms, found.gradients_apart),
    ]
    return PartReport(sections, [table])


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


def _null_section(nulls: Mapping[Padding, NullDistribution], ratios: Sequence[float], table: Table) -> Section:
    """Make the section on untrained taps; `ratios` come from the trained seeds."""
    text = (
        f"{next(iter(nulls.values())).n_draws:,} random draws of untrained taps on this model's activations. Falls at every step: share "
        "of draws in which the standard deviation falls with every larger dilation; chance is that of any fixed order of four. Ratio: "
        f"the last standard deviation over the first, {STD_RATIO:.3f} in the paper. Both: it falls at every step, and as far as in the "
        "paper. As even: it falls in steps as even as the paper's, whatever their size. With zero padding, larger dilations read beyond "
        "the ends of a context more often. Dotted lines are the seeds above."
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
