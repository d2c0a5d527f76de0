"""The first part of `mtsae paper`: the paper's own run beside what the paper reports."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtsae_lens.experiments.paper.consistency import implied
from mtsae_lens.experiments.paper.measures import METRIC_TITLES
from mtsae_lens.experiments.paper.published import METRICS, SCALE_MEAN, SCALE_STD, PublishedSettings
from mtsae_lens.experiments.paper.reproduction import reproduction_trials
from mtsae_lens.experiments.paper.setup import Subject
from mtsae_lens.experiments.paper.verdicts import show, shown, spread
from mtsae_lens.experiments.parts import Part
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import seed_panels, step_curves
from mtsae_lens.trials import run_trials

_CURVE_TITLES = {
    "overall_loss": "loss",
    "l2_loss": "reconstruction",
    "l1_loss": "0.04 x L1",
    "separation_loss": "0.1 x separation",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}


def _values(per_seed: Sequence[Mapping[str, Any]], metric: str) -> list[float | None]:
    return [row.get(metric) for row in per_seed]


def reproduction_part(subject: Subject, settings: PublishedSettings, n_seeds: int, n_test_contexts: int, out: Path) -> Part:
    """The paper's own run, seed by seed, beside what the paper reports."""
    record = subject.record | asdict(settings) | {"n_test_contexts": n_test_contexts}
    trials = reproduction_trials(subject, settings, n_seeds, out, n_test_contexts)
    seeds = run_trials(out / "trials", record, trials, "The paper's run")
    runs = list(seeds.values())
    n_steps = len(runs[0]["curve"])
    table_1 = Table(
        ["dilation", "mean, paper", "mean, here (± std over seeds)", "std, paper", "std, here (± std over seeds)"],
        [
            [
                dilation,
                SCALE_MEAN[dilation],
                shown([run["table_1"][str(dilation)]["mean"] for run in runs]),
                SCALE_STD[dilation],
                shown([run["table_1"][str(dilation)]["std"] for run in runs]),
            ]
            for dilation in SCALE_STD
        ],
    )
    falls = sum(_falls([run["table_1"][str(d)]["std"] for d in SCALE_STD]) for run in runs)
    trained, untrained = [run["trained"] for run in runs], [run["untrained"] for run in runs]
    metrics_table = Table(
        ["metric", "paper", f"here, after {n_steps} steps", "here, untrained"],
        [
            [METRIC_TITLES[name], value, shown(_values(trained, name)), shown(_values(untrained, name))]
            for name, value in METRICS.items()
        ],
    )
    largest_lr = max(row["lr"] for run in runs for row in run["curve"])
    moved = max(run["largest_weight_change"] for run in runs)
    ev_moved = spread([a["explained_variance"] - b["explained_variance"] for a, b in zip(trained, untrained, strict=True)])
    sections = [
        Section(
            "Table 1: convolution by dilation",
            f"Measured after {n_steps} steps on held-out text of {subject.dataset}, over positions and dimensions; {n_seeds} seeds. The "
            f"deviation falls at every dilation in {falls} of {len(runs)} seeds. The sizes are those of this model's activations.",
            table=table_1,
        ),
        Section(
            "Figure 1a: losses and gradient norm by step",
            f"{settings.training_tokens:,} tokens // {settings.batch_size_tokens:,} a batch = {n_steps} steps: a token budget, not an early "
            f"termination. The learning rate never passes {largest_lr:.2g}, {largest_lr / settings.lr:.2%} of its peak.",
            figure=step_curves({name.replace("_", " "): run["curve"] for name, run in seeds.items()}, _CURVE_TITLES),
        ),
        Section(
            "Figure 1b: the paper's metrics by seed",
            "Held-out text; a point per seed, a dash at the mean. Dashed lines are the paper's values, of another language model.",
            figure=seed_panels(
                {"untrained": _by_metric(untrained), "trained": _by_metric(trained)},
                {name: METRIC_TITLES[name] for name in METRICS},
                METRICS,
            ),
        ),
        Section(
            "The paper's metrics beside ours",
            f"Mean ± std (range) over seeds. No weight moved by more than {show(moved)}; explained variance moved by {ev_moved} in all: "
            f"the reported model is its own initialisation. The paper's L0 of 0 does not follow from its settings: here "
            f"{shown(_values(trained, 'l0'))} features fire at a token. The paper gives neither the width nor the first encoder weights; here "
            f"d_sae is {runs[0]['d_sae']:,}, and the first scale's encoder starts as the transposed decoder, the others' at zero.",
            table=metrics_table,
        ),
        _consistency_section(settings),
    ]
    metrics = {"seeds": seeds, "implied": implied(), "n_steps": n_steps, "largest_lr": largest_lr, "seeds_that_fall": falls}
    return Part("reproduction", metrics, sections, [table_1, metrics_table])


def _falls(values: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(values))


def _by_metric(per_seed: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    return {name: _values(per_seed, name) for name in METRICS}


def _consistency_section(settings: PublishedSettings) -> Section:
    found = implied()
    moved, mean = found["largest_move_of_a_weight"], found["mean_norm_squared_over_variance_if_output_is_zero"]
    bfloat16 = "is" if found["explained_variance_is_bfloat16"] else "is not"
    norm, l2_loss = found["activation_norm_from_table_1"], found["activation_norm_from_l2_loss"]
    ev, ce, kl = METRICS["explained_variance"], METRICS["ce_loss_score"], METRICS["kl_div_score"]
    bias = METRICS["relative_reconstruction_bias"]
    text = (
        "Inference from the published numbers alone. With L0 = L1 = 0 the reconstruction is one constant vector b. In "
        f"{settings.n_steps} steps Adam moves a weight by about {moved:.1e}, so a b that starts at zero stays there: then the output is zero "
        "ablation itself, ce_loss_score and kl_div_score are 0, and the reconstruction bias is 0 / 0. The paper has "
        f"{ce}, {kl} and exactly {bias}. So either b started elsewhere, or these are not numbers of one model; a bias of exactly {bias} "
        "looks like a placeholder for a value that could not be computed. "
        f"An explained variance of {ev} with a zero output would mean a squared mean activation of {mean:.3f} variances. That "
        f"number {bfloat16} exactly a bfloat16, while the paper says float32. Table 1, if from untrained taps, implies activations of norm "
        f"{norm:.2f} at width 512; an L2 loss of {l2_loss} per token implies far larger ones, unless the loss was summed otherwise."
    )
    return Section("Do the paper's numbers agree with each other?", text)
