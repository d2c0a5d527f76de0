"""Pass over the text once, for all features at once: counts, lift, examples, co-firing. Memory does not grow with the text."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.data.packing import Spans
from mtsae_lens.errors import DataError
from mtsae_lens.exploration.cofiring import CofiringSample
from mtsae_lens.exploration.corpora import TextBatch
from mtsae_lens.exploration.counts import FeatureCounts
from mtsae_lens.exploration.example_lists import ExampleList
from mtsae_lens.exploration.firings import Firings, find_firings, read_batch
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.windows import WindowGatherer
from mtsae_lens.sae.lift import Lift
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.sealed import read_tensors, write_tensors
from mtsae_lens.splice.hooked_lm import HookedLM

KINDS = ("top", "sampled")
_MAX_BYTES = 2**27  # size of a tensor (context, pos, d_sae); about five are in memory at once
_REMEDY = "delete it; the same command then starts the pass over the text again"
_NEWER = ("row", "could_elsewhere", "fired_elsewhere")  # parts of the state that version 0.1.0 did not write
_FORGET_EVERY = 64  # number of batches after which contexts without an example are dropped


class Survey:
    """The state of the pass over the text. A pass that is saved, loaded and continued gives bit-identical results.

    Args:
        lm: model and SAE.
        plan: how many examples are kept, and how they are shown.
        n_corpora: number of corpora.
        cofiring_interval: interval at which contexts are sampled for co-firing; None samples nothing. The memory of the sample grows with
            the number of sampled contexts.
    """

    def __init__(self, lm: HookedLM, plan: Plan, n_corpora: int, cofiring_interval: int | None = None) -> None:
        self.lm, self.plan, self.cofiring_interval = lm, plan, cofiring_interval
        sae, d_sae = lm.sae, lm.sae.cfg.d_sae
        temporal = sae if isinstance(sae, TemporalEncoder) else None
        n_scales, n_reads = (len(temporal.cfg.dilations), len(temporal.read_offsets)) if temporal is not None else (0, 0)
        self.counts = FeatureCounts.empty(n_corpora, d_sae)
        self.lift = Lift(temporal) if temporal is not None else None
        self.lists = {
            kind: ExampleList.empty(d_sae, n, plan, n_scales, n_reads)
            for kind, n in zip(KINDS, (plan.n_examples, plan.n_sampled), strict=True)
        }
        self.cofiring = CofiringSample()
        self.held: dict[int, tuple[Spans, Int[Tensor, " pos"]]] = {}
        """Documents and tokens of each context that holds an example, by the number of the context."""
        self.n_batches = 0
        """Number of the next batch."""
        self._windows = WindowGatherer(sae, plan)

    def add(self, batch: TextBatch) -> None:
        """Add the next batch. A batch that would take too much memory is processed in parts.

        Args:
            batch: the batch after those that were added.
        """
        size = contexts_at_once(len(batch.tokens), batch.tokens.shape[1], self.lm.sae.cfg.d_sae, _MAX_BYTES)
        size = max(size, 2)  # so that every context has another one, the control of its persistence
        generator = torch.Generator().manual_seed(self.plan.seed * 1_000_003 + batch.number)
        for start in range(0, len(batch.tokens), size):
            self._add(batch.part(start, size), generator)
        self.n_batches = batch.number + 1
        if self.n_batches % _FORGET_EVERY == 0:
            self._forget()

    @torch.no_grad()
    def _add(self, batch: TextBatch, generator: torch.Generator) -> None:
        tokens = batch.tokens.to(self.lm.model.cfg.device)
        reading = read_batch(self.lm, tokens)
        firings = find_firings(reading.feature_acts)
        self.counts.add(batch.corpus, reading, firings)
        if self.lift is not None:
            self.lift.add(reading.parts, reading.kept, firings.row, firings.feature)
        if self.cofiring_interval is not None:
            self.cofiring.add(batch.first_context, self.cofiring_interval, reading, firings)
        for kind, examples in self.lists.items():
            keys = self._keys(kind, firings, generator)
            entries = examples.admit(firings, keys, len(tokens), batch.corpus, batch.first_context)
            self._windows.fill(examples, entries, reading)
            for row in entries.context.unique().tolist():
                self.held[batch.first_context + row] = (batch.spans[row], batch.tokens[row].int())

    def _keys(self, kind: str, firings: Firings, generator: torch.Generator) -> Tensor:
        """Return activations, or random numbers seeded by the batch, so that a continued pass draws the same numbers."""
        if kind == "top":
            return firings.value.float()
        return torch.rand(len(firings.value), generator=generator).to(firings.value.device)

    def emptied(self) -> Survey:
        """Return a survey that has read nothing, and goes on where this one is; it shares the weights and the edges of the histogram."""
        other, d_sae = copy.copy(self), self.lm.sae.cfg.d_sae
        other.counts = replace(FeatureCounts.empty(len(self.counts.n_tokens), d_sae), edges=self.counts.edges)
        other.lift = self.lift.emptied() if self.lift is not None else None
        other.lists = {kind: examples.emptied() for kind, examples in self.lists.items()}
        other.cofiring, other.held = CofiringSample(), {}
        return other

    def merge(self, other: Survey) -> None:
        """Add what another survey has read: other batches of the same text.

        The result is that of one survey of all batches, up to the rounding of sums.

        Args:
            other: the other survey, with the same edges of the histogram.
        """
        self.counts.merge(other.counts)
        if self.lift is not None and other.lift is not None:
            self.lift.merge(other.lift)
        self.cofiring.merge(other.cofiring)
        for kind, examples in self.lists.items():
            examples.merge(other.lists[kind])
        self.held |= other.held
        self._forget()
        self.n_batches = max(self.n_batches, other.n_batches)

    def _forget(self) -> None:
        """Drop contexts that no longer hold an example."""
        used = torch.cat([examples.context.flatten() for examples in self.lists.values()]).unique().tolist()
        self.held = {context: self.held[context] for context in used if context >= 0}

    def save(self, path: Path) -> None:
        """Write the whole state to one file, atomically.

        Args:
            path: the file to write.
        """
        self._forget()
        named = {f"{prefix}.{name}": tensor for prefix, part in self._parts() for name, tensor in _tensors(part).items()}
        named |= {
            "cofiring.tokens": torch.cat([torch.empty(0, dtype=torch.int32), *self.cofiring.tokens]),
            "cofiring.features": torch.cat([torch.empty(0, dtype=torch.int32), *self.cofiring.features]),
            "held.contexts": torch.tensor(list(self.held), dtype=torch.int32),
            "held.tokens": torch.stack([tokens for _, tokens in self.held.values()]) if self.held else torch.empty(0, 0),
        }
        documents = [document for document, _ in self.held.values()]
        numbers = {"n_batches": self.n_batches, "n_cofiring_tokens": self.cofiring.n_tokens, "documents": documents}
        write_tensors(path, named, {"survey": json.dumps(numbers)})

    def load(self, path: Path) -> None:
        """Continue from the state in a file.

        Args:
            path: a file that `save` wrote, in this version or an earlier one.

        Raises:
            DataError: the file is damaged.
        """
        tensors, metadata = read_tensors(path, _REMEDY)
        try:
            numbers = json.loads(metadata["survey"])
            for prefix, part in self._parts():
                names = [name for name in _tensors(part) if f"{prefix}.{name}" in tensors or name not in _NEWER]
                for name in names:
                    setattr(part, name, tensors[f"{prefix}.{name}"])
                if isinstance(part, ExampleList) and "row" not in names:
                    part.allocate_rows()
            self.cofiring = CofiringSample(
                int(numbers["n_cofiring_tokens"]), [tensors["cofiring.tokens"]], [tensors["cofiring.features"]]
            )
            contexts, tokens = tensors["held.contexts"].tolist(), tensors["held.tokens"]
            spans = [((held, 0),) if isinstance(held, str) else tuple((n, b) for n, b in held) for held in numbers["documents"]]
            self.held = dict(zip(contexts, zip(spans, tokens, strict=True), strict=True))
            self.n_batches = int(numbers["n_batches"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(
                f"{path}: expected the state of a pass over the text, got {type(error).__name__}: {error} (damaged); {_REMEDY}"
            ) from error

    def _parts(self) -> Iterable[tuple[str, Any]]:
        yield "counts", self.counts
        if self.lift is not None:
            yield "lift", self.lift
        yield from self.lists.items()


def _tensors(part: Any) -> dict[str, Tensor]:
    """Return the tensors of a part of the state by name."""
    if isinstance(part, Lift):
        return {name: getattr(part, name) for name in ("at_active", "total", "n_active", "n_tokens")}
    if isinstance(part, ExampleList):
        return part.tensors()
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
