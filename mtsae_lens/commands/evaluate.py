"""Evaluate an SAE on held-out text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sae_lens import SAE, Transcoder
from torch import Tensor

from mtsae_lens.commands.evaluate_results import (
    EvaluateResult,
    ScaleResult,
    collapse_warning,
    fidelity_summary,
    finite_or_none,
    metrics_table,
)
from mtsae_lens.commands.evaluate_settings import EvaluateSettings
from mtsae_lens.commands.firing_section import make_firing_section
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import Split
from mtsae_lens.data.documents import check_source
from mtsae_lens.data.origins import find_source
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.evaluation.bits import measure_bits
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.evaluation.firing_in_time import FiringSummary, measure_firing
from mtsae_lens.evaluation.scales import scale_predictivity
from mtsae_lens.evaluation.time_scales import temporal_profiles
from mtsae_lens.evaluation.transcoding import evaluate_transcoder, fit_token_means
from mtsae_lens.interruption import STARTS_ANEW, interrupt_on_signal
from mtsae_lens.machine_paths import shorten
from mtsae_lens.opening import open_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.progress import track
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Section, Table, write_report
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch

_POSITIONS_PER_WEIGHT = 3
"""Positions for every weight of a regression on all scales, below which it says more about the sample than about the features."""


@interrupt_on_signal(STARTS_ANEW)
@in_output_folder
def run_evaluate(settings: EvaluateSettings) -> EvaluateResult:
    """Evaluate an SAE, and write `metrics.json` and `report.html`.

    With `value_bits`, `metrics.json` also has the keys of `BITS_MEANINGS`.

    `metrics.json` has the keys of `METRIC_MEANINGS`, `warning` if the SAE looks collapsed, `firing` (`FiringSummary`), `scales` for
    an MTSAE, and `provenance`.

    Args:
        settings: what to evaluate.

    Returns:
        What was measured.
    """
    watch = Stopwatch()

    def dataset_of(sae: SAE[Any]) -> str:
        return settings.dataset or find_source(sae.cfg.metadata, settings.sae) or "embedded"

    lm, model = open_sae(
        settings.sae,
        model=settings.model,
        device=settings.device,
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        check=lambda sae: check_source(dataset_of(sae)),
    )
    dataset = dataset_of(lm.sae)
    table = read_tokens(dataset, "test", lm.cutter, settings.n_contexts, seed=settings.seed)
    measured, how = _measure(lm, model, dataset, table, settings)
    text = (
        f"{how} on {measured['n_tokens']:,.0f} tokens of {measured['n_contexts']:,} held-out contexts of {shorten(dataset)}, special tokens "
        f"and position 0 left out. On these tokens {measured['dead_features']:,} of {measured['n_features']:,} features never fired, and "
        f"{measured['always_on_features']:,} fired on over half."
    )
    if warning := collapse_warning(measured):
        text = f"{text} Warning: {warning}."
    sections = [Section("Fidelity", text, table=metrics_table({lm.sae.cfg.architecture(): measured}))]
    firing: FiringSummary | None = None
    if settings.n_firing_features and len(table) > 1:  # the control reads another context
        firing, section = _measure_firing(fit_batch(lm), table, settings)
        sections.append(section)
    scales: ScaleResult | None = None
    if isinstance(lm.sae, TemporalEncoder) and settings.n_scale_contexts:
        try:
            scales, section = _measure_scales(lm.sae, fit_batch(lm), dataset, table, settings)
        except DataError as error:  # unlike fidelity, this needs SELECT as well as TEST
            section = Section("What the scales know", f"Not measured: {error}")
        sections.append(section)
    made = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    result = EvaluateResult(finite_or_none(measured), warning, scales, firing)
    write_metrics(settings.out, result.to_json() | {"provenance": made})
    lead = f"{shorten(str(settings.sae))}: {lm.sae.cfg.architecture()} {lm.splice.place}."
    write_report(settings.out, "Evaluation", lead, sections, made, [f"The SAE {fidelity_summary(result.metrics)}."])
    return result


def _measure(
    lm: HookedLM, model: AnyHookedModel, dataset: str, table: TokenTable, settings: EvaluateSettings
) -> tuple[dict[str, Any], str]:
    """Measure the fidelity of an SAE or of a transcoder, and say with what."""
    measured: dict[str, Any]
    if isinstance(lm.sae, Transcoder):
        means = None
        if settings.n_table_contexts:
            text = read_tokens(dataset, "train", lm.cutter, settings.n_table_contexts, seed=settings.seed)
            means = fit_token_means(lm.sae, model, lm.cutter, text, batch_size=settings.batch_size)
        measured = evaluate_transcoder(lm.sae, model, lm.cutter, table, means, batch_size=settings.batch_size)
        return measured, f"Measured at {lm.splice.decoded_hook_name}"
    measured = evaluate_fidelity(lm.sae, model, lm.cutter, table, batch_size=settings.batch_size)
    if settings.value_bits:
        select = read_tokens(dataset, "select", lm.cutter, settings.n_contexts, seed=settings.seed)
        fitted, coded = (_counted_inputs(lm, part, "bits per token") for part in (select, table))
        measured |= measure_bits(lm.sae, fitted, coded, settings.value_bits)
    return measured, "SAELens's run_evals"


def _counted_inputs(lm: HookedLM, table: TokenTable, use: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what the SAE reads, batch by batch, and which positions are not masked."""
    for tokens in track(lm.batches(table), f"reading text for {use}", "batch"):
        yield lm.sae_input(tokens), ~lm.masked(tokens)


