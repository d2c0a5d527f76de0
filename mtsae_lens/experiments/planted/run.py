"""Train SAEs on sequences with planted features of known time scales, and score what they recover."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from mtsae_lens.data.planted import PlantedConfig, PlantedFeatures
from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.experiments.planted.arms import FAR_LAGS, OURS
from mtsae_lens.experiments.planted.comparison import compare_architectures, summarize_comparison
from mtsae_lens.experiments.planted.directions import ablate_directions, summarize_directions
from mtsae_lens.experiments.planted.directions_report import report_directions
from mtsae_lens.experiments.planted.report import report_comparison
from mtsae_lens.experiments.planted.results import PlantedResult
from mtsae_lens.experiments.planted.settings import PlantedCommandSettings
from mtsae_lens.experiments.planted.training import PlantedSettings
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report


def make_trial_settings(settings: PlantedCommandSettings) -> PlantedSettings:
    """Return the settings that all trials share.

    Args:
        settings: settings of the command.
    """
    return PlantedSettings(
        make_planted_config(settings.planted),
        d_sae=settings.d_sae,
        n_steps=settings.n_steps,
        n_test_sequences=settings.n_test_sequences,
    )


def _check(settings: PlantedCommandSettings) -> None:
    """Check before the first training what would fail after the last."""
    planted = make_trial_settings(settings).planted
    n_features = PlantedFeatures(planted).n_features
    if settings.d_sae < n_features:
        raise ConfigError(
            f"expected --d-sae of at least {n_features}, the number of planted features, got {settings.d_sae}; raise it"
        )
    if not planted.lags or not planted.durations:
        raise ConfigError("planted: expected at least one of lags and one of durations, got none; give at least one of each")
    farthest = max(far for _, far in FAR_LAGS["lags"])
    if settings.n_direction_seeds and planted.context_size <= farthest:
        raise ConfigError(
            f"expected context_size of at least {farthest + 1} for the ablations, which plant lags of up to {farthest} positions, got "
            f"{planted.context_size}; raise it, or leave the ablations out with --n-direction-seeds 0"
        )


def make_planted_config(given: dict[str, Any]) -> PlantedConfig:
    """Return the default configuration with some fields changed.

    Args:
        given: values by field of `PlantedConfig`.

    Raises:
        ConfigError: a field does not exist, or a value is not possible.
    """
    valid = [field.name for field in fields(PlantedConfig)]
    for name in given:
        if name not in valid:
            raise ConfigError(f"planted: expected a field of PlantedConfig, got {name!r}.{nearest(name, valid)}")
    try:
        return PlantedConfig(**{name: _tuples(value) for name, value in given.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"planted: expected integer durations and pairs of integers as lags, got an error ({error}); give such as [[1, 2], [4, 8]]"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@interrupt_on_signal(GOES_ON, keep_inner_message=True)
@in_output_folder
def run_planted(settings: PlantedCommandSettings) -> tuple[PlantedResult, list[Table]]:
    """Run the comparison and the ablations, and write `metrics.json` (the result and its `provenance`) and `report.html`.

    Several ranks (`mtsae_lens.ranks`) share the trials, and the first one writes.

    Args:
        settings: what to run.

    Returns:
        What was measured, and the tables to print.
    """
    watch = Stopwatch()
    _check(settings)
    shared = make_trial_settings(settings)
    compared = compare_architectures(shared, settings.n_seeds, settings.out / "planted", settings.n_workers)
    comparison, directions = summarize_comparison(compared), None
    reports = [report_comparison(compared, comparison)]
    if settings.n_direction_seeds:
        ours, n_seeds = compared.chosen[OURS], settings.n_direction_seeds
        ablated = ablate_directions(shared, ours, n_seeds, settings.out / "directions", settings.n_workers)
        directions = summarize_directions(ablated)
        reports.append(report_directions(ablated))
    result = PlantedResult(planted=comparison, directions=directions, planted_config=shared.planted)
    made = provenance(0, watch.seconds, settings.model_dump(mode="json"))
    if current_ranks().is_first:
        write_metrics(settings.out, result.to_json() | {"provenance": made})
        lead = (
            "How well do sparse autoencoders recover planted features, whose directions, time scales and activations are known?"
        )
        sections = [section for report in reports for section in report.sections]
        write_report(settings.out, "Planted time scales", lead, sections, made)
    return result, [table for report in reports for table in report.tables]
