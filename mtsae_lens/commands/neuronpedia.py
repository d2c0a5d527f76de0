"""Write a folder of facts as the JSON that Neuronpedia imports."""

from __future__ import annotations

from mtsae_lens.commands.neuronpedia_settings import NeuronpediaSettings
from mtsae_lens.errors import OutputError
from mtsae_lens.facts.folder import FactsFolder
from mtsae_lens.files import write_whole_folder
from mtsae_lens.interop.neuronpedia import export_neuronpedia
from mtsae_lens.output_folders import check_output_folder


def run_export_neuronpedia(settings: NeuronpediaSettings) -> int:
    """Write the files.

    Args:
        settings: the folder of facts and the output folder.

    Returns:
        The number of batches.

    Raises:
        DataError: the folder holds no facts.
        OutputError: the output folder is not empty.
    """
    facts = FactsFolder.open(settings.facts)
    check_output_folder(settings.out)
    out = settings.out.resolve()
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"--out {settings.out}: expected an empty folder, got one with files; give a new or empty folder")
    with write_whole_folder(out) as folder:
        return export_neuronpedia(
            facts, folder, model_id=settings.model_id, sae_set=settings.sae_set, batch_size=settings.batch_size
        )