def _draw_features(sae: SAE[Any], n: int, seed: int) -> Tensor:
    """Draw features without replacement; all of them if there are no more."""
    return torch.randperm(sae.cfg.d_sae, generator=torch.Generator().manual_seed(seed))[:n].sort().values


def _measure_firing(lm: HookedLM, table: TokenTable, settings: EvaluateSettings) -> tuple[FiringSummary, Section]:
    """Measure when features fire, beside the control across contexts at the same position."""
    features = _draw_features(lm.sae, settings.n_firing_features, settings.seed)
    found = measure_firing(lm.sae, _counted_inputs(lm, table, "firing in time"), features).summary()
    return found, make_firing_section(found)


def _measure_scales(
    sae: TemporalEncoder, lm: HookedLM, dataset: str, evaluated: TokenTable, settings: EvaluateSettings
) -> tuple[ScaleResult, Section]:
    """Measure how much each scale explains of the features, and how much of their lift comes from context."""
    features = _draw_features(sae, settings.n_scale_features, settings.seed)
    n_contexts = min(settings.n_scale_contexts, settings.n_contexts)

    def read_split(split: Split) -> TokenTable:
        is_read = split == "test" and n_contexts == settings.n_contexts
        return evaluated if is_read else read_tokens(dataset, split, lm.cutter, n_contexts, seed=settings.seed)

    tables: dict[Split, TokenTable] = {"test": read_split("test"), "select": read_split("select")}
    n_positions = sum(int((~lm.masked(tokens)).sum()) for tokens in lm.batches(tables["select"]))
    least = _POSITIONS_PER_WEIGHT * len(sae.cfg.dilations) * sae.cfg.d_in
    if n_positions < least:
        raise DataError(
            f"expected at least {least:,} positions for the regressions, got {n_positions:,}; raise --n-contexts and --n-scale-contexts"
        )
    test, select = (
        [lm.sae_input(tokens) for tokens in track(lm.batches(table), f"reading {split} text", "batch")]
        for split, table in tables.items()
    )
    profiles = temporal_profiles(sae, test, features)
    share = profiles.context_share[profiles.n_active > 0]
    too_few = DataError(
        f"expected at least 2 features that fire on this text, got {len(share)} of {len(features)}; give more contexts or features"
    )
    if len(share) < 2:
        raise too_few
    measured = scale_predictivity(sae, select, test, features)
    if int(torch.isfinite(measured.all).sum()) < 2:  # of those that fire, too few vary
        raise too_few
    predictivity = measured.summary(sae.cfg.dilations)
    quantiles = {f"{q:.0%}": float(share.quantile(q)) for q in (0.1, 0.5, 0.9, 0.99)}
    names = ("alone", "unique", "leading")
    table = Table(
        ["dilation", "R2 alone", "R2 lost without it", "share of features that it predicts best"],
        [
            [f"{rate:.3g}", *(predictivity[f"{name}_{d}"] for name in names)]
            for rate, d in zip(sae.dilations, sae.cfg.dilations, strict=True)
        ],
    )
    text = (
        f"On {len(share):,} features that fire, and at most {n_contexts} contexts of each split. R2: how well a linear model predicts a "
        "feature's activation from one scale, fitted on SELECT and scored on TEST (higher is better). From all scales it is "
        f"{predictivity['all']:.3f}. R2 of one scale has a standard deviation of {predictivity['spread']:.3f} over features (mean over "
        "scales). The lift is what is added to a feature's pre-activation when it fires, beyond the average. The share of context in it is "
        f"{quantiles['50%']:.1%} for the median feature, and {quantiles['90%']:.1%} or more for one feature in ten."
    )
    return ScaleResult(predictivity, quantiles), Section("What the scales know", text, table=table)
