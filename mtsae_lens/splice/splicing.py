"""An SAE at its hook in a model, and edits of its features there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.edits import Edit, Reading


def open_positions(
    feature_acts: Float[Tensor, "batch pos d_sae"], edits: Sequence[Edit], masked: Bool[Tensor, "batch pos"] | None = None
) -> list[Bool[Tensor, "batch pos"]]:
    """Where each edit applies; never at masked positions.

    Edits often share a gate, and a gate runs through the positions one by one: each is asked once.
    """
    gates = {id(edit.gate): edit.gate for edit in edits}
    opened = {key: gate.open_from(feature_acts, None)[0] for key, gate in gates.items()}
    if masked is not None:
        opened = {key: open_at & ~masked.to(open_at.device) for key, open_at in opened.items()}
    return [opened[id(edit.gate)] for edit in edits]


@dataclass(frozen=True)
class Splice:
    """An SAE at its hook in a model.

    >>> splice = Splice(sae)
    >>> with model.hooks(fwd_hooks=[splice.hook(FeatureEdit((3, 14), multiplier=2.0))]):
    ...     logits = model(tokens)
    """

    sae: SAE[Any]

    def __post_init__(self) -> None:
        if self.sae.cfg.metadata.hook_name is None:
            raise ConfigError(
                "the SAE does not say which hook it belongs to; type: sae.cfg.metadata.hook_name = 'blocks.3.hook_resid_post'"
            )

    @property
    def hook_name(self) -> str:
        """Name of the SAE's hook."""
        return self.sae.cfg.metadata.hook_name  # type: ignore[return-value]

    def as_sae_input(self, h: Tensor) -> Tensor:
        """Activations at the hook as the SAE takes them: heads flattened, or the SAE's own head; no less precise than the SAE."""
        h = h.to(torch.promote_types(h.dtype, self.sae.dtype))
        head = self.sae.cfg.metadata.hook_head_index
        if head is not None:
            return h[:, :, head]
        return h.flatten(2) if h.ndim == 4 and self.sae.cfg.reshape_activations != "hook_z" else h

    def feature_acts(self, h: Tensor, masked: Bool[Tensor, "batch pos"] | None = None) -> Float[Tensor, "batch pos d_sae"]:
        """Features of activations at the hook. Masked positions (special tokens) have none and, as in training, are walls."""
        sae_in = self.as_sae_input(h)
        if masked is None:
            return self.sae.encode(sae_in)
        masked = masked.to(h.device)  # tokens, and what is made of them, may still be on the CPU
        sae_in = sae_in.masked_fill(masked.view(*masked.shape, *(1,) * (sae_in.ndim - 2)), 0.0)
        return self.sae.encode(sae_in).masked_fill(masked.unsqueeze(-1), 0.0)

    def edited(
        self,
        h: Tensor,
        edit: Edit,
        masked: Bool[Tensor, "batch pos"] | None = None,
        where: Bool[Tensor, "batch pos"] | None = None,
    ) -> Tensor:
        """`h` with the edit applied; masked positions are left alone, and so are those outside `where`, if given."""
        feature_acts = self.feature_acts(h, masked)
        (open_at,) = open_positions(feature_acts, [edit], masked)
        return self.apply_edit(h, feature_acts, edit, open_at if where is None else open_at & where.to(h.device))

    def apply_edit(self, h: Tensor, feature_acts: Tensor, edit: Edit, open_at: Bool[Tensor, "batch pos"]) -> Tensor:
        """`edited` where features and open positions are at hand."""
        return self.add_delta(h, edit.delta(self.reading(h, feature_acts)), open_at)

    def reading(self, h: Tensor, feature_acts: Tensor) -> Reading:
        """What edits read."""
        return Reading(self.sae, self.as_sae_input(h), feature_acts)

    def add_delta(self, h: Tensor, delta: Tensor, open_at: Bool[Tensor, "batch pos"]) -> Tensor:
        """`h` plus an edit's change, where it applies."""
        return self._add(h, delta.masked_fill(~open_at.view(*open_at.shape, *(1,) * (delta.ndim - 2)), 0.0))

    def _add(self, h: Tensor, delta: Tensor) -> Tensor:
        head = self.sae.cfg.metadata.hook_head_index
        if head is None:
            return (h + delta.view_as(h)).to(h.dtype)  # of a model in half precision the sum alone is rounded
        h = h.clone()
        h[:, :, head] += delta
        return h

    def hook(
        self,
        edit: Edit,
        masked: Bool[Tensor, "batch pos"] | None = None,
        where: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[str, Any]:
        """`(name, function)` as TransformerLens takes hooks."""
        return self.hook_name, lambda h, hook: self.edited(h, edit, masked, where)
