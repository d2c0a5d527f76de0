"""Attach an SAE at its hook in a model, and edit its features there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.sae.memory import Past
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hook_checks import check_one_hook, check_takes_hook, never_ran
from mtsae_lens.splice.hook_pair import (
    describe_place,
    edited_part,
    hook_names_of,
    hooks_for,
    join,
    read_part,
    with_edited_part,
)
from mtsae_lens.splice.sae_state import SAEState


def open_positions(
    sae_state: SAEState, edits: Sequence[Edit], masked: Bool[Tensor, "batch pos"] | None = None
) -> list[Bool[Tensor, "batch pos"]]:
    """Find where each of several edits applies.

    Edits often share a gate, and a gate runs through the positions one by one, so each gate is evaluated once.

    Args:
        sae_state: input and features of the SAE, of whole contexts.
        edits: the edits.
        masked: positions where no edit applies, and which no gate reads; None for no such position.

    Returns:
        For each edit, True where it applies.
    """
    gates = {id(edit.gate): edit.gate for edit in edits}
    read = sae_state.target if masked is None else zero_rows(sae_state.target, masked)
    opened = {key: gate.open_from(gate.observe(read, sae_state.feature_acts), None)[0] for key, gate in gates.items()}
    if masked is not None:
        opened = {key: open_at & ~masked.to(open_at.device) for key, open_at in opened.items()}
    return [opened[id(edit.gate)] for edit in edits]


@dataclass(frozen=True)
class Splice:
    """An SAE at its hook in a model, or a transcoder at both of its hooks.

    In all methods, h is what is at the hook. Of a transcoder it is what is at both hooks, side by side (`mtsae_lens.splice.hook_pair`):
    features are computed from the one part, and edits change the other.

    Args:
        sae: an SAE whose `cfg.metadata.hook_name` is set; of a transcoder, `hook_name_out` too.

    Raises:
        ConfigError: the SAE does not say which hook it belongs to.

    >>> splice = Splice(sae)
    >>> with model.hooks(fwd_hooks=[splice.hook(FeatureEdit((3, 14), multiplier=2.0))]):
    ...     logits = model(tokens)
    """

    sae: SAE[Any]

    def __post_init__(self) -> None:
        hook_names_of(self.sae)

    @property
    def hook_name(self) -> str:
        """Return the name of the hook that the SAE reads."""
        return self.hook_names[0]

    @property
    def decoded_hook_name(self) -> str:
        """Return the name of the hook that the features decode: the SAE's own, and another one for a transcoder."""
        return self.hook_names[-1]

    @property
    def hook_names(self) -> tuple[str, ...]:
        """Return the names of both."""
        return hook_names_of(self.sae)

    @property
    def place(self) -> str:
        """Return where the SAE is, for sentences: "at" its hook, or "from" one hook "to" another."""
        return describe_place(self.hook_names)

    def join(self, caught: Mapping[str, Tensor]) -> Tensor:
        """Return h, from the activations at each hook.

        Args:
            caught: activations by the name of the hook, in the order in which the model ran the hooks.

        Raises:
            ModelError: the model runs a transcoder's hooks the other way round.
        """
        return join(self.sae, caught)

    def edited_part(self, h: Tensor) -> Tensor:
        """Return what is at the hook that edits change.

        Args:
            h: activations at the hook.
        """
        return edited_part(self.sae, h)

    def as_sae_input(self, h: Tensor) -> Tensor:
        """Turn activations at the hook into the SAE's input.

        Args:
            h: activations `(batch, pos, d_model)`, or `(batch, pos, head, d_head)`.

        Returns:
            `(batch, pos, *d_in)`: heads are flattened, or the SAE's own head is taken. The dtype is at least as precise as the SAE's.
        """
        return self._as_rows(read_part(self.sae, h))

    def as_target(self, h: Tensor) -> Tensor:
        """Turn activations at the hook into what the decoder reconstructs, and edits change: the SAE's input, but for a transcoder.

        Args:
            h: activations at the hook.

        Returns:
            `(batch, pos, *d_out)`, as `as_sae_input` returns the input.
        """
        return self._as_rows(edited_part(self.sae, h))

    def _as_rows(self, h: Tensor) -> Tensor:
        h = h.to(torch.promote_types(h.dtype, self.sae.dtype))
        head = self.sae.cfg.metadata.hook_head_index
        if head is not None:
            return h[:, :, head]
        return h.flatten(2) if h.ndim == 4 and self.sae.cfg.reshape_activations != "hook_z" else h

    def feature_acts(self, h: Tensor, masked: Bool[Tensor, "batch pos"] | None = None) -> Float[Tensor, "batch pos d_sae"]:
        """Compute features from activations at the hook.

        Args:
            h: activations at the hook.
            masked: positions, such as special tokens, that are walls, as in training, and have no features; None for no such position.

        Returns:
            The feature activations.
        """
        sae_in = self.as_sae_input(h)
        if masked is None:
            return self.sae.encode(sae_in)
        feature_acts = self.sae.encode(zero_rows(sae_in, masked))
        if not feature_acts.requires_grad and not feature_acts[masked.to(feature_acts.device)].any():
            return feature_acts  # those of an MTSAE are zero at walls, and a copy takes as long as finding the largest
        return zero_rows(feature_acts, masked)

    def edited(
        self,
        h: Tensor,
        edit: Edit,
        masked: Bool[Tensor, "batch pos"] | None = None,
        where: Bool[Tensor, "batch pos"] | None = None,
    ) -> Tensor:
        """Apply an edit to activations at the hook.

        Args:
            h: activations at the hook, of whole contexts.
            edit: the edit, with its gate.
            masked: positions that are neither read nor edited, such as special tokens; None for no such position.
            where: the only positions that may be edited; None for all.

        Returns:
            The edited activations, in the shape and dtype of `h`.
        """
        feature_acts = self.feature_acts(h, masked)
        (open_at,) = open_positions(self.sae_state(h, feature_acts), [edit], masked)
        return self.apply_edit(h, feature_acts, edit, open_at if where is None else open_at & where.to(h.device))

    def apply_edit(
        self,
        h: Tensor,
        feature_acts: Tensor,
        edit: Edit,
        open_at: Bool[Tensor, "batch pos"],
    ) -> Tensor:
        """Apply an edit whose features and open positions are already computed.

        Args:
            h: activations at the hook.
            feature_acts: their features.
            edit: the edit; its gate is not evaluated.
            open_at: True where the edit applies.

        Returns:
            The edited activations, in the shape and dtype of `h`.
        """
        return self.apply_to_state(h, self.sae_state(h, feature_acts), edit, open_at)

    def apply_to_state(self, h: Tensor, sae_state: SAEState, edit: Edit, open_at: Bool[Tensor, "batch pos"]) -> Tensor:
        """Apply an edit to what it reads, so that several edits share the reconstruction.

        Args:
            h: activations at the hook.
            sae_state: the SAE, its input and its features there.
            edit: the edit; its gate is not evaluated.
            open_at: True where the edit applies.

        Returns:
            The edited activations, in the shape and dtype of `h`.
        """
        return self.add_change(h, edit.change(sae_state, open_at))

    def sae_state(self, h: Tensor, feature_acts: Tensor, past: Past | None = None) -> SAEState:
        """Collect what edits read.

        Args:
            h: activations at the hook.
            feature_acts: their feature activations.
            past: as in `SAEState`.
        """
        decoded = None if len(self.hook_names) == 1 else self.as_target(h)
        return SAEState(self.sae, self.as_sae_input(h), feature_acts, past, decoded)

    def add_delta(self, h: Tensor, delta: Tensor, open_at: Bool[Tensor, "batch pos"]) -> Tensor:
        """Add an edit's change to activations at the hook, where the edit applies.

        Args:
            h: activations at the hook.
            delta: the change, as `Edit.delta` computes it.
            open_at: True where the edit applies.

        Returns:
            The edited activations, in the shape and dtype of `h`.
        """
        return self.add_change(h, zero_rows(delta, ~open_at))

    def add_change(self, h: Tensor, delta: Tensor) -> Tensor:
        """Add a change of the SAE's input, or of what a transcoder decodes, to activations at the hook.

        Args:
            h: activations at the hook.
            delta: the change, as `Edit.change` computes it.

        Returns:
            The changed activations, in the shape and dtype of `h`.
        """
        head = self.sae.cfg.metadata.hook_head_index
        if head is None:
            before = edited_part(self.sae, h)
            return with_edited_part(self.sae, h, before + delta.view_as(before))  # in half precision, only the sum is rounded
        h = h.clone()
        h[:, :, head] += delta
        return h

    def hook(
        self,
        edit: Edit,
        masked: Bool[Tensor, "batch pos"] | None = None,
        where: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[str, Any]:
        """Return a hook `(name, function)` for `fwd_hooks` of TransformerLens.

        Args:
            edit: the edit, with its gate.
            masked: positions that are neither read nor edited; None for no such position.
            where: the only positions that may be edited; None for all.

        Raises:
            ConfigError: the SAE is a transcoder, which needs two hooks (`hooks`).
        """
        check_one_hook(self.sae)
        return self.hooks(edit, masked, where)[0]

    def hooks(
        self,
        edit: Edit,
        masked: Bool[Tensor, "batch pos"] | None = None,
        where: Bool[Tensor, "batch pos"] | None = None,
    ) -> list[tuple[str, Any]]:
        """Return the hooks `(name, function)` of an SAE or of a transcoder, as `fwd_hooks` of TransformerLens.

        Args:
            edit: the edit, with its gate.
            masked: positions that are neither read nor edited; None for no such position.
            where: the only positions that may be edited; None for all.
        """
        return hooks_for(self.sae, lambda h: self.edited(h, edit, masked, where))

    @contextmanager
    def attached(self, model: AnyHookedModel, edit: Edit, masked: Bool[Tensor, "batch pos"] | None = None) -> Iterator[None]:
        """Apply an edit in a model within a `with` block.

        Args:
            model: a `HookedTransformer` or a bridge.
            edit: the edit, with its gate.
            masked: positions that are neither read nor edited; None for no such position.

        Raises:
            ModelError: the block ended without an error and the model never ran the hook, so the edit changed nothing.
        """
        n_calls = 0

        def apply(h: Tensor) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            return self.edited(h, edit, masked)

        for name in self.hook_names:
            check_takes_hook(model, name)
        with model.hooks(fwd_hooks=hooks_for(self.sae, apply)):
            yield
        if not n_calls:
            raise never_ran(self.decoded_hook_name, model)
