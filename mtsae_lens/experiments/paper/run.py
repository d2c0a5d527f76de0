"""Repeat the paper step by step, and show by experiment why its model did not learn."""

from __future__ import annotations

from dataclasses import replace

from mtsae_lens.data.documents import check_source
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.paper.initialization import measure_initialization
from mtsae_lens.experiments.paper.initialization_report import report_initialization
from mtsae_lens.experiments.paper.published import SETTINGS, PublishedSettings
from mtsae_lens.experiments.paper.reproduction import reproduce
from mtsae_lens.experiments.paper.reproduction_report import report_reproduction
from mtsae_lens.experiments.paper.results import PaperResult
from mtsae_lens.experiments.paper.settings import PaperSettings
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.switch_arms import SwitchSettings
from mtsae_lens.experiments.paper.switches import measure_switches
from mtsae_lens.experiments.paper.switches_report import report_switches
from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.experiments.planted.comparison import compare_architectures, summarize_comparison
from mtsae_lens.experiments.planted.report import report_comparison
from mtsae_lens.experiments.planted.training import PlantedSettings
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report


def make_published_settings(settings: PaperSettings) -> PublishedSettings:
    """Return the paper's settings. Only the context size of another model and, with `quick`, the buffer differ.

    Args:
        settings: settings of the command.
    """
    buffer = 128 if settings.quick else SETTINGS.buffer_size_sequences
    return replace(SETTINGS, context_size=settings.context_size, buffer_size_sequences=buffer)


def make_switch_settings(settings: PaperSettings) -> SwitchSettings:
    """Return the settings that all arms of the switches share.

    Args:
        settings: settings of the command.
    """
    full = SwitchSettings(n_steps=settings.n_steps, context_size=settings.context_size)
    if not settings.quick:
        return full
    return replace(full, n_train_contexts=128, n_test_contexts=16, n_model_contexts=8)


def make_planted_settings(settings: PaperSettings) -> PlantedSettings:
    """Return the settings that all trials on planted sequences share.

    Args:
        settings: settings of the command.
    """
    full = PlantedSettings(n_steps=settings.n_planted_steps)
    return replace(full, d_sae=160, n_test_sequences=16) if settings.quick else full


@interrupt_on_signal(GOES_ON, keep_inner_message=True)
@in_output_folder
def run_paper(settings: PaperSettings) -> tuple[PaperResult, list[Table]]:
    """Run every part, and write `metrics.json` (the result and its `provenance`) and `report.html`. Finished work is not repeated.

    Args:
        settings: what to run.

    Returns:
        What was measured, and the tables to print.

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
    result, reports = _run_parts(settings)
    made = provenance(0, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, result.to_json() | {"provenance": made})
    about = {
        "paper": "its training run, and the same run with a learning rate of 0",
        "switches": "one change of its settings at a time",
        "planted": "recovery of planted time scales",
    }
    shown, n_seeds = "; ".join(about[part] for part in settings.parts), settings.at_size().n_seeds
    lead = f"The paper's experiments at {settings.hook_name} of {settings.model} on {settings.text}, {n_seeds} seeds: {shown}."
    sections = [section for report in reports for section in report.sections]
    write_report(settings.out, "The paper, checked", lead, sections, made)
    return result, [table for report in reports for table in report.tables]


def _run_parts(settings: PaperSettings) -> tuple[PaperResult, list[PartReport]]:
    """Measure and report the chosen parts, in the order of the page."""
    size, published = settings.at_size(), make_published_settings(settings)
    reproduction = initialization = switches = planted = None
    reports = []
    if {"paper", "switches"} & set(settings.parts):
        setup = PaperSetup.load(settings.model, settings.hook_name, settings.text, settings.context_size, settings.device)
    if "paper" in settings.parts:
        reproduction = reproduce(setup, published, size.n_seeds, size.n_test_contexts, settings.out / "reproduction")
        reports.append(report_reproduction(reproduction, published, setup.dataset))
        initialization = measure_initialization(
            setup,
            published,
            reproduction.runs,
            n_draws=size.n_draws,
            n_contexts=size.n_test_contexts,
            n_still_batches=size.n_still_batches,
            out=settings.out / "initialisation",
        )
        reports.append(report_initialization(initialization, reproduction.runs))
    if "switches" in settings.parts:
        shared = make_switch_settings(size)
        switches = measure_switches(setup, shared, size.n_seeds, settings.out / "switches", settings.n_workers)
        reports.append(report_switches(switches, shared, size.n_seeds, setup.d_in))
    if "planted" in settings.parts:
        compared = compare_architectures(
            make_planted_settings(size), size.n_seeds, settings.out / "planted", settings.n_workers
        )
        planted = summarize_comparison(compared)
        reports.append(report_comparison(compared, planted))
    return PaperResult(reproduction=reproduction, initialization=initialization, switches=switches, planted=planted), reports
