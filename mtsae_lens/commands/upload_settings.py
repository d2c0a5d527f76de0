"""Settings of `mtsae upload`. This module loads pydantic alone."""

from __future__ import annotations

from pathlib import Path

from mtsae_lens.settings import Settings


class UploadSettings(Settings):
    """Settings of `mtsae upload`."""

    sae: Path
    """Folder of a trained SAE of any architecture."""
    repo_id: str
    """Repository on the Hugging Face hub, as `OWNER/NAME`. It is created if it does not exist."""
    sae_id: str | None = None
    """Folder of the SAE in the repository. By default it is the name of the SAE's hook."""
    metrics: Path | None = None
    """File `metrics.json` of `mtsae evaluate`, whose numbers go into the card."""
    private: bool = False
    """Create the repository as a private one."""
    dry_run: Path | None = None
    """New or empty folder to write the files into, instead of uploading them."""
