"""Replay a perturbation by parts: which part of the SAE's decomposition carries the forget text back.

A perturbation delta changes the features from e to e', and so

    delta = (e' - e)_edited @ W_dec  +  (e' - e)_untouched @ W_dec  +  change of the error

Each part is given to the edited model alone, with the edit active and its gate held: the features of the part are those under the perturbation,
all others are as without it, and nothing is encoded again. After the replay of arXiv 2606.18322, where the clamp stays and one part is added.

An edit without features, such as a projection, has no edited features, so only all features and the error are told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.data.lazy_logits import LazyLogits, LazyModel
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.splicing import open_positions
from mtsae_lens.unlearning.recovery.blindness import edited_features
from mtsae_lens.unlearning.recovery.perturbation import Target, as_change

PARTS: Mapping[str, tuple[bool, bool, bool]] = MappingProxyType(
    {
        "all features": (True, True, False),
        "untouched features": (False, True, False),
        "edited features": (True, False, False),
        "error": (False, False, True),
    }
)
"""By name, whether a part has the edited features, the untouched ones, and the error."""


def parts_under(edit: Edit) -> tuple[str, ...]:
    """Return the parts of a perturbation that an edit tells apart.

    Args:
        edit: the edit under attack.

    Returns:
        Names in `PARTS`: all of them, or without the edited and the untouched features if the edit has no features, such as a projection.
    """
    with_features = bool(edited_features(edit))
    return tuple(name for name, (edited, untouched, _) in PARTS.items() if with_features or edited == untouched)


@torch.no_grad()
def replayed_states(
    target: Target, tokens: Int[Tensor, "batch pos"], shift: Float[Tensor, " d_in"], part: tuple[bool, bool, bool]
) -> Tensor:
    """Compute the edited activations when only a part of a perturbation reaches them.

    Args:
        target: a model with an edit.
        tokens: contexts.
        shift: the perturbation.
        part: whether the edited features, the untouched features and the error change, as in `PARTS`.

    Returns:
        The activations after the edit; with all three they are those of the whole perturbation.
    """
    assert target.edit is not None
    splice, masked = target.lm.splice, target.lm.masked(tokens)
    h = target.lm.activations(tokens)
    change = zero_rows(as_change(target.lm, h, shift), masked)
    before = splice.feature_acts(h, masked)
    after = splice.feature_acts(splice.add_delta(h, change, ~masked), masked)
    replaced = torch.where(_moves(target, part, before.shape[-1]).to(before.device), after, before)
    state = splice.sae_state(h, before)
    moved = state.decode_change(replaced)
    if part[2]:
        moved = moved + change - state.decode_change(after)
    moved = zero_rows(moved, masked)
    (open_at,) = open_positions(state, [target.edit], masked)
    perturbed = splice.add_delta(h, moved, ~masked)
    change = target.edit.change(splice.sae_state(perturbed, replaced), open_at)
    return splice.add_delta(h, moved + change, ~masked)


def _moves(target: Target, part: tuple[bool, bool, bool], d_sae: int) -> Bool[Tensor, " d_sae"]:
    moves = torch.full((d_sae,), part[1])
    moves[list(edited_features(target.edit))] = part[0]
    return moves


def replayed_logits(target: Target, shift: Float[Tensor, " d_in"], part: str) -> LazyModel:
    """Return the model with one part of a perturbation as a function from tokens to logits.

    Args:
        target: a model with an edit.
        shift: the perturbation.
        part: a name in `PARTS`.
    """

    def lazy(tokens: Int[Tensor, "batch pos"]) -> LazyLogits:
        tokens = tokens.to(target.lm.model.cfg.device)
        return target.lm.lazy_logits_from(tokens, replayed_states(target, tokens, shift, PARTS[part]))

    return LazyModel(lazy)
