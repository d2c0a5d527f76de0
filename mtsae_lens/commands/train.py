"""Train an SAE of any registered architecture on the activations of any language model."""

from __future__ import annotations

from typing import Any

from sae_lens import TrainingSAE

from mtsae_lens.interruption import stopped_with
from mtsae_lens.machine_paths import shorten
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.figures import scale_curves, training_curves
from mtsae_lens.reporting.page import Section, write_report
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.training.cached import adopt_cache
from mtsae_lens.training.log import read_log
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.training.several import settings_of_each, train_saes
from mtsae_lens.training.step_reports import WAIT_FOR_ACTIVATIONS, WAIT_FOR_SAE, logged_counts


def _describe_features(final: dict[str, Any], d_sae: int) -> str:
    if "sparsity/never_fired" not in final:
        return ""  # an older log does not contain these counts
    text = (
        f"Of {d_sae:,} features, {final['sparsity/never_fired']:,} never fired in the whole run, {final['sparsity/dead_features']:,} did "
        f"not fire within the dead-feature window, and {final['sparsity/always_on']:,} fired on more than half of the tokens of the last batch."
    )
    warning = logged_counts(final, d_sae).warning
    return f"{text} Warning: {warning}." if warning else text


@stopped_with("saved checkpoints are kept; give --resume to continue from the last one", keep_inner_message=True)
@in_output_folder
def run_train(settings: TrainSettings, *, resume: bool = False) -> dict[str, Any]:
    """Train an SAE, save it, and write `metrics.json` and `report.html`.

    `metrics.json`: `final` (the last row of the training log), `waits` (seconds in which the SAE waited for activations, and their reader for
    the SAE), `n_features`, `never_fired` (features that fired at no step of the run), `always_on` (features that fire on over half of the
    tokens of the last batch), `warning` (if the SAE looks collapsed), `resumed` (then `seconds` are those of the last part),
    `n_training_steps`, `n_training_tokens`, for an MTSAE `dilations` (as given, selected or learned), `provenance`.

    Of several ranks (`mtsae_lens.ranks`) only the first one writes and returns them.

    Args:
        settings: what to train.
        resume: whether to continue the run in the output folder.

    Returns:
        The content of `metrics.json`.
    """
    watch = Stopwatch()
    settings = adopt_cache(settings)
    sae = train_sae(settings, resume=resume)
    if not current_ranks().is_first:
        return {}
    return _write_results(settings, sae, watch.seconds, resumed=resume)


@stopped_with("what was saved by then is kept; --resume continues", keep_inner_message=True)
@in_output_folder
def run_train_saes(settings: TrainSettings, *, resume: bool = False) -> dict[str, dict[str, Any]]:
    """Train the SAEs of `settings.saes` in one pass, and write the metrics and the report of each into its folder.

    Returns:
        The metrics of each by the name of its folder, as `run_train` returns them; `seconds` are those of the whole pass.
    """
    watch = Stopwatch()
    each = [adopt_cache(one) for one in settings_of_each(settings)]
    saes = train_saes(each, resume=resume)
    seconds = watch.seconds
    return {one.out.name: _write_results(one, sae, seconds, resumed=resume) for one, sae in zip(each, saes, strict=True)}


def _write_results(settings: TrainSettings, sae: TrainingSAE[Any], seconds: float, *, resumed: bool) -> dict[str, Any]:
    rows = read_log(settings.out / "training_log.jsonl")
    final = rows[-1] if rows else {}
    counts = logged_counts(final, settings.d_sae)
    metrics: dict[str, Any] = {
        "final": final,
        "waits": {name: round(sum(row.get(name) or 0.0 for row in rows), 1) for name in (WAIT_FOR_ACTIVATIONS, WAIT_FOR_SAE)},
        "n_features": settings.d_sae,
        "never_fired": final.get("sparsity/never_fired"),
        "always_on": final.get("sparsity/always_on"),
        "warning": counts.warning,
        "resumed": resumed,
        "n_training_steps": settings.training_tokens // settings.batch_size_tokens,
        "n_training_tokens": settings.training_tokens // settings.batch_size_tokens * settings.batch_size_tokens,
        "provenance": provenance(settings.seed, seconds, settings.model_dump(mode="json")),
    }
    sections = [
        Section(
            "Training",
            f"Measured on training batches, masked positions left out. {_describe_features(final, settings.d_sae)}",
            figure=training_curves({sae.cfg.architecture(): rows}),
        )
    ]
    if isinstance(sae.cfg, MTTrainingSAEConfig):
        text = "Which time scales does the encoder use? The norm of the encoder rows of each scale, over training."
        metrics["dilations"] = sae.dilations if isinstance(sae, MTTrainingSAE) else list(sae.cfg.dilations)
        sections.append(Section("Scales", text, figure=scale_curves(rows, sae.cfg.dilations)))
    write_metrics(settings.out, metrics)
    place = f"at {settings.hook_name}"
    if settings.hook_name_out is not None:
        place = f"from {settings.hook_name} to {settings.hook_name_out}"
    lead = f"{sae.cfg.architecture()} of {settings.d_sae:,} features {place} of {shorten(settings.model)}."
    write_report(settings.out, "Training", lead, sections, metrics["provenance"])
    return metrics
