"""Repeat the paper, step by step, and show by experiment why its model did not learn."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mtsae_lens.data.documents import check_source
from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.paper.initialization_report import initialisation_part
from mtsae_lens.experiments.paper.published import N_SEEDS, SETTINGS, PublishedSettings
from mtsae_lens.experiments.paper.reproduction_report import reproduction_part
from mtsae_lens.experiments.paper.setup import Subject
from mtsae_lens.experiments.paper.switches import SwitchSettings
from mtsae_lens.experiments.paper.switches_report import switches_part
from mtsae_lens.experiments.parts import Part
from mtsae_lens.experiments.planted.report import planted_part
from mtsae_lens.experiments.planted.trials import PlantedSettings
from mtsae_lens.interruption import GOES_ON, stopped_with
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Table, write_report
from mtsae_lens.settings import Settings

PAPER_MODEL = "pythia-70m"
PAPER_DATASET = "monology/pile-uncopyrighted"


class PaperSettings(Settings):
    """Settings of `mtsae paper`."""

    model: str = "embedded"
    hook_name: str = "blocks.3.hook_resid_post"
    dataset: str | None = None
    """None for the paper's own with the paper's own model, and the embedded texts with any other."""
    context_size: int = Field(SETTINGS.context_size, gt=1)
    n_seeds: int = Field(N_SEEDS, gt=0)
    n_steps: int = Field(200, gt=0)
    """Steps of every arm of the switches, but for those about the number of steps."""
    n_draws: int = Field(20_000, gt=0)
    """Random front ends from which table 1 is expected without training."""
    n_test_contexts: int = Field(32, gt=1)
    """Held-out contexts for the paper's metrics."""
    n_still_batches: int = Field(32, ge=4)
    """Batches whose gradient is measured while nothing learns."""
    out: Path = Path("runs/paper")
    device: str = "cpu"
    n_planted_steps: int = Field(PlantedSettings.n_steps, gt=1)
    """Steps of every SAE that is trained on planted sequences."""
    n_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), gt=0)
    """Processes that share the trainings."""
    parts: tuple[Literal["paper", "switches", "planted"], ...] = Field(("paper", "switches", "planted"), min_length=1)
    """What to run: the paper's own run and its initialisation, the switches, the recovery of planted time."""
    quick: bool = False
    """Two seeds, fewer steps and draws, and a smaller buffer: to see that it runs, not to read numbers from."""

    @property
    def text(self) -> str:
        """The dataset that is read."""
        return self.dataset or (PAPER_DATASET if self.model == PAPER_MODEL else "embedded")

    def at_size(self) -> PaperSettings:
        """These settings, smaller if `quick`."""
        if not self.quick:
            return self
        smaller = {
            "n_seeds": 2,
            "n_steps": 24,
            "n_draws": 500,
            "n_test_contexts": 8,
            "n_still_batches": 8,
            "n_planted_steps": 24,
        }
        return self.model_copy(update={name: min(getattr(self, name), value) for name, value in smaller.items()})

    def published(self) -> PublishedSettings:
        """The paper's settings; only the context size of another model and, if `quick`, the buffer differ."""
        buffer = 128 if self.quick else SETTINGS.buffer_size_sequences
        return replace(SETTINGS, context_size=self.context_size, buffer_size_sequences=buffer)

    def switches(self) -> SwitchSettings:
        """What the arms of the switches share."""
        full = SwitchSettings(n_steps=self.n_steps, context_size=self.context_size)
        if not self.quick:
            return full
        return replace(full, n_train_contexts=128, n_test_contexts=16, n_model_contexts=8)

    def planted(self) -> PlantedSettings:
        """What the trials on planted sequences share."""
        full = PlantedSettings(n_steps=self.n_planted_steps)
        return replace(full, d_sae=160, n_test_sequences=16) if self.quick else full


@stopped_with(GOES_ON, unless_told=True)
@in_output_folder
def run_paper(settings: PaperSettings) -> tuple[dict[str, Any], list[Table]]:
    """Run every part; write `metrics.json` (one key per part, and `provenance`) and `report.html`. What is done is not done again.

    Returns:
        The metrics, and the tables to print.
    """
    watch = Stopwatch()
    if SETTINGS.batch_size_tokens % settings.context_size:
        raise ConfigError(
            f"context_size={settings.context_size} does not divide the paper's batch of {SETTINGS.batch_size_tokens:,} tokens; give 128, or "
            "another power of two"
        )
    check_source(settings.text)
    size, published = settings.at_size(), settings.published()
    parts: list[Part] = []
    if {"paper", "switches"} & set(settings.parts):
        subject = Subject.load(settings.model, settings.hook_name, settings.text, settings.context_size, settings.device)
    if "paper" in settings.parts:
        reproduction = reproduction_part(subject, published, size.n_seeds, size.n_test_contexts, settings.out / "reproduction")
        initialisation = initialisation_part(
            subject,
            published,
            reproduction,
            n_draws=size.n_draws,
            n_contexts=size.n_test_contexts,
            n_still_batches=size.n_still_batches,
            out=settings.out / "initialisation",
        )
        parts += [reproduction, initialisation]
    if "switches" in settings.parts:
        parts.append(switches_part(subject, size.switches(), size.n_seeds, settings.out / "switches", settings.n_workers))
    if "planted" in settings.parts:
        planted, _ = planted_part(size.planted(), size.n_seeds, settings.out / "planted", settings.n_workers)
        parts.append(planted)
    metrics: dict[str, Any] = {part.name: part.metrics for part in parts}
    metrics["provenance"] = provenance(0, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, metrics)
    about = {
        "paper": "its run repeated, and what its numbers look like when nothing learns",
        "switches": "what kept it from learning",
        "planted": "what an MTSAE recovers of sequences whose time is known",
    }
    told = "; ".join(about[part] for part in settings.parts)
    lead = f"The paper at {settings.hook_name} of {settings.model} on {settings.text}, {size.n_seeds} seeds: {told}."
    sections = [section for part in parts for section in part.sections]
    write_report(settings.out, "The paper: repeated, explained, finished", lead, sections, metrics["provenance"])
    return metrics, [table for part in parts for table in part.tables]
