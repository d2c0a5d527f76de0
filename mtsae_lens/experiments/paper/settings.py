"""Settings of `mtsae paper`. This module loads pydantic alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field

from mtsae_lens.experiments.paper.published import N_SEEDS, SETTINGS
from mtsae_lens.settings import Settings

PAPER_MODEL = "pythia-70m"
PAPER_DATASET = "monology/pile-uncopyrighted"


class PaperSettings(Settings):
    """Settings of `mtsae paper`."""

    model: str = "embedded"
    """Language model: `embedded`, a name that TransformerLens knows, or a local Hugging Face folder. The paper's own is `pythia-70m`."""
    hook_name: str = "blocks.3.hook_resid_post"
    """TransformerLens hook whose activations the SAEs read, such as `blocks.3.hook_resid_post`."""
    dataset: str | None = None
    """Text to train on. By default it is the Pile for `pythia-70m`, and the embedded texts for any other model."""
    context_size: int = Field(SETTINGS.context_size, gt=1)
    """Number of positions in a context."""
    n_seeds: int = Field(N_SEEDS, gt=0)
    """Number of seeds of every experiment."""
    n_steps: int = Field(200, gt=0)
    """Number of training steps when the paper's settings are changed one at a time, except if the change is the number of steps."""
    n_draws: int = Field(20_000, gt=0)
    """Number of random initializations from which to predict the paper's table 1 without training."""
    n_test_contexts: int = Field(32, gt=1)
    """Number of held-out contexts for the paper's metrics."""
    n_still_batches: int = Field(32, ge=4)
    """Number of batches whose gradient is measured at a learning rate of zero."""
    out: Path = Path("runs/paper")
    """Folder for the trials, the metrics and the report."""
    device: str = "cpu"
    """Device to run on, such as `cpu`, `cuda`, `cuda:1` or `mps`."""
    n_planted_steps: int = Field(3_000, gt=1)
    """Number of training steps of every SAE that is trained on planted sequences."""
    n_workers: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), gt=0)
    """Number of processes that share the training runs."""
    parts: tuple[Literal["paper", "switches", "planted"], ...] = Field(("paper", "switches", "planted"), min_length=1)
    """Part to run: the paper's own run and its initialization (`paper`), its settings changed one at a time (`switches`), or the recovery of
    planted time scales (`planted`). By default all three run."""
    quick: bool = False
    """Use two seeds, fewer steps and draws, and a smaller buffer, to check that everything runs. The numbers mean little."""

    @property
    def text(self) -> str:
        """Return the dataset that is read."""
        return self.dataset or (PAPER_DATASET if self.model == PAPER_MODEL else "embedded")

    def at_size(self) -> PaperSettings:
        """Return these settings, made smaller if `quick` is on."""
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
