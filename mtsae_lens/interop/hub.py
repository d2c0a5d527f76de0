"""SAEs on the Hugging Face hub, by SAELens's own functions: what is uploaded loads with `SAE.from_pretrained`, bit for bit.

The layout is SAELens's: a folder for each SAE with `cfg.json`, `sae_weights.safetensors` and `sparsity.safetensors`. Added to it are a card
in that folder, and the same card as the repository's README where there is none.
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
from mtsae_lens.interop.card import sae_card
from mtsae_lens.upstream import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, load_sae_config_from_huggingface

HUB_PREFIX = "hub:"
"""`hub:OWNER/NAME:SAE_ID` stands for an SAE wherever a command takes a folder of one."""

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
    """Write the files of an upload as they will lie on the hub: `out/README.md` and `out/SAE_ID/...`; returns the SAE's folder.

    Weights are copied byte for byte. Paths of this machine do not leave it: for a local model or text `cfg.json` says `elsewhere:NAME`, with
    the last part of its path, and `runner_cfg.json`, which is full of paths, is left out.

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
        raise ModelError(f"{sae_dir}: no SAE that can be uploaded ({_one_line(error)})") from error
    card = sae_card(sae, repo_id, sae_id, metrics, meanings, measured_on)
    for place in (out, folder):
        write_text(place / CARD, card)
    return folder


def upload_sae(sae_dir: Path, repo_id: str, sae_id: str, *, private: bool = False, **card: Any) -> str:
    """Upload an SAE, creating the repository if there is none; returns what `open_sae` and every command take: `hub:REPO_ID:SAE_ID`.

    Args:
        sae_dir: folder of a trained SAE.
        repo_id: `OWNER/NAME`.
        sae_id: its folder in the repository; what is there under this name is replaced.
        private: create the repository as a private one.
        card: `metrics`, `meanings`, `measured_on`, as `write_upload` takes them.

    Raises:
        ConfigError: a malformed name.
        OutputError: the hub refuses or cannot be reached, or `private` is asked for and the repository is public already.
    """
    check_names(repo_id, sae_id)
    api = HfApi()
    with tempfile.TemporaryDirectory(prefix="upload_") as staged:
        folder = write_upload(sae_dir, Path(staged) / "repo", repo_id, sae_id, **card)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.repo_info(repo_id).private:
                raise OutputError(f"{repo_id} is public already, and --private would not change that; give another name")
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
                f"{repo_id}: the upload did not end ({_one_line(error)}); are you logged in (hf auth login)?"
            ) from error
    return f"{HUB_PREFIX}{repo_id}:{sae_id}"


def load_from_hub(reference: str, device: str = "cpu") -> SAE[Any]:
    """The SAE of `hub:REPO_ID:SAE_ID` in the dtype it was saved in; `REPO_ID` may be a release that SAELens lists.

    Raises:
        ConfigError: a malformed reference.
        ModelError: no such SAE, damaged files, or a hub that cannot be reached.
    """
    repo_id, separator, sae_id = reference.removeprefix(HUB_PREFIX).partition(":")
    if not (reference.startswith(HUB_PREFIX) and separator and repo_id and sae_id):
        raise ConfigError(f"an SAE on the hub is given as hub:OWNER/NAME:SAE_ID; got {reference!r}")
    try:
        cfg = load_sae_config_from_huggingface(repo_id, sae_id, device=device)
        return SAE.from_pretrained(repo_id, sae_id, device=device, dtype=cfg.get("dtype", "float32"))
    except (HfHubHTTPError, OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{reference}: the SAE cannot be loaded from the hub ({_one_line(error)})") from error


def check_names(repo_id: str, sae_id: str) -> None:
    """Raise `ConfigError` for names that the hub or SAELens would refuse, or that would lead out of the repository."""
    if repo_id.count("/") != 1 or not all(repo_id.split("/")):
        raise ConfigError(f"a repository is given as OWNER/NAME; got {repo_id!r}")
    if not sae_id or ":" in sae_id or any(part in ("", ".", "..") for part in sae_id.split("/")):
        raise ConfigError(f"an SAE's id is the name of a folder, such as blocks.3.hook_resid_post; got {sae_id!r}")


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
