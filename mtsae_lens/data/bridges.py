"""Load language models through TransformerLens's bridge: the Hugging Face model itself with hooks, not a converted `HookedTransformer`.

A bridge runs every model family for which TransformerLens has an adapter, computes exactly Hugging Face's logits, and keeps no causal mask
of `n_ctx^2` per layer. It cannot start at a later layer, so an edit reruns the whole model, where a `HookedTransformer` reruns only the
layers after the hook. Hooks have the bridge's own names (`blocks.3.hook_out`); the names of `HookedTransformer`
(`blocks.3.hook_resid_post`) are aliases of them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from typing_extensions import override

from mtsae_lens.errors import ModelError
from mtsae_lens.upstream import HookPoint, add_hook_aliases

BRIDGE_PREFIX = "bridge:"
"""Prefix of a model's name that loads it as a bridge: `bridge:NAME`, in settings, on the command line and in an SAE's metadata."""


class HookedBridge(SAETransformerBridge):
    """SAELens's bridge, with hooks that can also be addressed by the names of `HookedTransformer`.

    A hook that is added under a name that the bridge does not know is never called, without an error, so an edit would change nothing.
    `SAETransformerBridge` knows no aliases (`blocks.3.hook_resid_post`). After an SAE was attached and removed, it also loses the
    hook's own name, because the hook that replaces it calls itself `hook_out`.
    """

    @property
    @override
    def hook_dict(self) -> dict[str, HookPoint]:
        """Map every hook name and every alias to its hook; where an SAE is attached, the hooks of the SAE take the place of the model's."""
        hooks = super().hook_dict
        for name, hook in hooks.items():
            hook.name = name
        add_hook_aliases(self, hooks)
        return {name: hook for name, hook in hooks.items() if isinstance(hook, HookPoint)}


AnyHookedModel: TypeAlias = HookedSAETransformer | HookedBridge


def is_causal(model: AnyHookedModel) -> bool:
    """Return whether no position of a model reads a later one, so that a change at a position leaves all earlier predictions as they are.

    Args:
        model: a `HookedTransformer` or a bridge.
    """
    return getattr(model.cfg, "attention_dir", None) == "causal"


def boot_bridge(
    name: str, device: str, *, dtype: torch.dtype = torch.float32, hf_model: Any = None, tokenizer: Any = None
) -> HookedBridge:
    """Load a model as a bridge, or wrap a model that is already loaded.

    Args:
        name: name of the model on the hub, used to load it unless `hf_model` is given.
        device: device to put the model on.
        dtype: dtype of weights and activations.
        hf_model: a loaded Hugging Face model. It is wrapped, not copied: the bridge and it share their weights.
        tokenizer: the tokenizer of `hf_model`.

    Returns:
        The bridge.

    Raises:
        ModelError: TransformerLens has no adapter for the model family.
        OSError: the hub cannot be reached.
    """
    try:
        # `hf_model` is wrapped, not copied: from here on it is a part of the bridge.
        bridge: Any = HookedBridge.boot_transformers(name, device=device, dtype=dtype, hf_model=hf_model, tokenizer=tokenizer)
    except (NotImplementedError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ModelError(
            f"{name}: TransformerLens has no bridge for this model ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            f"load it without {BRIDGE_PREFIX!r}"
        ) from error
    return bridge
