"""Report the first part of `mtsae paper`: the paper's own run, compared with the numbers that the paper reports."""

from __future__ import annotations

from collections.abc import Sequence

from mtsae_lens.experiments.paper.measures import METRIC_TITLES
from mtsae_lens.experiments.paper.published import METRICS, SCALE_MEAN, SCALE_STD, PublishedSettings
from mtsae_lens.experiments.paper.results import Implied, Metrics, PaperRun, Reproduction
from mtsae_lens.experiments.paper.spreads import show_number, show_spread
from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import seed_panels, step_curves

_CURVE_TITLES = {
    "overall_loss": "loss",
    "l2_loss": "reconstruction",
    "l1_loss": "0.04 x L1",
    "separation_loss": "0.1 x separation",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}


def report_reproduction(found: Reproduction, settings: PublishedSettings, dataset: str) -> PartReport:
    """Compare the paper's run with the numbers that the paper reports.

    Args:
        found: the runs.
        settings: settings of the paper.
        dataset: the text.
    """
    runs = found.runs
    table_1, metrics_table = _table_1(runs), _metrics_table(runs, found.n_steps)
    trained, untrained = [run.trained for run in runs], [run.untrained for run in runs]
    curves = {
        name.replace("_", " "): {key: [getattr(step, key) for step in run.curve] for key in ("step", *_CURVE_TITLES)}
        for name, run in found.seeds.items()
    }
    sections = [
        Section(
            "Table 1: convolution by dilation",
            f"Mean and standard deviation over positions and dimensions, after {found.n_steps} steps, on held-out text of {dataset}; "
            f"{len(runs)} seeds. The standard deviation falls at every dilation in {found.seeds_that_fall} of {len(runs)} seeds. "
            "The values depend on the size of this model's activations.",
            table=table_1,
        ),
        Section(
            "Figure 1a: losses and gradient norm by step",
            f"{settings.training_tokens:,} tokens in batches of {settings.batch_size_tokens:,} are {found.n_steps} steps: the tokens were used "
            f"up, and training did not end early. The learning rate never exceeds {found.largest_lr:.2g}, which is "
            f"{found.largest_lr / settings.lr:.2%} of its peak.",
            figure=step_curves(curves, _CURVE_TITLES),
        ),
        Section(
            "Figure 1b: the paper's metrics by seed",
            "On held-out text, with a point for each seed and a dash at the mean. Dashed lines are the paper's values, from a different "
            "language model.",
            figure=seed_panels(
                {"untrained": _by_metric(untrained), "trained": _by_metric(trained)},
                {name: METRIC_TITLES[name] for name in METRICS},
                METRICS,
            ),
        ),
        Section(
            "The paper's metrics and ours",
            "Mean ± std (range) over seeds. The paper gives neither the width nor the initial encoder weights. Here d_sae is "
            f"{runs[0].d_sae:,}, the encoder of the first scale starts as the transposed decoder, and the encoders of the others start at "
            "zero.",
            table=metrics_table,
        ),
        _consistency_section(found.implied, settings),
    ]
    return PartReport(sections, [table_1, metrics_table])


def _table_1(runs: Sequence[PaperRun]) -> Table:
    return Table(
        ["dilation", "mean, paper", "mean, here (± std over seeds)", "std, paper", "std, here (± std over seeds)"],
        [
            [
                dilation,
                SCALE_MEAN[dilation],
                show_spread([run.table_1[str(dilation)].mean for run in runs]),
                SCALE_STD[dilation],
                show_spread([run.table_1[str(dilation)].std for run in runs]),
            ]
            for dilation in SCALE_STD
        ],
    )


def _metrics_table(runs: Sequence[PaperRun], n_steps: int) -> Table:
    trained, untrained = [run.trained for run in runs], [run.untrained for run in runs]
    rows: list[list[str | float | None]] = [
        [METRIC_TITLES[name], value, show_spread(_values(trained, name)), show_spread(_values(untrained, name))]
        for name, value in METRICS.items()
    ]
    largest = max(run.largest_weight_change for run in runs)
    rows.append(["largest change of a weight", None, show_number(largest), "0"])
    return Table(["metric", "paper", f"here, after {n_steps} steps", "here, untrained"], rows)


def _values(per_seed: Sequence[Metrics], metric: str) -> list[float | None]:
    return [row.get(metric) for row in per_seed]


def _by_metric(per_seed: Sequence[Metrics]) -> dict[str, list[float | None]]:
    return {name: _values(per_seed, name) for name in METRICS}


def _consistency_section(found: Implied, settings: PublishedSettings) -> Section:
    ev, l2_loss = METRICS["explained_variance"], METRICS["l2_loss"]
    rows = [
        [f"about how far Adam can move a weight in {settings.n_steps} steps", f"{found.largest_move_of_a_weight:.1e}"],
        ["ce_loss_score of zero ablation", f"0; the paper has {METRICS['ce_loss_score']}"],
        ["kl_div_score of zero ablation", f"0; the paper has {METRICS['kl_div_score']}"],
        [
            "relative reconstruction bias of zero ablation",
            f"0 / 0; the paper has {METRICS['relative_reconstruction_bias']}",
        ],
        [
            f"squared mean activation, divided by the variance, if the output is zero and explained variance is {ev}",
            f"{found.mean_norm_squared_over_variance_if_output_is_zero:.3f}",
        ],
        [f"is {ev} exactly a bfloat16?", "yes" if found.explained_variance_is_bfloat16 else "no"],
        [
            "norm of activations at width 512, from table 1 if its taps are untrained",
            f"{found.activation_norm_from_table_1:.2f}",
        ],
        ["norm of activations, from the L2 loss, if the output is zero", f"{l2_loss}"],
    ]
    text = (
        "This is inference from the published numbers alone. With L0 = L1 = 0 the reconstruction is a constant vector. If it starts at "
        "zero, it stays near zero in so few steps, and the output is zero ablation."
    )
    return Section(
        "Do the paper's numbers agree with each other?", text, table=Table(["what the numbers imply", "value"], rows)
    )
