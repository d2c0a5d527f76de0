"""Gather what is shown of an example: the activations around its peak, and the contribution of each scale and offset."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.exploration.example_lists import Entries, ExampleList
from mtsae_lens.exploration.firings import BatchReading
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.sae.lift import encoder_by_scale
from mtsae_lens.sae.temporal_encoder import TemporalEncoder

_ROWS_AT_ONCE = 4_096  # rows of d_in gathered at once, for each scale: 10 MB on the embedded model


class WindowGatherer:
    """Fills the slots of new examples. It keeps the encoder's weights by scale, so that they are arranged once.

    Args:
        sae: the SAE, of any architecture.
        plan: gives the size of a window.
    """

    def __init__(self, sae: object, plan: Plan) -> None:
        self.plan = plan
        self.W_enc = encoder_by_scale(sae) if isinstance(sae, TemporalEncoder) else None
        self.read_offsets = sae.read_offsets if isinstance(sae, TemporalEncoder) else []

    def fill(self, examples: ExampleList, entries: Entries, reading: BatchReading) -> None:
        """Fill the slots of entries with what is shown of them.

        Args:
            examples: the list to fill.
            entries: firings that have just entered the list.
            reading: their batch as the SAE reads it.
        """
        device = reading.feature_acts.device
        feature, context = entries.feature.to(device), entries.context.to(device)
        where, inside = self._window(entries.position.to(device), reading.kept.shape[1])
        acts = reading.feature_acts[context[:, None], where, feature[:, None]].float()
        rows = examples.rows_of(entries.feature, entries.slot)
        examples.activations[rows] = acts.masked_fill(~inside, torch.nan).cpu()
        examples.hidden_pre[rows] = reading.hidden_pre[context, entries.position.to(device), feature].float().cpu()
        if self.W_enc is None or reading.z is None or not len(feature):
            return
        shown = (acts > 0) & inside
        entry, place = shown.nonzero().unbind(dim=1)
        by_scale = self._scales(reading.z, context[entry], where[entry, place], feature[entry])
        token_scales = torch.full((*acts.shape, by_scale.shape[1]), torch.nan, device=device)
        token_scales[entry, place] = by_scale
        examples.token_scales[rows] = token_scales.cpu()
        examples.scales[rows] = token_scales[:, self.plan.before].cpu()
        examples.offsets[rows] = self._offsets(reading, context, entries.position.to(device), feature).cpu()

    def _window(
        self, position: Int[Tensor, " entry"], n_positions: int
    ) -> tuple[Int[Tensor, "entry w"], Bool[Tensor, "entry w"]]:
        """Return the positions of the windows, and which of them lie in the context."""
        where = position[:, None] + torch.arange(-self.plan.before, self.plan.after + 1, device=position.device)
        return where.clamp(0, n_positions - 1), (where >= 0) & (where < n_positions)

    def _scales(self, z: Tensor, context: Tensor, position: Tensor, feature: Tensor) -> Float[Tensor, "row n_scales"]:
        """Compute what each scale adds to the pre-activation of a feature at a position, row by row."""
        assert self.W_enc is not None
        parts = [
            torch.einsum("rsd,srd->rs", z[context[rows], position[rows]], self.W_enc[:, feature[rows]]).float()
            for rows in _chunks(len(feature), _ROWS_AT_ONCE, z.device)
        ]
        return torch.cat(parts)

    def _offsets(
        self, reading: BatchReading, context: Tensor, position: Tensor, feature: Tensor
    ) -> Float[Tensor, "row n_reads"]:
        """Compute what each offset adds to the pre-activation of a feature at a position, row by row."""
        assert self.W_enc is not None
        total = self.W_enc.new_zeros(len(feature), len(self.read_offsets))
        for part in reading.parts:
            for rows in _chunks(len(feature), _ROWS_AT_ONCE, total.device):
                vector = part.vector[context[rows], position[rows]]
                total[rows, part.place] += (vector * self.W_enc[part.scale, feature[rows]]).sum(dim=-1)
        return total.float()


def _chunks(n: int, size: int, device: torch.device) -> Iterator[Int[Tensor, " row"]]:
    return iter(torch.arange(n, device=device).split(size))
