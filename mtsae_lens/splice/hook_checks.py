"""Check that a language model runs the hooks of an SAE, and that features are read and edited as a task needs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens import SAE, Transcoder

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.errors import ConfigError, ModelError


def check_takes_hook(model: AnyHookedModel, hook_name: str) -> None:
    """Check that a model runs a hook, if the model says so without being run.

    A bridge does; a `HookedTransformer` does not, so code that runs a model with a hook checks afterwards that the hook was called.

    Args:
        model: the language model.
        hook_name: name of the hook.

    Raises:
        ModelError: the model says that it does not run the hook.
    """
    try:
        with model.hooks(fwd_hooks=[(hook_name, lambda h, hook: h)]):
            pass
    except (ValueError, AssertionError) as error:
        raise never_ran(hook_name, model) from error


def never_ran(hook_name: str, model: AnyHookedModel) -> ModelError:
    """Return the error for a hook that a model has but does not run.

    Args:
        hook_name: name of the hook.
        model: the language model.
    """
    return ModelError(
        f"expected a hook that {model.cfg.model_name} runs, got {hook_name}, where an edit changes nothing; train an SAE at another hook, "
        "such as blocks.0.hook_resid_post, or turn on the setting of the model that this hook needs"
    )


def check_order(names: Sequence[str], ran: Sequence[str]) -> None:
    """Check that a model runs the hook that a transcoder reads before the one that it decodes.

    Args:
        names: the hooks that it reads and decodes.
        ran: those of them that the model ran, in their order.

    Raises:
        ModelError: it runs them in another order.
    """
    if list(ran) != list(names):
        raise ModelError(
            f"expected a transcoder that decodes a later hook than it reads, got one from {names[0]} to {names[1]}, which the model runs "
            "first; turn them round"
        )


def check_order_in(model: AnyHookedModel, names: Sequence[str]) -> None:
    """Check the order of a transcoder's hooks by a run of one token.

    Args:
        model: the language model, which has the hooks.
        names: the hooks that the transcoder reads and decodes.

    Raises:
        ModelError: as for `check_order`.
    """
    tokens = torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device)
    _, cache = model.run_with_cache(tokens, names_filter=list(names), prepend_bos=False)
    if all(name in cache for name in names):  # a hook that never runs has an error of its own
        check_order(names, [name for name in cache if name in names])  # a bridge adds other names of the same hooks


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
