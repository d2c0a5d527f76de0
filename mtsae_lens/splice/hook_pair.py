"""Take the activations at the hooks of an SAE as one tensor.

An SAE reads and decodes at one hook, and h is what is there. A transcoder reads x at one hook and decodes y at a later one. Then h is both side
by side, `(batch, pos, d_in + d_out)`: features come from the first part, and edits change the second. So everything that reads, edits and
replaces activations is written for one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sae_lens import SAE, Transcoder
from torch import Tensor

from mtsae_lens.errors import ConfigError, ModelError


def hook_names_of(sae: SAE[Any]) -> tuple[str, ...]:
    """Return the hook of an SAE, or the hooks that a transcoder reads and decodes.

    Args:
        sae: the SAE, whose metadata names them.

    Raises:
        ConfigError: the metadata does not, or a transcoder reads one head.
    """
    metadata = sae.cfg.metadata
    if metadata.hook_name is None:
        raise ConfigError(
            "expected an SAE that names its hook, got one without; set sae.cfg.metadata.hook_name = 'blocks.3.hook_resid_post'"
        )
    if not isinstance(sae, Transcoder):
        return (metadata.hook_name,)
    if metadata.hook_name_out is None:
        raise ConfigError(
            "expected a transcoder that names the hook that it decodes, got one without; set sae.cfg.metadata.hook_name_out = "
            "'blocks.3.hook_attn_out'"
        )
    if metadata.hook_head_index is not None or sae.cfg.reshape_activations != "none":
        raise ConfigError(
            "expected a transcoder of all heads, flattened, got one with hook_head_index or reshape_activations; train one without them"
        )
    return metadata.hook_name, metadata.hook_name_out


def edited_width(sae: SAE[Any]) -> int:
    """Return the width of the activations that edits change.

    Args:
        sae: the SAE.
    """
    return sae.cfg.d_out if isinstance(sae, Transcoder) else sae.cfg.d_in


def join(sae: SAE[Any], caught: Mapping[str, Tensor]) -> Tensor:
    """Return h, from the activations at each hook.

    Args:
        sae: the SAE.
        caught: activations by the name of the hook, in the order in which the model ran the hooks.

    Raises:
        ModelError: the model decodes a transcoder's hook before it reads the other one.
    """
    names = hook_names_of(sae)
    if len(names) == 1:
        return caught[names[0]]
    ran = [name for name in caught if name in names]
    if ran != list(names):
        raise ModelError(
            f"expected a transcoder that decodes a later hook than it reads, got one from {names[0]} to {names[1]}, which the model runs "
            "first; edit the features of another one"
        )
    return torch.cat([caught[name].flatten(2) for name in names], dim=-1)


def read_part(sae: SAE[Any], h: Tensor) -> Tensor:
    """Return the part of h that the encoder reads.

    Args:
        sae: the SAE.
        h: activations, as `join` returns them; for a transcoder, those at the hook that it reads are enough.
    """
    return h[..., : sae.cfg.d_in] if isinstance(sae, Transcoder) else h


def edited_part(sae: SAE[Any], h: Tensor) -> Tensor:
    """Return the part of h that edits change.

    Args:
        sae: the SAE.
        h: activations, as `join` returns them.
    """
    return h[..., sae.cfg.d_in :] if isinstance(sae, Transcoder) else h


def with_edited_part(sae: SAE[Any], h: Tensor, edited: Tensor) -> Tensor:
    """Replace the part of h that edits change.

    Args:
        sae: the SAE.
        h: activations, as `join` returns them.
        edited: the new part, in the shape of `edited_part`.

    Returns:
        The new activations, in the dtype of `h`.
    """
    edited = edited.to(h.dtype)
    return torch.cat([read_part(sae, h), edited], dim=-1) if isinstance(sae, Transcoder) else edited


def hooks_for(sae: SAE[Any], change: Callable[[Tensor], Tensor]) -> list[tuple[str, Any]]:
    """Return hooks `(name, function)` that change activations in a model.

    Args:
        sae: the SAE.
        change: from h to the new h.

    Returns:
        One hook; for a transcoder two, of which the first only reads.
    """
    names = hook_names_of(sae)
    if len(names) == 1:
        return [(names[0], lambda h, hook: change(h))]
    caught: dict[str, Tensor] = {}

    def read(x: Tensor, hook: Any) -> None:
        caught[names[0]] = x

    def edit(y: Tensor, hook: Any) -> Tensor:
        h = join(sae, {name: t for name, t in ((names[0], caught.pop(names[0], None)), (names[1], y)) if t is not None})
        return edited_part(sae, change(h)).view_as(y)

    return [(names[0], read), (names[1], edit)]


def check_one_hook(sae: SAE[Any]) -> None:
    """Check that features are read and decoded at one hook.

    Args:
        sae: the SAE.

    Raises:
        ConfigError: it is a transcoder, whose features are decoded at another hook.
    """
    if isinstance(sae, Transcoder):
        metadata = sae.cfg.metadata
        raise ConfigError(
            f"expected an SAE, whose features are read and decoded at one hook, got a {sae.cfg.architecture()} from {metadata.hook_name} to "
            f"{metadata.hook_name_out}; train an SAE: mtsae train --hook-name {metadata.hook_name_out}"
        )
