"""Settings of `mtsae export-neuronpedia`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mtsae_lens.settings import Settings


class NeuronpediaSettings(Settings):
    """Settings of `mtsae export-neuronpedia`."""

    facts: Path
    """Output folder of `mtsae explore`."""
    out: Path
    """New or empty folder for the files."""
    model_id: str | None = None
    """Name of the model on Neuronpedia. By default it is the name that the SAE records."""
    sae_set: str | None = None
    """Name of the set of SAEs on Neuronpedia. By default it is the name of the SAE's folder."""
    batch_size: int = Field(128, gt=0)
    """Number of features in a file."""
