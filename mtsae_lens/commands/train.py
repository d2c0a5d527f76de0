"""Train an SAE of any registered architecture on the activations of any language model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sae_lens import TrainingSAE

from mtsae_lens.interruption import interrupt_on_signal
from mtsae_lens.machine_paths import shorten
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import Record, Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.figures import scale_curves, training_curves
from mtsae_lens.reporting.page import Section, write_report
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.training.cached import adopt_cache
from mtsae_lens.training.log import LOG_FILE, read_log
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.several import settings_of_each, train_saes
from mtsae_lens.training.step_reports import WAIT_FOR_ACTIVATIONS, WAIT_FOR_SAE, logged_counts


@dataclass(frozen=True)
class TrainResult(Record):
    """What a training ended with; the content of `metrics.json`, without its provenance."""

    final: dict[str, int | float | None]
    """The last row of the training log; None for a number that was not finite."""
    waits: dict[str, float]
    """Seconds in which the SAE waited for activations, and their reader for the SAE, by their names in the log."""
    n_features: int
    never_fired: int | None
    """Features that fired at no step of the run; None where an older log does not say."""
    always_on: int | None
    """Features that fired on over half of the tokens of the last batch; None where an older log does not say."""
    warning: str | None
    """What is wrong and what to do, if the SAE looks collapsed."""
    resumed: bool
    """Whether the run was continued; the seconds in the provenance are then those of the last part."""
    n_training_steps: int
    n_training_tokens: int
    dilations: tuple[float, ...] | None = None
    """Of an MTSAE: as given, selected or learned."""


def _describe_features(final: Mapping[str, int | float | None], d_sae: int) -> str:
    if "sparsity/never_fired" not in final:
        return ""  # an older log does not contain these counts
    text = (
        f"Of {d_sae:,} features, {final['sparsity/never_fired']:,} never fired in the whole run, {final['sparsity/dead_features']:,} did "
        f"not fire within the dead-feature window, and {final['sparsity/always_on']:,} fired on more than half of the tokens of the last batch."
    )
    warning = logged_counts(final, d_sae).warning
    return f"{text} Warning: {warning}." if warning else text


@interrupt_on_signal("saved checkpoints are kept; give --resume to continue from the last one", keep_inner_message=True)
@in_output_folder
def run_train(settings: TrainSettings, *, resume: bool = False) -> TrainResult | None:
    """Train an SAE, save it, and write `metrics.json` (the fields of `TrainResult`, and `provenance`) and `report.html`.

    Args:
        settings: what to train.
        resume: whether to continue the run in the output folder.

    Returns:
        The result. Of several ranks (`mtsae_lens.ranks`) only the first one writes and returns it; the others return None.
    """
    watch = Stopwatch()
    settings = adopt_cache(settings)
    sae = train_sae(settings, resume=resume)
    if not current_ranks().is_first:
        return None
    return _write_result(settings, sae, watch.seconds, resumed=resume)


@interrupt_on_signal("what was saved by then is kept; --resume continues", keep_inner_message=True)
@in_output_folder
def run_train_saes(settings: TrainSettings, *, resume: bool = False) -> dict[str, TrainResult]:
    """Train the SAEs of `settings.saes` in one pass, and write the metrics and the report of each into its folder.

    Args:
        settings: what to train.
        resume: whether to continue the runs in the output folder.

    Returns:
        The result of each by the name of its folder; the seconds in `metrics.json` are those of the whole pass.
    """
    watch = Stopwatch()
    each = [adopt_cache(one) for one in settings_of_each(settings)]
    saes = train_saes(each, resume=resume)
    seconds = watch.seconds
    return {one.out.name: _write_result(one, sae, seconds, resumed=resume) for one, sae in zip(each, saes, strict=True)}


def _write_result(settings: TrainSettings, sae: TrainingSAE[Any], seconds: float, *, resumed: bool) -> TrainResult:
    rows = read_log(settings.out / LOG_FILE)
    final = rows[-1] if rows else {}
    n_steps = settings.training_tokens // settings.batch_size_tokens
    result = TrainResult(
        final=final,
        waits={name: round(sum(row.get(name) or 0.0 for row in rows), 1) for name in (WAIT_FOR_ACTIVATIONS, WAIT_FOR_SAE)},
        n_features=settings.d_sae,
        never_fired=final.get("sparsity/never_fired"),
        always_on=final.get("sparsity/always_on"),
        warning=logged_counts(final, settings.d_sae).warning,
        resumed=resumed,
        n_training_steps=n_steps,
        n_training_tokens=n_steps * settings.batch_size_tokens,
        dilations=_dilations_of(sae),
    )
    made = provenance(settings.seed, seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, result.to_json() | {"provenance": made})
    place = f"at {settings.hook_name}"
    if settings.hook_name_out is not None:
        place = f"from {settings.hook_name} to {settings.hook_name_out}"
    lead = f"{sae.cfg.architecture()} of {settings.d_sae:,} features {place} of {shorten(settings.model)}."
    write_report(settings.out, "Training", lead, _report_sections(settings, sae, rows), made)
    return result


def _report_sections(settings: TrainSettings, sae: TrainingSAE[Any], rows: list[dict[str, Any]]) -> list[Section]:
    described = _describe_features(rows[-1] if rows else {}, settings.d_sae)
    text = f"Measured on training batches, masked positions left out. {described}"
    sections = [Section("Training", text, figure=training_curves({sae.cfg.architecture(): rows}))]
    if isinstance(sae.cfg, MTTrainingSAEConfig):
        text = "Which time scales does the encoder use? The norm of the encoder rows of each scale, over training."
        sections.append(Section("Scales", text, figure=scale_curves(rows, sae.cfg.dilations)))
    return sections


def _dilations_of(sae: TrainingSAE[Any]) -> tuple[float, ...] | None:
    """Return the dilations of a temporal encoder, which training may have learned; None for another SAE."""
    if isinstance(sae, MTTrainingSAE):
        return tuple(sae.dilations)
    return tuple(sae.cfg.dilations) if isinstance(sae.cfg, MTTrainingSAEConfig) else None
