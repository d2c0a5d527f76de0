"""Take the activations at the hooks of an SAE as one tensor.

An SAE reads and decodes at one hook, and h is what is there. A transcoder reads x at one hook and decodes y at a later one. Then h is both side
by side, `(batch, pos, d_in + d_out)`: features come from the first part, and edits change the second. So everything that reads, edits and
replaces activations is written for one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from sae_lens import SAE, Transcoder
from torch import Tensor

from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.splice.hook_checks import check_order


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


def describe_place(names: Sequence[str]) -> str:
    """Return where an SAE is, for sentences: "at" its hook, or "from" one hook "to" another.

    Args:
        names: its hook, or both.
    """
    return f"at {names[0]}" if len(names) == 1 else f"from {names[0]} to {names[1]}"


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

    Returns:
        h; of a transcoder in the more precise of both dtypes.

    Raises:
        ModelError: the model runs the hook that a transcoder decodes before the one that it reads, or a hook has another width.
    """
    names = hook_names_of(sae)
    if len(names) == 1:
        return caught[names[0]]
    check_order(names, [name for name in caught if name in names])
    flat = {name: caught[name].flatten(2) for name in names}
    for name, width in zip(names, (sae.cfg.d_in, sae.cfg.d_out), strict=True):
        if flat[name].shape[-1] != width:
            raise ModelError(
                f"expected a transcoder of the width of {name}, {flat[name].shape[-1]}, got one with {width}; give the transcoder of this model"
            )
    return torch.cat([flat[name] for name in names], dim=-1)


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
        if names[0] not in caught:
            raise ModelError(
                f"expected a model that runs {names[0]}, which the transcoder reads, before {names[1]}, got {names[1]} alone or first; turn "
                "them round, or for generation, which leaves out hook_embed, take blocks.0.hook_resid_pre"
            )
        return edited_part(sae, change(join(sae, {names[0]: caught[names[0]], names[1]: y}))).view_as(y).to(y.dtype)

    return [(names[0], read), (names[1], edit)]
