"""Repeat the paper step by step, and show by experiment why its model did not learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mtsae_lens.data.documents import check_source
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.paper.initialization_report import initialization_part
from mtsae_lens.experiments.paper.published import SETTINGS, PublishedSettings
from mtsae_lens.experiments.paper.reproduction_report import reproduction_part
from mtsae_lens.experiments.paper.settings import PaperSettings
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.switches import SwitchSettings
from mtsae_lens.experiments.paper.switches_report import switches_part
from mtsae_lens.experiments.parts import Part
from mtsae_lens.experiments.planted.report import planted_part
from mtsae_lens.experiments.planted.trials import PlantedSettings
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report


def published_settings(settings: PaperSettings) -> PublishedSettings:
    """Return the paper's settings. Only the context size of another model and, with `quick`, the buffer differ.

    Args:
        settings: settings of the command.
    """
    buffer = 128 if settings.quick else SETTINGS.buffer_size_sequences
    return replace(SETTINGS, context_size=settings.context_size, buffer_size_sequences=buffer)


def switch_settings(settings: PaperSettings) -> SwitchSettings:
    """Return the settings that all arms of the switches share.

    Args:
        settings: settings of the command.
    """
    full = SwitchSettings(n_steps=settings.n_steps, context_size=settings.context_size)
    if not settings.quick:
        return full
    return replace(full, n_train_contexts=128, n_test_contexts=16, n_model_contexts=8)


def planted_settings(settings: PaperSettings) -> PlantedSettings:
    """Return the settings that all trials on planted sequences share.

    Args:
        settings: settings of the command.
    """
    full = PlantedSettings(n_steps=settings.n_planted_steps)
    return replace(full, d_sae=160, n_test_sequences=16) if settings.quick else full


@interrupt_on_signal(GOES_ON, keep_inner_message=True)
@in_output_folder
def run_paper(settings: PaperSettings) -> tuple[dict[str, Any], list[Table]]:
    """Run every part, and write `metrics.json` (one key per part, and `provenance`) and `report.html`. Finished work is not repeated.

    Args:
        settings: what to run.

    Returns:
        The metrics, and the tables to print.

    Raises:
        ConfigError: the context size does not divide the paper's batch.
    """
    watch = Stopwatch()
    if SETTINGS.batch_size_tokens % settings.context_size:
        raise ConfigError(
            f"expected a context_size that divides the paper's batch of {SETTINGS.batch_size_tokens:,}, got {settings.context_size}; give "
            "128, or another power of two"
        )
    check_source(settings.text)
    size, published = settings.at_size(), published_settings(settings)
    parts: list[Part] = []
    if {"paper", "switches"} & set(settings.parts):
        setup = PaperSetup.load(settings.model, settings.hook_name, settings.text, settings.context_size, settings.device)
    if "paper" in settings.parts:
        reproduction, runs = reproduction_part(
            setup, published, size.n_seeds, size.n_test_contexts, settings.out / "reproduction"
        )
        initialization = initialization_part(
            setup,
            published,
            runs,
            n_draws=size.n_draws,
            n_contexts=size.n_test_contexts,
            n_still_batches=size.n_still_batches,
            out=settings.out / "initialisation",
        )
        parts += [reproduction, initialization]
    if "switches" in settings.parts:
        parts.append(switches_part(setup, switch_settings(size), size.n_seeds, settings.out / "switches", settings.n_workers))
    if "planted" in settings.parts:
        planted, _ = planted_part(planted_settings(size), size.n_seeds, settings.out / "planted", settings.n_workers)
        parts.append(planted)
    metrics: dict[str, Any] = {part.name: part.metrics for part in parts}
    metrics["provenance"] = provenance(0, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, metrics)
    about = {
        "paper": "its training run, and the same run with a learning rate of 0",
        "switches": "one change of its settings at a time",
        "planted": "recovery of planted time scales",
    }
    shown = "; ".join(about[part] for part in settings.parts)
    lead = f"The paper's experiments at {settings.hook_name} of {settings.model} on {settings.text}, {size.n_seeds} seeds: {shown}."
    sections = [section for part in parts for section in part.sections]
    write_report(settings.out, "The paper, checked", lead, sections, metrics["provenance"])
    return metrics, [table for part in parts for table in part.tables]
