"""Language models as TransformerLens's bridge: the Hugging Face model itself with hooks, instead of a copy converted to `HookedTransformer`.

A bridge runs every family that TransformerLens has an adapter for, gives Hugging Face's logits exactly, and keeps no mask of `n_ctx^2` per
layer. It cannot start at a later layer, so an edit reruns the whole model where a `HookedTransformer` reruns the layers after the hook.

Hooks have names of their own here (`blocks.3.hook_out`); `HookedTransformer`'s (`blocks.3.hook_resid_post`) are aliases of them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from sae_lens import HookedSAETransformer, SAETransformerBridge
from typing_extensions import override

from mtsae_lens.errors import ModelError
from mtsae_lens.upstream import HookPoint, add_hook_aliases

BRIDGE_PREFIX = "bridge:"
"""`bridge:NAME` is the model NAME as a bridge, wherever a model is named: in a setting, on the command line, in an SAE's metadata."""


class HookedBridge(SAETransformerBridge):
    """SAELens's bridge, whose hooks answer to `HookedTransformer`'s names too.

    A hook under a name that a bridge does not know is silently never called, so an edit would change nothing. `SAETransformerBridge` knows
    no alias (`blocks.3.hook_resid_post`), and once an SAE was attached and taken off again, not the place's own name either: the hook
    put there instead calls itself `hook_out`.
    """

    @property
    @override
    def hook_dict(self) -> dict[str, HookPoint]:
        """Every hook by its own name and by its aliases; a place where an SAE is attached has the SAE's hooks instead."""
        hooks = super().hook_dict
        for name, hook in hooks.items():
            hook.name = name
        add_hook_aliases(self, hooks)
        return {name: hook for name, hook in hooks.items() if isinstance(hook, HookPoint)}


AnyHookedModel: TypeAlias = HookedSAETransformer | HookedBridge


def boot_bridge(
    name: str, device: str, *, dtype: torch.dtype = torch.float32, hf_model: Any = None, tokenizer: Any = None
) -> HookedBridge:
    """The bridge of a model that is loaded already, in `dtype`, or of a name on the hub, which is loaded in it.

    Raises:
        ModelError: TransformerLens has no adapter for the family.
        OSError: the hub cannot be reached.
    """
    try:
        # `hf_model` is wrapped, not copied: it is part of the bridge from now on
        bridge: Any = HookedBridge.boot_transformers(name, device=device, dtype=dtype, hf_model=hf_model, tokenizer=tokenizer)
    except (NotImplementedError, ValueError, KeyError, AttributeError, AssertionError) as error:
        raise ModelError(
            f"{name}: TransformerLens has no bridge for this model ({type(error).__name__}: {' '.join(str(error).split())[:200]}); "
            f"load it without {BRIDGE_PREFIX!r}"
        ) from error
    return bridge
