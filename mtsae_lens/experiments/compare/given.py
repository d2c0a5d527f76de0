"""Check and name the SAEs that are measured beside those of the grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens import SAE

from mtsae_lens.errors import ConfigError
from mtsae_lens.experiments.compare.grid import Grid
from mtsae_lens.splice.hook_checks import check_one_hook


def check_given(folder: Path, sae: SAE[Any], grid: Grid) -> None:
    """Check, before anything is trained, that an SAE can be compared with those of the grid.

    Args:
        folder: its folder, for the error.
        sae: the SAE.
        grid: the grid.

    Raises:
        ConfigError: it reads or decodes another hook, one head, activations of another width or of another language model, or contexts that
            begin otherwise.
    """
    metadata, contents = sae.cfg.metadata, grid.cache.contents
    try:
        check_one_hook(sae)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from error
    if metadata.hook_name not in grid.hook_names:
        raise ConfigError(
            f"{folder}: expected an SAE at {' or '.join(grid.hook_names)}, got one at {metadata.hook_name}; leave it out, or add its hook"
        )
    if metadata.hook_head_index is not None:
        raise ConfigError(
            f"{folder}: expected an SAE of all heads, got one of head {metadata.hook_head_index}; leave it out of --saes"
        )
    width = contents.hooks[metadata.hook_name]
    if sae.cfg.d_in != width and sae.cfg.reshape_activations != "hook_z":
        raise ConfigError(
            f"{folder}: expected an SAE with d_in={width}, got d_in={sae.cfg.d_in}; it is of another language model: leave it out of --saes"
        )
    for name, of_grid in (("model_name", contents.model_name), ("prepend_bos", contents.prepend_bos)):
        recorded = metadata.get(name)
        if recorded is not None and _without_path(recorded) != _without_path(of_grid):
            raise ConfigError(
                f"{folder}: expected an SAE with {name}={of_grid}, as the cache has, got {recorded}; leave it out of --saes, or cache for its "
                "model"
            )


def _without_path(value: Any) -> Any:
    """Return the last part of the folder of a model, which may lie elsewhere today; other values as they are."""
    return Path(value).name if isinstance(value, str) else value


def shortest_names(folders: Sequence[Path]) -> list[str]:
    """Name folders by as few of their last parts as tell them apart.

    Args:
        folders: the folders.

    Returns:
        One name for each, such as `sae`, or `a/sae` and `b/sae`.
    """
    parts = [folder.resolve().parts for folder in folders]
    for n in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(of[-n:]) for of in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names if folders else []
