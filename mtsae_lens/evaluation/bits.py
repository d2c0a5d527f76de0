"""How many bits a token costs, if the features of an SAE are sent by an adaptive code: which features fire, and how strongly.

A number of active features is no price: which feature fires costs more if all fire alike, and less if it often fires again. Here sender and
receiver share counts from other text (SELECT), and go on counting over the text that is sent (TEST), one symbol after the other, so that every
symbol is coded from what came before it alone:

- **support**: for each feature and position one symbol, whether it fires, in one of two contexts, whether it fired at the position before;
- **values**: for each active feature its value in `2^value_bits` levels of equal width.

A symbol s of n known ones costs `-log2 (n_s + a_s) / (n + sum a)` bits. With a = 1/2 this is the estimator of Krichevsky and Trofimov (1981);
for values, a is the histogram of all features of SELECT, in the weight of `_PRIOR_WEIGHT` symbols. The sum over a sequence does not depend on
its order, and is computed at once (`sequential_bits`). An arithmetic coder reaches it within 2 bits in total.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.errors import ConfigError, DataError, SilentSAEError
from mtsae_lens.evaluation.massive import ExplainedVariance

BITS_MEANINGS: dict[str, str] = {
    "bits_per_token": "bits that an adaptive code of the features takes for a token: which fire, and how strongly",
    "support_bits": "the part of bits_per_token that says which features fire",
    "value_bits": "the part of bits_per_token that says how strongly they fire",
    "explained_variance_coded": "explained variance of what the receiver decodes, whose values are rounded",
}
_PRIOR_WEIGHT = 4.0
"""Weight of the histogram of all features in that of one feature, in symbols."""
_TOP = 0.999
"""Share of the values that the levels cover; larger ones are sent as the largest level."""

Batches = Iterable[tuple[Float[Tensor, "batch pos *heads d_in"], Bool[Tensor, "batch pos"]]]


def sequential_bits(
    known: Float[Tensor, "*code symbol"], new: Float[Tensor, "*code symbol"], prior: float | Float[Tensor, " symbol"]
) -> Float[Tensor, "*code"]:
    """Compute the length of an adaptive code that updates its counts after every symbol.

        -log2 prod_i (n_s(i) + a_s(i)) / (n(i) + sum a)        = a ratio of Gamma functions of the counts before and after

    Args:
        known: counts of each symbol before the first one.
        new: counts of each symbol in what is sent.
        prior: `a`, larger than 0.

    Returns:
        Bits of each code.
    """
    before = known.double() + prior
    after = before + new
    of_symbols = (torch.lgamma(after) - torch.lgamma(before)).sum(dim=-1)
    of_all = torch.lgamma(after.sum(dim=-1)) - torch.lgamma(before.sum(dim=-1))
    return (of_all - of_symbols) / math.log(2)


def count_support(
    active: Bool[Tensor, "batch pos d_sae"], counted: Bool[Tensor, "batch pos"]
) -> Float[Tensor, "d_sae context symbol"]:
    """Count how often each feature is silent (0) or fires (1), after a position at which it was silent (0) or fired (1).

    Args:
        active: where features fire.
        counted: the positions that are sent. Before the first one of a context, and after one that is not sent, features count as silent.

    Returns:
        Counts `(d_sae, 2, 2)`: feature, at the position before, at the position.
    """
    active = active & counted.unsqueeze(-1)
    before = torch.zeros_like(active)
    before[:, 1:] = active[:, :-1]
    n_sent = int(counted.sum())
    both, now, was = ((x & counted.unsqueeze(-1)).sum(dim=(0, 1)).double() for x in (active & before, active, before))
    after_silence = torch.stack([n_sent - now - was + both, now - both], dim=-1)
    return torch.stack([after_silence, torch.stack([was - both, both], dim=-1)], dim=-2)


@dataclass(frozen=True, eq=False)
class Levels:
    """Levels of equal width for the values of features: `|v| = (level + 1/2) * width`. In units of the output, all features have one width."""

    width: Float[Tensor, " d_sae"]
    n_levels: int
    """Of one sign."""

    @classmethod
    def fit(cls, values: Float[Tensor, " event"], norms: Float[Tensor, " d_sae"], value_bits: int) -> Levels:
        """Choose the width so that the levels cover nearly all values.

        Args:
            values: values of active features times the norms of their decoder rows.
            norms: norms of the decoder rows.
            value_bits: logarithm of the number of levels.
        """
        top = values.abs().double().quantile(_TOP) if len(values) < 2**24 else values.abs().double().max()
        width = top.clamp(min=1e-12) / 2**value_bits
        return cls((width / norms.double().clamp(min=1e-12)).float(), 2**value_bits)

    def quantize(self, feature_acts: Float[Tensor, "batch pos d_sae"]) -> Int[Tensor, "batch pos d_sae"]:
        """Return the level of every value: 0 to `n_levels - 1`, and as many further ones for negative values."""
        level = (feature_acts.abs() / self.width).floor().clamp(max=self.n_levels - 1).long()
        return level + self.n_levels * (feature_acts < 0)

    def restore(self, levels: Int[Tensor, "batch pos d_sae"]) -> Float[Tensor, "batch pos d_sae"]:
        """Return the values that the receiver takes for the levels."""
        sign = 1 - 2 * (levels >= self.n_levels).float()
        return sign * (levels % self.n_levels + 0.5) * self.width


def count_levels(
    levels: Int[Tensor, "batch pos d_sae"], sent: Bool[Tensor, "batch pos d_sae"], n_symbols: int
) -> Float[Tensor, "d_sae symbol"]:
    """Count the levels of each feature where it is sent.

    Args:
        levels: the levels.
        sent: where a feature is active at a position that is sent.
        n_symbols: number of levels, those of both signs.
    """
    d_sae = levels.shape[-1]
    place = levels + n_symbols * torch.arange(d_sae, device=levels.device)
    return torch.bincount(place[sent], minlength=d_sae * n_symbols).reshape(d_sae, n_symbols).double()


@torch.no_grad()
def measure_bits(sae: SAE[Any], select: Batches, test: Batches, value_bits: int = 4) -> dict[str, float]:
    """Measure how many bits a token of TEST costs, and what the receiver decodes, over positions that are not massive.

    Args:
        sae: the SAE.
        select: activations at its hook and which positions count, of the text from which the counts start.
        test: the same of the text that is sent.
        value_bits: logarithm of the number of levels of a value.

    Returns:
        The numbers that `BITS_MEANINGS` names.

    Raises:
        ConfigError: `value_bits` is not from 1 to 16.
        SilentSAEError: no feature fires on SELECT.
        DataError: TEST has no position.
    """
    if not 1 <= value_bits <= 16:
        raise ConfigError(f"expected value_bits from 1 to 16, got {value_bits}; change it")
    norms = sae.W_dec.norm(dim=-1).cpu()
    codes = list(_encode(sae, select))
    events = torch.cat([(acts * norms)[(acts != 0) & counted.unsqueeze(-1)] for _, acts, counted in codes])
    if not len(events):
        raise SilentSAEError(
            "expected features that fire on the text to fit the code on, got none; give more text or another SAE"
        )
    levels = Levels.fit(events, norms, value_bits)
    counts = [_count(acts, counted, levels) for _, acts, counted in codes]
    support, values = (sum(parts[1:], parts[0]) for parts in zip(*counts, strict=True))
    del codes
    prior = values.sum(dim=0) + 0.5
    prior = _PRIOR_WEIGHT * prior / prior.sum()
    new_support, new_values, n_tokens = torch.zeros_like(support), torch.zeros_like(values), 0
    explained = ExplainedVariance()
    for h, acts, counted in _encode(sae, test):
        found = _count(acts, counted, levels)
        new_support, new_values = new_support + found[0], new_values + found[1]
        n_tokens += int(counted.sum())
        received = torch.where(acts != 0, levels.restore(levels.quantize(acts)), 0.0)
        out = sae.decode(received.to(sae.device)).reshape(*h.shape[:2], -1).float().cpu()
        explained.add(h.flatten(2)[counted], out[counted])
    if not n_tokens:
        raise DataError("expected positions to send, got none; give more text")
    support_bits = float(sequential_bits(support, new_support, 0.5).sum()) / n_tokens
    value = float(sequential_bits(values, new_values, prior).sum()) / n_tokens
    return {
        "bits_per_token": support_bits + value,
        "support_bits": support_bits,
        "value_bits": value,
        "explained_variance_coded": explained.value,
    }


def _encode(sae: SAE[Any], batches: Batches) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield activations, features and the positions that are sent; the first batch sets the norm above which a position is massive."""
    limit = torch.inf
    for number, (h, counted) in enumerate(batches):
        rows = h.flatten(2).float()
        limit = norm_limit(rows[counted]) if number == 0 else limit
        acts = sae.encode(zero_rows(h, ~counted).to(sae.device)).reshape(*h.shape[:2], -1).float().cpu()
        yield h.float().cpu(), acts, (counted & ~massive_positions(rows, limit)).cpu()


def _count(acts: Tensor, counted: Tensor, levels: Levels) -> tuple[Tensor, Tensor]:
    active = (acts != 0) & counted.unsqueeze(-1)
    return count_support(active, counted), count_levels(levels.quantize(acts), active, 2 * levels.n_levels)
