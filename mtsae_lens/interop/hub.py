"""Upload SAEs to the Hugging Face hub and load them, with SAELens's own functions.

The layout is SAELens's: a folder for each SAE with `cfg.json`, `sae_weights.safetensors` and `sparsity.safetensors`. An uploaded SAE
loads with `SAE.from_pretrained`, bit for bit. A model card is added to the folder, and to the repository if that has no README.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from sae_lens import SAE, upload_saes_to_huggingface
from safetensors import SafetensorError

from mtsae_lens.data.origins import share_metadata
from mtsae_lens.errors import ConfigError, ModelError, OutputError
from mtsae_lens.files import write_json, write_text
from mtsae_lens.interop.card import write_sae_card
from mtsae_lens.upstream import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, load_sae_config_from_huggingface

HUB_PREFIX = "hub:"
"""Prefix of the name of an SAE on the hub, `hub:OWNER/NAME:SAE_ID`, which every command takes in place of a folder."""

CARD = "README.md"


def write_upload(
    sae_dir: Path,
    out: Path,
    repo_id: str,
    sae_id: str,
    *,
    metrics: Mapping[str, float] | None = None,
    meanings: Mapping[str, str] | None = None,
    measured_on: str | None = None,
) -> Path:
    """Write the files of an upload as they will be on the hub: `out/README.md` and `out/SAE_ID/...`.

    Weights are copied byte for byte. Paths of this machine are not shared: `cfg.json` names a local model or text `elsewhere:NAME`,
    where NAME is the last part of its path, and `runner_cfg.json`, which holds many paths, is left out.

    Args:
        sae_dir: folder of a trained SAE.
        out: the folder to write; it may not have a folder `sae_id` yet.
        repo_id: repository on the hub, `OWNER/NAME`, for the card.
        sae_id: folder of the SAE in the repository.
        metrics: metrics for the card, by name.
        meanings: what each metric means, by name.
        measured_on: the text on which they were measured.

    Returns:
        The folder of the SAE, `out/SAE_ID`.

    Raises:
        ModelError: the folder holds no SAE that SAELens can load.
    """
    folder = out / sae_id
    folder.mkdir(parents=True)
    try:
        for name in (SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME):
            if name == SAE_WEIGHTS_FILENAME or (sae_dir / name).is_file():
                shutil.copyfile(sae_dir / name, folder / name)
        cfg = json.loads((sae_dir / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
        cfg["metadata"] = share_metadata(cfg.get("metadata") or {})
        write_json(folder / SAE_CFG_FILENAME, cfg)
        sae = SAE.load_from_disk(folder)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{sae_dir}: expected an SAE that SAELens can load, got {_one_line(error)}; give the folder of an SAE"
        ) from error
    card = write_sae_card(sae, repo_id, sae_id, metrics, meanings, measured_on)
    for place in (out, folder):
        write_text(place / CARD, card)
    return folder


def upload_sae(sae_dir: Path, repo_id: str, sae_id: str, *, private: bool = False, **card: Any) -> str:
    """Upload an SAE, and create the repository if it does not exist.

    Args:
        sae_dir: folder of a trained SAE.
        repo_id: `OWNER/NAME`.
        sae_id: folder of the SAE in the repository; an SAE of this name is replaced.
        private: whether to create the repository as a private one.
        card: `metrics`, `meanings` and `measured_on` of `write_upload`.

    Returns:
        The name of the SAE for `open_sae` and every command: `hub:REPO_ID:SAE_ID`.

    Raises:
        ConfigError: a name is malformed.
        ModelError: the folder holds no SAE that SAELens can load.
        OutputError: the hub refuses or cannot be reached, or the repository exists and is public although `private` is set.
    """
    check_names(repo_id, sae_id)
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="upload_") as staged:
        folder = write_upload(sae_dir, Path(staged) / "repo", repo_id, sae_id, **card)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.repo_info(repo_id).private:
                raise OutputError(
                    f"expected a new or private repository for --private, got {repo_id}, which is public; give another"
                )
            upload_saes_to_huggingface({sae_id: folder}, repo_id, show_progress=False, add_default_readme=False)
            places = [f"{sae_id}/{CARD}"] + ([] if api.file_exists(repo_id, CARD) else [CARD])
            for place in places:
                api.upload_file(
                    path_or_fileobj=folder / CARD, path_in_repo=place, repo_id=repo_id, commit_message=f"Card of {sae_id}"
                )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(
                f"{repo_id}: expected an upload, got an error ({_one_line(error)}); check the network, and log in with: hf auth login"
            ) from error
    return f"{HUB_PREFIX}{repo_id}:{sae_id}"


def load_from_hub(reference: str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE from the hub, in the dtype in which it was saved.

    Args:
        reference: `hub:REPO_ID:SAE_ID`; `REPO_ID` may also be a release that SAELens lists.
        device: device to put the SAE on.

    Raises:
        ConfigError: the reference is malformed.
        ModelError: the SAE does not exist, its files are damaged, or the hub cannot be reached.
    """
    repo_id, separator, sae_id = reference.removeprefix(HUB_PREFIX).partition(":")
    if not (reference.startswith(HUB_PREFIX) and separator and repo_id and sae_id):
        raise ConfigError(f"expected hub:OWNER/NAME:SAE_ID, got {reference!r}; give the name of an SAE on the hub in this form")
    try:
        cfg = load_sae_config_from_huggingface(repo_id, sae_id, device=device)
        return SAE.from_pretrained(repo_id, sae_id, device=device, dtype=cfg.get("dtype", "float32"))
    except (HfHubHTTPError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{reference}: expected an SAE on the hub, got an error ({_one_line(error)}); check its name and the network"
        ) from error


def check_names(repo_id: str, sae_id: str) -> None:
    """Check the names of an upload.

    Args:
        repo_id: repository on the hub.
        sae_id: folder of the SAE in the repository.

    Raises:
        ConfigError: the hub or SAELens would refuse a name, or it leads out of the repository.
    """
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ConfigError(f"expected a repository OWNER/NAME, got {repo_id!r}; give the name in this form")
    if not sae_id or ":" in sae_id or any(part in ("", ".", "..") for part in sae_id.split("/")):
        raise ConfigError(
            f"expected the name of a folder as the SAE's id, got {sae_id!r}; give a name such as blocks.3.hook_resid_post"
        )


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
