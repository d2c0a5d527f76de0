"""Explore what every feature of an SAE does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sae_lens import SAE

from mtsae_lens.commands.explore_settings import ExploreSettings
from mtsae_lens.data.documents import check_source
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.origins import find_model, find_source
from mtsae_lens.data.precision import HALF_PRECISION, dtype_name
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.explore import explore
from mtsae_lens.interruption import GOES_ON, interrupt_on_signal
from mtsae_lens.machine_paths import shorten, shorten_settings
from mtsae_lens.opening import open_sae
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.records import provenance
from mtsae_lens.reporting.explorer.page import write_explorer
from mtsae_lens.splice.edit_files import weights_digest


@interrupt_on_signal(GOES_ON)
@in_output_folder
def run_explore(settings: ExploreSettings) -> tuple[dict[str, Any], Path]:
    """Read the text, and write the folder of facts (`mtsae_lens.facts`) and its page; a run that was stopped is resumed.

    Several ranks (`mtsae_lens.ranks`) share the work. The first one writes, and all return.

    Args:
        settings: what to explore.

    Returns:
        The content of `explore.json`, and the path of the page.
    """

    def sources_of(sae: SAE[Any]) -> tuple[str, ...]:
        return settings.dataset or (find_source(sae.cfg.metadata, settings.sae) or "embedded",)

    def check_text(sae: SAE[Any]) -> None:
        for source in sources_of(sae):
            check_source(source)

    lm, _ = open_sae(
        settings.sae,
        model=settings.model,
        device=current_ranks().local_device(settings.device),
        batch_size=settings.batch_size,
        dtype=settings.dtype,
        check=check_text,
    )
    model = settings.model or find_model(lm.sae.cfg.metadata, settings.sae)
    sources = sources_of(lm.sae)
    recorded = settings.model_dump(mode="json")
    depends_on = {name: value for name, value in recorded.items() if name not in ("out", "device", "dtype")}
    if lm.model.cfg.dtype in HALF_PRECISION:
        depends_on["dtype"] = dtype_name(lm.model.cfg.dtype)
    facts = explore(
        lm,
        Corpora(tuple(sources), settings.split, lm.cutter, settings.n_tokens, settings.seed),
        settings.out,
        settings.plan,
        settings=shorten_settings(
            depends_on
            | {"dataset": list(sources), "sae_sha256": weights_digest(lm.sae)}
            | {shorten(name, anywhere=True): stamp for name, stamp in (text_stamps(*sources) | model_stamps(model)).items()},
            anywhere=True,
        ),
        about=lambda seconds: {"sae": settings.sae.resolve().name, "provenance": provenance(settings.seed, seconds, recorded)},
    )
    page = write_explorer(settings.out) if current_ranks().is_first else settings.out
    return facts, Path(current_ranks().tell(str(page)))
