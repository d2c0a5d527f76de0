"""Write a folder of facts in the JSON that Neuronpedia imports."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from mtsae_lens.errors import OutputError
from mtsae_lens.facts.folder import FactsFolder
from mtsae_lens.files import whole_folder
from mtsae_lens.interop.neuronpedia import export_neuronpedia
from mtsae_lens.output_folders import check_output_folder
from mtsae_lens.settings import Settings


class NeuronpediaSettings(Settings):
    """Settings of `mtsae export-neuronpedia`."""

    facts: Path
    """The --out folder of `mtsae explore`."""
    out: Path
    """A new or empty folder."""
    model_id: str | None = None
    """Neuronpedia's name of the model; None for the SAE's own."""
    sae_set: str | None = None
    """Neuronpedia's name of the set of SAEs; None for the SAE's folder."""
    batch_size: int = Field(128, gt=0)
    """Features in a file."""


def run_export_neuronpedia(settings: NeuronpediaSettings) -> int:
    """Write the files; returns how many batches there are.

    Raises:
        DataError: no facts in the folder.
        OutputError: the output folder holds files.
    """
    facts = FactsFolder.open(settings.facts)
    check_output_folder(settings.out)
    out = settings.out.resolve()
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"--out {settings.out}: holds files; give a new or empty folder")
    with whole_folder(out) as folder:
        return export_neuronpedia(
            facts, folder, model_id=settings.model_id, sae_set=settings.sae_set, batch_size=settings.batch_size
        )
