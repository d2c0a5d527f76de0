"""Upload a trained SAE to the Hugging Face hub, with a card that describes it and shows its metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mtsae_lens.commands.evaluate_results import METRIC_MEANINGS
from mtsae_lens.commands.upload_settings import UploadSettings
from mtsae_lens.data.origins import display_name
from mtsae_lens.errors import ConfigError, OutputError
from mtsae_lens.files import write_whole_folder
from mtsae_lens.interop.hub import check_names, upload_sae, write_upload
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import check_output_folder


def run_upload(settings: UploadSettings) -> str:
    """Upload a folder, or write the files that would be uploaded.

    Args:
        settings: the SAE and the repository.

    Returns:
        The name of the SAE on the hub, or the folder of the dry run.

    Raises:
        ConfigError: a name is malformed, or the metrics were not written by `mtsae evaluate`.
        OutputError: the hub refuses the upload, or the folder of the dry run is not empty.
    """
    sae = load_sae(settings.sae)
    sae_id = settings.sae_id or sae.cfg.metadata.hook_name or "sae"
    check_names(settings.repo_id, sae_id)
    card = _read_metrics(settings.metrics) if settings.metrics else {}
    if settings.dry_run is None:
        return upload_sae(settings.sae, settings.repo_id, sae_id, private=settings.private, **card)
    check_output_folder(settings.dry_run)
    out = settings.dry_run.resolve()
    if out.exists() and any(out.iterdir()):
        raise OutputError(
            f"--dry-run {settings.dry_run}: expected an empty folder, got one with files; give a new or empty folder"
        )
    with write_whole_folder(out) as folder:
        write_upload(settings.sae, folder, settings.repo_id, sae_id, **card)
    return str(settings.dry_run)


def _read_metrics(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"--metrics {path}: expected the metrics.json of 'mtsae evaluate', got {type(error).__name__}; give that file"
        ) from error
    measured = content if isinstance(content, dict) else {}
    metrics = {name: measured[name] for name in METRIC_MEANINGS if isinstance(measured.get(name), int | float)}
    if not metrics:
        raise ConfigError(
            f"--metrics {path}: expected the metrics of 'mtsae evaluate', got none of them; give the metrics.json that it wrote"
        )
    made = measured.get("provenance")
    settings = made.get("settings") if isinstance(made, dict) else None
    dataset = settings.get("dataset") if isinstance(settings, dict) else None
    return {
        "metrics": metrics,
        "meanings": METRIC_MEANINGS,
        "measured_on": display_name(dataset) if isinstance(dataset, str) and dataset else "its training dataset",
    }
