"""Measure the lift: what each scale and offset adds to a pre-activation when the feature fires, beyond its average, for all features.

    lift_i(k, o) = E[c_koi | e_i > 0] - E[c_koi],        sum_ko lift_i(k, o) = E[pre_i | e_i > 0] - E[pre_i]

with `c_koi = <part_ko, W_enc_ki>`, what offset o adds to feature i through scale k (`tap_parts`). That is linear in the part, so the parts
are summed over the positions where a feature fires and multiplied by the encoder once for each batch. The cost is that of the firings, not
of all features at all positions, and memory is `d_sae * d_in`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.sae.contributions import TapPart, read_pairs
from mtsae_lens.sae.temporal_encoder import TemporalEncoder


class Lift:
    """Keep running sums over batches, and compute the lift from them.

    The whole state is `at_active (d_sae, n_pairs)`, `total (n_pairs, d_in)`, `n_active (d_sae,)` and `n_tokens`.

    Args:
        sae: the SAE.
    """

    def __init__(self, sae: TemporalEncoder) -> None:
        self.sae = sae
        self.pairs = read_pairs(sae)
        self.W_enc = encoder_by_scale(sae)
        self.at_active = torch.zeros(sae.cfg.d_sae, len(self.pairs), dtype=torch.float64)
        self.total = torch.zeros(len(self.pairs), sae.cfg.d_in, dtype=torch.float64)
        self.n_active = torch.zeros(sae.cfg.d_sae, dtype=torch.long)
        self.n_tokens = torch.zeros((), dtype=torch.long)

    @torch.no_grad()
    def add(
        self,
        parts: Iterable[TapPart],
        kept: Bool[Tensor, "batch pos"],
        rows: Int[Tensor, " firing"],
        features: Int[Tensor, " firing"],
    ) -> None:
        """Add a batch.

        Args:
            parts: what `tap_parts` returns for the batch.
            kept: mask of the positions that are counted, `(batch, pos)`.
            rows: flat position, `context * n_positions + position`, of each firing at a counted position, `(firing,)`.
            features: the feature that fires there, `(firing,)`.
        """
        order = features.argsort(stable=True)
        counts = torch.bincount(features, minlength=self.sae.cfg.d_sae)
        starts, rows = counts.cumsum(0) - counts, rows[order]
        for number, part in enumerate(parts):
            vectors = part.vector.flatten(0, 1)
            sums = torch.nn.functional.embedding_bag(rows, vectors, starts, mode="sum")
            self.at_active[:, number] += (sums * self.W_enc[part.scale]).sum(dim=-1).cpu().double()
            self.total[number] += part.vector[kept].sum(dim=0).cpu().double()
        self.n_active += counts.cpu()
        self.n_tokens += int(kept.sum())

    def merge(self, other: Lift) -> None:
        """Add the sums of other contexts.

        Args:
            other: the sums, of the same SAE.
        """
        self.at_active += other.at_active
        self.total += other.total
        self.n_active += other.n_active
        self.n_tokens += other.n_tokens

    def emptied(self) -> Lift:
        """Return the lift of the same SAE before the first batch; it shares the weights."""
        other = copy.copy(self)
        for name in ("at_active", "total", "n_active", "n_tokens"):
            setattr(other, name, torch.zeros_like(getattr(self, name)))
        return other

    @property
    def by_pair(self) -> Float[Tensor, "d_sae n_pairs"]:
        """Return the lift by scale and offset, in the order of `pairs`; zero for a feature that never fired."""
        W_enc = self.W_enc.cpu().double()
        mean = torch.stack([W_enc[scale] @ total for (scale, _), total in zip(self.pairs, self.total, strict=True)], dim=1)
        lift = self.at_active / self.n_active.clamp(min=1).unsqueeze(-1) - mean / self.n_tokens.clamp(min=1)
        return lift.masked_fill((self.n_active == 0).unsqueeze(-1), 0.0)

    @property
    def scale_shares(self) -> Float[Tensor, "d_sae n_scales"]:
        """Return the share of each scale; rows sum to 1, or are zero for a feature that never fired or whose lift is not positive."""
        return self._shares([scale for scale, _ in self.pairs], len(self.sae.cfg.dilations))

    @property
    def offset_shares(self) -> Float[Tensor, "d_sae n_reads"]:
        """Return the share of each of `read_offsets`; rows sum to 1, or are zero as in `scale_shares`."""
        return self._shares([place for _, place in self.pairs], len(self.sae.read_offsets))

    def _shares(self, group: list[int], n_groups: int) -> Float[Tensor, "d_sae n_groups"]:
        by_pair = self.by_pair
        lift = by_pair.new_zeros(len(by_pair), n_groups).index_add_(1, torch.tensor(group), by_pair)
        whole = lift.sum(dim=1, keepdim=True)
        return torch.where(whole > 0, lift / whole, 0.0)


def encoder_by_scale(sae: TemporalEncoder) -> Float[Tensor, "n_scales d_sae d_in"]:
    """Return the encoder as one matrix for each scale, with a row for each feature.

    Args:
        sae: the SAE.

    Returns:
        A copy without gradient, `(n_scales, d_sae, d_in)`.
    """
    return rearrange(sae.encoder_by_scale().detach(), "scale d_in d_sae -> scale d_sae d_in").contiguous()


def share_of_context(shares: Float[Tensor, "feature n_reads"], offsets: Sequence[int]) -> Float[Tensor, " feature"]:
    """Compute the part of the lift that comes from offsets other than 0.

    Args:
        shares: share of each offset, `(feature, n_reads)`.
        offsets: the offsets, in the order of the columns.

    Returns:
        The context share of every feature, `(feature,)`: 0 for the token alone, 1 for the context alone.
    """
    others = [place for place, offset in enumerate(offsets) if offset != 0]
    return shares[:, others].clamp(min=0).sum(dim=-1).clamp(max=1)
