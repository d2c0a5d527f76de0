"""Keep the strongest firings of every feature, and a uniform sample of its firings, during the pass over the text.

Both are lists of the firings with the highest keys. The key is the activation, or a random number drawn for the firing. A list keeps at most
one firing per context. The window of a firing is gathered only when it enters a list.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mtsae_lens.exploration.firings import Firings
from mtsae_lens.exploration.plan import Plan


@dataclass(frozen=True, eq=False)
class Entries:
    """Firings that enter a list, and the slots they are put in."""

    feature: Int[Tensor, " entry"]
    slot: Int[Tensor, " entry"]
    context: Int[Tensor, " entry"]  # in the batch
    position: Int[Tensor, " entry"]


SHOWN = ("hidden_pre", "activations", "scales", "offsets", "token_scales")
"""Fields of `ExampleList` that have a row for each slot that was ever filled."""


@dataclass(eq=False)
class ExampleList:
    """Slots for the examples of every feature, `n` per feature, in no order. An empty slot has the key -inf.

    The shown fields of an example take some kilobytes, and most features of a wide SAE fire rarely. Rows of these fields are therefore
    allocated when a slot is first filled.
    """

    key: Float[Tensor, "d_sae n"]
    context: Int[Tensor, "d_sae n"]  # over all corpora
    corpus: Int[Tensor, "d_sae n"]
    position: Int[Tensor, "d_sae n"]
    row: Int[Tensor, "d_sae n"]  # of the fields below; -1 for an empty slot
    hidden_pre: Float[Tensor, " row"]
    activations: Float[Tensor, "row window"]  # NaN beyond the context's ends
    scales: Float[Tensor, "row n_scales"]  # contributions at the peak
    offsets: Float[Tensor, "row n_reads"]
    token_scales: Float[Tensor, "row window n_scales"]  # at every token where the feature fires, else NaN

    @classmethod
    def empty(cls, d_sae: int, n: int, plan: Plan, n_scales: int, n_reads: int) -> ExampleList:
        """Return the list before the first batch.

        Args:
            d_sae: number of features.
            n: slots per feature.
            plan: gives the size of a window.
            n_scales: scales of the encoder; 0 for a pointwise SAE.
            n_reads: offsets that the encoder reads; 0 for a pointwise SAE.
        """

        def places() -> Tensor:
            return torch.full((d_sae, n), -1, dtype=torch.int32)

        return cls(
            key=torch.full((d_sae, n), -torch.inf),
            context=places(),
            corpus=places(),
            position=places(),
            row=places(),
            hidden_pre=torch.empty(0),
            activations=torch.empty(0, plan.window),
            scales=torch.empty(0, n_scales),
            offsets=torch.empty(0, n_reads),
            token_scales=torch.empty(0, plan.window, n_scales),
        )

    def emptied(self) -> ExampleList:
        """Return an empty list with the same numbers of slots, scales and offsets."""
        tensors = {name: tensor[:0] if name in SHOWN else torch.full_like(tensor, -1) for name, tensor in vars(self).items()}
        return ExampleList(**tensors | {"key": torch.full_like(self.key, -torch.inf)})

    def rows_of(self, feature: Int[Tensor, " entry"], slot: Int[Tensor, " entry"]) -> Int[Tensor, " entry"]:
        """Return the rows of slots that are about to be filled, and allocate rows (of NaN) for slots without one.

        Args:
            feature: the feature of each entry.
            slot: the slot of each entry; no two entries have the same feature and slot.
        """
        rows = self.row[feature, slot].long()
        new, n_rows = rows < 0, int(self.row.max()) + 1 if self.row.numel() else 0
        rows[new] = torch.arange(n_rows, n_rows + int(new.sum()))
        self.row[feature, slot] = rows.int()
        needed = n_rows + int(new.sum())
        if needed > len(self.hidden_pre):
            for name in SHOWN:
                shown = getattr(self, name)
                n_more = min(max(needed, len(shown) * 3 // 2), self.row.numel()) - len(shown)
                more = torch.full((n_more, *shown.shape[1:]), torch.nan)
                setattr(self, name, torch.cat([shown, more]))
        return rows

    def allocate_rows(self) -> None:
        """Convert a state of an earlier version, which has shown fields for every slot, into rows of the filled slots."""
        filled = self.context >= 0
        self.row = torch.where(filled, filled.flatten().cumsum(dim=0).view(filled.shape) - 1, -1).int()
        for name in SHOWN:
            setattr(self, name, getattr(self, name)[filled])

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, without rows that are allocated but not used."""
        n_rows = int(self.row.max()) + 1 if self.row.numel() else 0
        return {name: tensor[:n_rows] if name in SHOWN else tensor for name, tensor in vars(self).items()}

    def at(self, feature: Int[Tensor, " entry"], slot: Int[Tensor, " entry"]) -> dict[str, Tensor]:
        """Return the fields of examples, by name.

        Args:
            feature: the feature of each example.
            slot: the slot of each example.
        """
        rows = self.row[feature, slot].long()
        return {name: tensor[rows] if name in SHOWN else tensor[feature, slot] for name, tensor in vars(self).items()}

    def admit(
        self, firings: Firings, keys: Float[Tensor, " firing"], batch_size: int, corpus: int, first_context: int
    ) -> Entries:
        """Put firings with high keys into the list, at most one per context, in place of entries with lower keys.

        Of equal keys, that of the earlier context is kept.

        Args:
            firings: all firings of a batch.
            keys: the key of each firing.
            batch_size: contexts of the batch.
            corpus: number of the corpus.
            first_context: number of the batch's first context, over all corpora.

        Returns:
            The firings that entered, and their slots.
        """
        d_sae, n = self.key.shape
        best, position = _best_by_context(firings, keys, batch_size, d_sae)
        touched = (best > self.key.amin(dim=1, keepdim=True)).any(dim=1).nonzero().squeeze(1) if n else torch.empty(0).long()
        numbers = torch.arange(first_context, first_context + batch_size, dtype=torch.int32).expand(len(touched), -1)
        rows, slot, context = self._replace(touched, best[touched], numbers)
        feature = touched[rows]
        self.key[feature, slot] = best[feature, context]
        self.context[feature, slot] = (first_context + context).int()
        self.corpus[feature, slot] = corpus
        self.position[feature, slot] = position[feature, context].int()
        return Entries(feature, slot, context, position[feature, context])

    def merge(self, other: ExampleList) -> None:
        """Keep the examples with the highest keys of both lists.

        Args:
            other: the examples of other contexts.
        """
        feature, slot, of_other = self._replace(torch.arange(len(self.key)), other.key, other.context)
        rows, entering = self.rows_of(feature, slot), other.at(feature, of_other)
        del entering["row"]
        for name, tensor in entering.items():
            if name in SHOWN:
                getattr(self, name)[rows] = tensor
            else:
                getattr(self, name)[feature, slot] = tensor

    def _replace(
        self, features: Int[Tensor, " feature"], keys: Float[Tensor, "feature m"], contexts: Int[Tensor, "feature m"]
    ) -> tuple[Int[Tensor, " entry"], Int[Tensor, " entry"], Int[Tensor, " entry"]]:
        """Find the candidates that belong into the list, and the slots that they take.

        Returns:
            For each entry: the row of its feature in `features`, its slot, and its column in `keys`.
        """
        n = self.key.shape[1]
        both = torch.cat([self.key[features], keys], dim=1)
        chosen = _highest(both, torch.cat([self.context[features], contexts], dim=1), n) & both.isfinite()
        free, enters = ~chosen[:, :n], chosen[:, n:]
        # The first free slots of a feature are paired with the entering candidates, in order.
        rows, slot = (free & (free.cumsum(dim=1) <= enters.sum(dim=1, keepdim=True))).nonzero().unbind(dim=1)
        return rows, slot, enters.nonzero()[:, 1]

    def order(self, peak: int, features: Int[Tensor, " feature"] | None = None) -> Int[Tensor, "feature n"]:
        """Sort the slots from the highest activation down, equal ones by context, empty ones last.

        Args:
            peak: index of the peak in a window.
            features: the features whose slots are sorted; None for all.
        """
        row, context = ((all_ if features is None else all_[features]) for all_ in (self.row, self.context))
        row = row.long()
        at_peak = torch.full(row.shape, -torch.inf)
        at_peak[row >= 0] = self.activations[row[row >= 0], peak].nan_to_num(nan=-torch.inf)
        return _sort(at_peak, context)


