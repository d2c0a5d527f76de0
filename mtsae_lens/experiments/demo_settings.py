"""Settings of `mtsae demo`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mtsae_lens.commands.explore_settings import ExploreSettings
from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.settings import Settings
from mtsae_lens.training.settings import TrainSettings

_MTSAE: str = TrainSettings.model_fields["architecture"].default


class DemoSettings(Settings):
    """Settings of `mtsae demo`."""

    out: Path = Path("runs/demo")
    """Folder for the trained SAEs, the metrics, the report and the page of features."""
    training_tokens: int = Field(600_000, gt=0)
    """Number of tokens to train each SAE on."""
    d_sae: int = Field(1024, gt=0)
    """Number of features of each SAE."""
    k: int = Field(32, gt=0)
    """Number of features that are active at a token."""
    n_eval_contexts: int = Field(256, gt=0)
    """Number of held-out contexts to evaluate each SAE on."""
    n_shown_features: int = Field(8, gt=0)
    """Number of edited features whose examples the report shows."""
    forget: str = "kjv"
    """Embedded text to forget."""
    near: tuple[str, ...] = ("milton", "shakespeare")
    """Text to keep that resembles the forget text."""
    retain: tuple[str, ...] = ("sotu", "austen", "factbook", "pydocs")
    """Unrelated text to keep."""
    contexts_per_split: int = Field(64, gt=0)
    """Maximum number of contexts to read from each split of each text for unlearning."""
    n_explored_tokens: int = Field(100_000, ge=0)
    """Number of tokens on which to explore all features. 0 skips the exploration."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Random seed."""

    def training(self, architecture: str) -> TrainSettings:
        """Return the settings of one training run. The two architectures share rows, tokens, width, L0 and schedule.

        Args:
            architecture: architecture of the SAE.
        """
        return TrainSettings(
            architecture=architecture,
            d_sae=self.d_sae,
            training_tokens=self.training_tokens,
            out=self.out / architecture,
            seed=self.seed,
            sae={"k": self.k},
        )

    def unlearning(self) -> UnlearnSettings:
        """Return the settings of the unlearning experiment on the MTSAE."""
        return UnlearnSettings(
            sae=self.out / _MTSAE,
            out=self.out,
            forget=self.forget,
            near=self.near,
            retain=self.retain,
            reference="embedded-retrained",
            contexts_per_split=self.contexts_per_split,
            seed=self.seed,
        )

    def exploration(self) -> ExploreSettings:
        """Return the settings for exploring the MTSAE's features. They read training text, because TEST is read once, to measure."""
        return ExploreSettings(
            sae=self.out / _MTSAE,
            out=self.out / "explore",
            dataset=(self.forget, *self.near, *self.retain),
            split="train",
            n_tokens=self.n_explored_tokens,
            n_ablated=1,
            n_attributed=1,
            seed=self.seed,
        )
