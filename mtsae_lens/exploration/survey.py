"""The one pass over text, for all features at once: counts, lift, examples, pairs. Its memory does not grow with the text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
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
from mtsae_lens.exploration.example_lists import Entries, ExampleList
from mtsae_lens.exploration.firings import Firings, find_firings, read_batch
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.windows import WindowGatherer
from mtsae_lens.sae.lift import Lift
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sealed import read_tensors, write_tensors
from mtsae_lens.splice.hooked_lm import HookedLM

KINDS = ("top", "sampled")
_MAX_BYTES = 2**27  # of a tensor (context, pos, d_sae), of which about five are held at once
_REMEDY = "delete it, and the same command looks through the text again"
_FORGET_EVERY = 64  # batches between two clearances of contexts whose examples were all dropped


class Survey:
    """What is known after some batches. Saved, loaded and carried on, it ends in what an uninterrupted pass gives, bit for bit.

    Args:
        lm: model and SAE.
        plan: sizes.
        n_corpora: whose batches are looked at.
        cofiring_interval: every how many-th context is sampled for what fires together, the one part that grows with the number of
            contexts sampled; None samples nothing.
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
        """Documents and tokens of each context that an example stands in; at most one per example."""
        self.n_batches = 0
        self._windows = WindowGatherer(sae, plan)

    def add(self, batch: TextBatch) -> None:
        """Look at the next batch, a part at a time where it would be large: a token has a number for each feature."""
        size = contexts_at_once(len(batch.tokens), batch.tokens.shape[1], self.lm.sae.cfg.d_sae, _MAX_BYTES)
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
            entries = examples.admit(firings, self._keys(kind, firings, generator), len(tokens))
            self._windows.fill(examples, entries, reading)
            self._hold(examples, entries, batch)

    def _keys(self, kind: str, firings: Firings, generator: torch.Generator) -> Tensor:
        """Activations, or numbers drawn for this batch alone, so that a pass carried on draws what it would have drawn."""
        if kind == "top":
            return firings.value.float()
        return torch.rand(len(firings.value), generator=generator).to(firings.value.device)

    def _hold(self, examples: ExampleList, entries: Entries, batch: TextBatch) -> None:
        at = (entries.feature, entries.slot)
        examples.context[at] = (batch.first_context + entries.context).int()
        examples.corpus[at] = batch.corpus
        for row in entries.context.unique().tolist():
            self.held[batch.first_context + row] = (batch.spans[row], batch.tokens[row].int())

    def _forget(self) -> None:
        """Drop contexts that no example stands in any more."""
        used = torch.cat([examples.context.flatten() for examples in self.lists.values()]).unique().tolist()
        self.held = {context: self.held[context] for context in used if context >= 0}

    def save(self, path: Path) -> None:
        """Write all of the state, as one file, whole or not at all."""
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
        """Take up the state in a file.

        Raises:
            DataError: it is damaged.
        """
        tensors, metadata = read_tensors(path, _REMEDY)
        try:
            numbers = json.loads(metadata["survey"])
            for prefix, part in self._parts():
                names = [name for name in _tensors(part) if f"{prefix}.{name}" in tensors or name != "row"]
                for name in names:
                    setattr(part, name, tensors[f"{prefix}.{name}"])
                if isinstance(part, ExampleList) and "row" not in names:
                    part.lay_out_rows()
            self.cofiring = CofiringSample(
                int(numbers["n_cofiring_tokens"]), [tensors["cofiring.tokens"]], [tensors["cofiring.features"]]
            )
            contexts, tokens = tensors["held.contexts"].tolist(), tensors["held.tokens"]
            spans = [((held, 0),) if isinstance(held, str) else tuple((n, b) for n, b in held) for held in numbers["documents"]]
            self.held = dict(zip(contexts, zip(spans, tokens, strict=True), strict=True))
            self.n_batches = int(numbers["n_batches"])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {error}); {_REMEDY}") from error

    def _parts(self) -> Iterable[tuple[str, Any]]:
        yield "counts", self.counts
        if self.lift is not None:
            yield "lift", self.lift
        yield from self.lists.items()


def _tensors(part: Any) -> dict[str, Tensor]:
    """The state of a part: the tensors among its fields."""
    if isinstance(part, Lift):
        return {name: getattr(part, name) for name in ("at_active", "total", "n_active", "n_tokens")}
    if isinstance(part, ExampleList):
        return part.tensors()
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