def _highest(keys: Float[Tensor, "feature m"], contexts: Int[Tensor, "feature m"], n: int) -> Bool[Tensor, "feature m"]:
    """Mark the `n` highest keys of each feature; of equal keys, those of earlier contexts."""
    best = keys.topk(min(n + 1, keys.shape[1]), dim=1)
    chosen = torch.zeros_like(keys, dtype=torch.bool).scatter_(1, best.indices[:, :n], value=True)
    if n and best.values.shape[1] > n:
        # `topk` chooses at random among equal keys, which matters only where the last key that is chosen equals the first that is not
        tied = (best.values[:, n - 1] == best.values[:, n]).nonzero().squeeze(1)
        first = _sort(keys[tied], contexts[tied])[:, :n]
        chosen[tied] = torch.zeros_like(chosen[tied]).scatter_(1, first, value=True)
    return chosen


def _sort(keys: Float[Tensor, "feature m"], contexts: Int[Tensor, "feature m"]) -> Int[Tensor, "feature m"]:
    """Sort each row from the highest key down, equal keys by context."""
    by_context = contexts.argsort(dim=1, stable=True)
    return by_context.gather(1, keys.gather(1, by_context).argsort(dim=1, descending=True, stable=True))


def _best_by_context(
    firings: Firings, keys: Float[Tensor, " firing"], batch_size: int, d_sae: int
) -> tuple[Float[Tensor, "d_sae batch"], Int[Tensor, "d_sae batch"]]:
    """Find the highest key of each feature in each context (-inf where it does not fire), and its first position."""
    place = firings.feature * batch_size + firings.context
    best = torch.full((d_sae * batch_size,), -torch.inf, device=keys.device).scatter_reduce_(0, place, keys, "amax")
    leads = keys == best[place]
    last = torch.iinfo(torch.long).max
    position = torch.full((d_sae * batch_size,), last, device=keys.device).scatter_reduce_(
        0, place[leads], firings.position[leads], "amin"
    )
    return best.view(d_sae, batch_size).cpu(), position.view(d_sae, batch_size).cpu()
