"""Train SAEs on sequences with planted time and score what they recover."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from mtsae_lens.data.planted import PlantedConfig, PlantedFeatures
from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.experiments.planted.arms import FAR_LAGS, OURS
from mtsae_lens.experiments.planted.directions_report import directions_part
from mtsae_lens.experiments.planted.report import planted_part
from mtsae_lens.experiments.planted.settings import PlantedCommandSettings
from mtsae_lens.experiments.planted.trials import PlantedSettings
from mtsae_lens.interruption import GOES_ON, stopped_with
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report


def trial_settings(settings: PlantedCommandSettings) -> PlantedSettings:
    """Return what all trials share."""
    return PlantedSettings(
        planted_config(settings.planted),
        d_sae=settings.d_sae,
        n_steps=settings.n_steps,
        n_test_sequences=settings.n_test_sequences,
    )


def _check(settings: PlantedCommandSettings) -> None:
    """Refuse before the first training what would fail after the last."""
    planted = trial_settings(settings).planted
    n_features = PlantedFeatures(planted).n_features
    if settings.d_sae < n_features:
        raise ConfigError(f"--d-sae must be at least {n_features}, the number of planted features; got {settings.d_sae}")
    if not planted.lags or not planted.durations:
        raise ConfigError("planted: the comparison needs lags and durations; give at least one of each")
    farthest = max(far for _, far in FAR_LAGS["lags"])
    if settings.n_direction_seeds and planted.context_size <= farthest:
        raise ConfigError(
            f"the ablations plant lags of up to {farthest} positions, so context_size must be at least {farthest + 1}, got "
            f"{planted.context_size}; or leave them out with --n-direction-seeds 0"
        )


def planted_config(given: dict[str, Any]) -> PlantedConfig:
    """Return the default configuration with these fields changed.

    Raises:
        ConfigError: no such field, or a value that cannot be planted.
    """
    valid = [field.name for field in fields(PlantedConfig)]
    for name in given:
        if name not in valid:
            raise ConfigError(f"planted: no field {name!r}.{nearest(name, valid)}")
    try:
        return PlantedConfig(**{name: _tuples(value) for name, value in given.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"planted: {error}; durations are whole numbers and lags pairs of them, such as [[1, 2], [4, 8]]"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@stopped_with(GOES_ON, unless_told=True)
@in_output_folder
def run_planted(settings: PlantedCommandSettings) -> tuple[dict[str, Any], list[Table]]:
    """Run the comparison and the ablations; write `metrics.json` (`planted`, `directions`, `provenance`) and `report.html`.

    Returns:
        The metrics, and the tables to print.
    """
    watch = Stopwatch()
    _check(settings)
    planted, chosen = planted_part(trial_settings(settings), settings.n_seeds, settings.out / "planted", settings.n_workers)
    parts = [planted]
    if settings.n_direction_seeds:
        parts.append(
            directions_part(
                trial_settings(settings),
                chosen[OURS],
                settings.n_direction_seeds,
                settings.out / "directions",
                settings.n_workers,
            )
        )
    metrics: dict[str, Any] = {part.name: part.metrics for part in parts}
    metrics["planted_config"] = asdict(trial_settings(settings).planted)
    metrics["provenance"] = provenance(0, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, metrics)
    lead = "How well do sparse autoencoders recover planted features, whose directions, time scales and activations are known?"
    sections = [section for part in parts for section in part.sections]
    write_report(settings.out, "Planted time scales", lead, sections, metrics["provenance"])
    return metrics, [table for part in parts for table in part.tables]
