"""The parts of `mtsae paper`: each computes, and says on the page what it found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mtsae_lens.commands.parts import Part
from mtsae_lens.replication.consistency import implied
from mtsae_lens.replication.initialisation import CHANCE_OF_AN_ORDER, gradients_without_learning, null_distribution
from mtsae_lens.replication.published import GRAD_NORM_RANGE, METRICS, SCALE_MEAN, SCALE_STD, STD_RATIO, PublishedSettings
from mtsae_lens.replication.reproduction import reproduction_trials
from mtsae_lens.replication.subject import Subject
from mtsae_lens.replication.switches import (
    BASE,
    Switch,
    SwitchSettings,
    arms,
    settings_record,
    switch_trials,
    switches,
    values_by_arm,
)
from mtsae_lens.replication.verdicts import difference, show, spread, verdict
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.paper_figures import gradient_norms, null_histogram, seed_panels, step_curves
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.temporal import Padding
from mtsae_lens.trials import run_trials

TITLES = {
    "l2_loss": "L2 loss",
    "explained_variance": "explained variance",
    "l0": "L0",
    "l1": "L1",
    "kl_div_score": "kl_div_score",
    "ce_loss_score": "ce_loss_score",
    "relative_reconstruction_bias": "relative reconstruction bias",
    "dead_features": "dead features",
    "future_leak": "future leak",
    "scale_cosine": "cosine of scales, after",
    "scale_cosine_untrained": "cosine of scales, before",
}
_CURVE_TITLES = {
    "overall_loss": "loss",
    "l2_loss": "reconstruction",
    "l1_loss": "0.04 x L1",
    "separation_loss": "0.1 x separation",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
}
_NULL_PADDINGS: tuple[Padding, ...] = ("circular", "zero")


def subject_record(subject: Subject) -> dict[str, str]:
    """What all results depend on."""
    return {"model": subject.model_name, "hook_name": subject.hook_name, "dataset": subject.dataset}


def _values(per_seed: Sequence[Mapping[str, Any]], metric: str) -> list[float | None]:
    return [row.get(metric) for row in per_seed]


def _shown(values: Sequence[float | None]) -> str:
    found = spread(values)
    return str(found) if found else "not defined"


# -------------------------------------------------------------------------------------------- the paper's run


def reproduction_part(subject: Subject, settings: PublishedSettings, n_seeds: int, n_test_contexts: int, out: Path) -> Part:
    """The paper's own run, seed by seed, beside what the paper reports."""
    record = subject_record(subject) | asdict(settings) | {"n_test_contexts": n_test_contexts}
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
                _shown([run["table_1"][str(dilation)]["mean"] for run in runs]),
                SCALE_STD[dilation],
                _shown([run["table_1"][str(dilation)]["std"] for run in runs]),
            ]
            for dilation in SCALE_STD
        ],
    )
    falls = sum(_falls([run["table_1"][str(d)]["std"] for d in SCALE_STD]) for run in runs)
    trained, untrained = [run["trained"] for run in runs], [run["untrained"] for run in runs]
    metrics_table = Table(
        ["metric", "paper", f"here, after {n_steps} steps", "here, untrained"],
        [
            [TITLES[name], value, _shown(_values(trained, name)), _shown(_values(untrained, name))]
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
                {name: TITLES[name] for name in METRICS},
                METRICS,
            ),
        ),
        Section(
            "The paper's metrics beside ours",
            f"Mean ± std (range) over seeds. No weight moved by more than {show(moved)}; explained variance moved by {ev_moved} in all: "
            f"the reported model is its own initialisation. The paper's L0 of 0 does not follow from its settings: here "
            f"{_shown(_values(trained, 'l0'))} features fire at a token. The paper gives neither the width nor the first encoder weights; here "
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


# -------------------------------------------------------------------------------------------- the initialisation


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
    record = subject_record(subject) | asdict(settings)
    record |= {"n_draws": n_draws, "n_contexts": n_contexts, "n_still_batches": n_still_batches}
    sae = MTTrainingSAEConfig.paper(2, 2)

    def null(padding: Padding) -> dict[str, Any]:
        h = subject.activations(subject.test_table(n_contexts).tokens)
        return null_distribution(h, sae.dilations, sae.kernel_size, padding, n_draws, torch.Generator().manual_seed(0))

    trials: dict[str, Any] = {f"null/{padding}": (lambda padding=padding: null(padding)) for padding in _NULL_PADDINGS}
    trials["gradients"] = lambda: gradients_without_learning(subject, settings, 0, n_still_batches)
    found = run_trials(out / "trials", record, trials, "Initialisation")
    nulls = {padding: found[f"null/{padding}"] for padding in _NULL_PADDINGS}
    runs = list(reproduction.metrics["seeds"].values())
    dilations = [str(d) for d in SCALE_STD]
    ours = [run["table_1"][dilations[-1]]["std"] / run["table_1"][dilations[0]]["std"] for run in runs]
    table = Table(
        [
            "padding",
            "falls at every step",
            "95% interval",
            "chance",
            f"ratio <= {STD_RATIO:.3f}",
            "both",
            "as even",
            *(f"std, {d}" for d in dilations),
        ],
        [
            [
                padding,
                f"{row['monotone_share']:.1%}",
                f"{row['monotone_share_low']:.1%} to {row['monotone_share_high']:.1%}",
                f"{CHANCE_OF_AN_ORDER:.1%}",
                f"{row['share_at_or_below_published']:.1%}",
                f"{row['share_like_published']:.1%}",
                f"{row['share_as_even']:.2%}",
                *(row["mean_std"][d] for d in dilations),
            ]
            for padding, row in nulls.items()
        ],
    )
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
    gradients = found["gradients"]
    real = [row["grad_norm"] for row in runs[0]["curve"]]
    apart = max(abs(a - b) / b for a, b in zip(real, gradients["grad_norms"], strict=False))
    low, high = GRAD_NORM_RANGE
    gradient_text = (
        f"The same run with a learning rate of 0, on {len(gradients['grad_norms'])} batches: nothing learns, and the gradient norm stays at "
        f"{show(gradients['mean'])} ± {show(gradients['std'])} ({show(gradients['min'])} to {show(gradients['max'])}). The {len(real)} real "
        f"steps see the first of these batches; their gradient norms differ from those without learning by {apart:.2%} at most, so a "
        f"steady gradient is no sign of stable learning. The band is the paper's {low} to {high}, of another model."
    )
    histogram = null_histogram({p: row["ratios"] for p, row in nulls.items()}, STD_RATIO, {"circular": ours})
    figure = gradient_norms({"learning rate 0": gradients["grad_norms"], "the paper's steps": real}, GRAD_NORM_RANGE)
    sections = [
        Section("Table 1 without training", text, table=table, figure=histogram),
        Section("Gradients without training", gradient_text, figure=figure),
    ]
    return Part("initialisation", {"null": nulls, "gradients": gradients, "gradients_apart": apart}, sections, [table])


# -------------------------------------------------------------------------------------------- the switches


def switches_part(subject: Subject, settings: SwitchSettings, n_seeds: int, out: Path, n_workers: int) -> Part:
    """One change at a time to the paper's SAE, given tokens."""
    record = subject_record(subject) | settings_record(settings)
    results = run_trials(out / "trials", record, switch_trials(subject, settings, n_seeds), "Switches", n_workers=n_workers)
    values = values_by_arm(results)
    sections = [
        Section(
            "The failures as switches",
            f"The paper's SAE given {settings.n_steps} steps of {settings.batch_size_tokens:,} tokens and a warm-up of 5% of them, width "
            f"{settings.d_sae_per_d_in * subject.d_in:,}, learning rate {settings.lr:g}; each switch changes one thing. {n_seeds} seeds; on "
            f"{settings.n_test_contexts} held-out contexts. Every number says mean ± std (range); differences are paired by seed.",
        ),
        *(switch_section(switch, settings, values) for switch in switches(settings)),
        ranking_section(settings, values),
    ]
    summary = {
        arm: {name: asdict(found) for name, column in metrics.items() if (found := spread(column))}
        for arm, metrics in values.items()
    }
    labels = {name: arm.label for name, arm in arms(settings).items()}
    overview = Table(
        ["arm", *(TITLES[name] for name in ("explained_variance", "l0", "dead_features", "scale_cosine"))],
        [
            [labels[arm], *(_shown(metrics[name]) for name in ("explained_variance", "l0", "dead_features", "scale_cosine"))]
            for arm, metrics in values.items()
        ],
    )
    return Part("switches", {"values": values, "summary": summary, "labels": labels}, sections, [overview])


def switch_section(switch: Switch, settings: SwitchSettings, values: Mapping[str, Mapping[str, list[float | None]]]) -> Section:
    """Question, verdict, table and figure of one switch."""
    labels = {name: arm.label for name, arm in arms(settings).items()}
    if switch.title == "Token budget":
        labels[BASE] = f"{settings.n_steps:,} steps"
    metric = switch.metrics[0]
    others = {labels[name]: values[name][metric] for name in switch.arms if name != BASE}
    text = f"{switch.question} {verdict(TITLES[metric], labels[BASE], values[BASE][metric], others)}"
    if "future_leak" in switch.metrics:
        text += " " + leak_sentence(values)
    table = Table(
        ["arm", *(TITLES[name] for name in switch.metrics)],
        [[labels[arm], *(_shown(values[arm][name]) for name in switch.metrics)] for arm in switch.arms],
    )
    figure = seed_panels({labels[arm]: values[arm] for arm in switch.arms}, {name: TITLES[name] for name in switch.metrics}, {})
    return Section(switch.title, text, table=table, figure=figure)


def leak_sentence(values: Mapping[str, Mapping[str, list[float | None]]]) -> str:
    """What of the circular SAE's score is left without later positions."""
    whole = values[BASE]["ce_loss_score"]
    withheld, replaced = (values[BASE][f"ce_loss_score_{future}"] for future in ("withhold", "replace"))
    return (
        f"The circular SAE recovers {_shown(whole)} of the model's loss. With later positions withheld from its taps that changes by "
        f"{difference(withheld, whole)}; with those of another context in their place by {difference(replaced, whole)}. It was trained for "
        "neither, so what is lost is the most that the leak was worth. "
        f"An SAE trained without them (causal) differs by {difference(values['causal']['ce_loss_score'], whole)}."
    )


def ranking_section(settings: SwitchSettings, values: Mapping[str, Mapping[str, list[float | None]]]) -> Section:
    """All arms of the base's length, by what they do to explained variance."""
    base = values[BASE]["explained_variance"]
    known = {name: arm for name, arm in arms(settings).items() if arm.n_steps is None and name != BASE}
    changes = {name: spread([a - b for a, b in _pairs(values[name]["explained_variance"], base)]) for name in known}
    order = sorted(known, key=lambda name: -(found.mean if (found := changes[name]) else 0.0))
    table = Table(
        ["change", "explained variance", "against the paper's SAE", "L0"],
        [
            [
                known[name].label,
                _shown(values[name]["explained_variance"]),
                difference(values[name]["explained_variance"], base),
                _shown(values[name]["l0"]),
            ]
            for name in order
        ],
    )
    single = [name for name in order if not known[name].defaults]
    text = (
        f"Every change at the same {settings.n_steps} steps, best first. Of the single changes, the most is gained by "
        f"{known[single[0]].label!r} and the most lost by {known[single[-1]].label!r}. L0 differs between arms, and more active features "
        "explain more."
    )
    return Section("Which change matters most?", text, table=table)


def _pairs(values: Sequence[float | None], base: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(values, base, strict=True) if a is not None and b is not None]
