"""Add digests to the files that SAELens writes for an SAE, so that damage is detected when the SAE is loaded.

`sae_weights.safetensors` holds two digests in its metadata: of the weights, and of the settings in `cfg.json` on which the features
depend (all but `metadata`, `dtype` and `device`, which may be changed). SAELens's own loader does not read the metadata of that file,
so the `cfg.json` of an MTSAE also holds the digest of its weights, and the class checks it. SAELens's `save_model` of other
architectures writes neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mtsae_lens.digests import digest_json, digest_tensors
from mtsae_lens.errors import DataError, ModelError
from mtsae_lens.files import write_text
from mtsae_lens.sealed import read_json, read_tensors, write_tensors
from mtsae_lens.upstream import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME

WEIGHTS_DIGEST = "weights_sha256"
"""Key in the metadata of `cfg.json`."""

_CFG_DIGEST = "cfg_sha256"  # key in the metadata of the weights
_REMEDY = "copy the folder again, or train the SAE again"


def seal_sae(folder: Path, *, in_config: bool = False) -> None:
    """Add digests to the folder of an SAE that SAELens has just written.

    Args:
        folder: holds `cfg.json` and `sae_weights.safetensors`.
        in_config: whether to write the digest of the weights into `cfg.json` as well, for a class that checks it.
    """
    cfg = read_json(folder / SAE_CFG_FILENAME, dict[str, Any], _REMEDY)
    tensors, _ = read_tensors(folder / SAE_WEIGHTS_FILENAME, _REMEDY)
    write_tensors(folder / SAE_WEIGHTS_FILENAME, tensors, {_CFG_DIGEST: digest_json(_behavior(cfg))})
    if in_config:
        cfg["metadata"] = (cfg.get("metadata") or {}) | {WEIGHTS_DIGEST: describe_weights(tensors)}
    write_text(folder / SAE_CFG_FILENAME, json.dumps(cfg))


def check_sae(folder: Path) -> None:
    """Compare weights and settings of an SAE with the digests in its folder, if it has any.

    Args:
        folder: the folder of the SAE.

    Raises:
        ModelError: the weights or settings differ from those that were saved.
    """
    try:
        _, metadata = read_tensors(folder / SAE_WEIGHTS_FILENAME, _REMEDY)
        cfg = read_json(folder / SAE_CFG_FILENAME, dict[str, Any], _REMEDY)
    except DataError as error:
        raise ModelError(str(error)) from error
    if metadata.get(_CFG_DIGEST, digest_json(_behavior(cfg))) != digest_json(_behavior(cfg)):
        raise ModelError(
            f"{folder / SAE_CFG_FILENAME}: expected the settings that were saved with the weights, got others; copy the folder again, or if "
            f"you changed them on purpose, save the SAE again: SAE.load_from_disk({str(folder)!r}).save_model({str(folder)!r})"
        )


def describe_weights(tensors: Mapping[str, Tensor]) -> str:
    """Describe weights by their dtype and digest, so that weights cast on loading are not taken for damaged ones.

    Args:
        tensors: the weights by name.

    Returns:
        The dtypes and a SHA-256, such as `float32:9f86...`.
    """
    dtypes = "+".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()}))
    return f"{dtypes}:{digest_tensors(tensors)}"


def check_weights(tensors: Mapping[str, Tensor], recorded: str) -> None:
    """Compare loaded weights with what `describe_weights` returned when they were saved.

    Args:
        tensors: the weights by name.
        recorded: what `describe_weights` returned.

    Raises:
        ModelError: the dtype is the same and the content differs.
    """
    found = describe_weights(tensors)
    if found != recorded and found.partition(":")[0] == recorded.partition(":")[0]:
        raise ModelError(
            f"expected the weights of the SHA-256 in {SAE_CFG_FILENAME}, got others (the weights of the SAE are damaged); {_REMEDY}"
        )


def _behavior(cfg: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in cfg.items() if name not in ("metadata", "dtype", "device")}
