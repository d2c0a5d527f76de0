"""Activations of a language model as whole sequences, in an order that can be entered at any step.

The stream is a chain of blocks. Block i holds the contexts i * n, ..., (i + 1) * n - 1 of its context stream and shuffles them
with a generator seeded by (seed, i). So what step s sees depends on the seed and s alone: a resumed run needs no saved buffer.
Special tokens and position 0 are rows of zeros: walls to a temporal SAE, dropped for an SAE that reads one token at a time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from sae_lens import HookedSAETransformer
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.errors import DataError


@dataclass(frozen=True)
class ActivationReader:
    """Runs a language model to a hook."""

    model: HookedSAETransformer
    hook_name: str
    head_index: int | None = None
    autocast: bool = False

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        """Activations at the hook, heads flattened (or one head taken).

        Raises:
            DataError: an activation is NaN or infinite.
        """
        device = torch.device(self.model.cfg.device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            _, cache = self.model.run_with_cache(
                tokens.to(device),
                names_filter=[self.hook_name],
                stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(self.hook_name),
                prepend_bos=False,
            )
        h = cache[self.hook_name].float()
        if self.head_index is not None:
            h = h[:, :, self.head_index]
        elif h.ndim == 4:
            h = rearrange(h, "batch pos head d_head -> batch pos (head d_head)")
        if not torch.isfinite(h).all():
            raise DataError(
                f"activations at {self.hook_name} are not finite: the model or its weights are broken for this text"
            )
        return h


Gather = Callable[[Tensor], Callable[[Tensor], Tensor]]  # contexts -> (flat positions -> rows)


def gather_tokens(h: Float[Tensor, "batch pos d_in"]) -> Callable[[Int[Tensor, " row"]], Float[Tensor, "row d_in"]]:
    """A function of positions, given as `context * n_positions + position`: their activations."""
    return h.flatten(0, 1).__getitem__


@dataclass(frozen=True)
class SequenceActivations:
    """An endless stream of training batches; see the module for its order.

    `batch_size_sequences` contexts make a batch; `block_size_batches` batches are in memory at once, so memory is bounded by
    `block_size_batches * batch_size_sequences * context_size * d_in` numbers.
    """

    reader: ActivationReader
    contexts: ContextStream
    batch_size_sequences: int
    block_size_batches: int = 16
    lm_batch_size_sequences: int = 32
    seed: int = 0

    @property
    def cutter(self) -> ContextCutter:
        """How the contexts were cut."""
        return self.contexts.cutter

    @property
    def batch_size_tokens(self) -> int:
        """Positions in a batch, masked ones included."""
        return self.batch_size_sequences * self.cutter.context_size

    def _masked(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        masked = self.cutter.special_positions(tokens)
        masked[:, 0] = True
        return masked

    def _blocks(self, first: int) -> Iterator[tuple[int, Float[Tensor, "batch pos d_in"]]]:
        n_sequences = self.batch_size_sequences * self.block_size_batches
        contexts = iter(self.contexts)
        for _ in islice(contexts, first * n_sequences):
            pass  # skipped contexts cost their tokenisation, not the language model
        number = first
        while True:
            tokens = torch.tensor(list(islice(contexts, n_sequences)), dtype=torch.long)
            order = torch.randperm(n_sequences, generator=self._generator(number))
            parts = []
            for batch in tokens[order].split(self.lm_batch_size_sequences):
                h = self.reader.read(batch)
                parts.append(h.masked_fill(self._masked(batch).unsqueeze(-1).to(h.device), 0.0))
            yield number, torch.cat(parts)
            number += 1

    def _generator(self, block: int) -> torch.Generator:
        return torch.Generator().manual_seed(random.Random(f"{self.seed} {block}").getrandbits(32))

    def sequences(self, first_step: int = 0) -> Iterator[Float[Tensor, "rows d_in"]]:
        """Batches of `batch_size_sequences` contexts laid end to end, masked rows zero: for temporal SAEs."""
        block, skip = divmod(first_step, self.block_size_batches)
        for _, h in self._blocks(block):
            for batch in h.split(self.batch_size_sequences)[skip:]:
                yield rearrange(batch, "batch pos d_in -> (batch pos) d_in")
            skip = 0

    def mixed(self, first_step: int = 0, gather: Gather = gather_tokens) -> Iterator[Float[Tensor, "rows width"]]:
        """Rows of the same blocks, masked ones left out, mixed across contexts, in as many batches.

        A batch is a little smaller than `batch_size_tokens`, by the rows that were masked. `gather` makes rows of positions; the
        default takes their activations alone, as a pointwise SAE reads them.
        """
        block, skip = divmod(first_step, self.block_size_batches)
        for number, h in self._blocks(block):
            kept = (h != 0).any(dim=-1).flatten().nonzero().squeeze(-1)
            order = torch.randperm(kept.shape[0], generator=self._generator(number)).to(kept.device)
            gather_rows = gather(h)
            for rows in kept[order].tensor_split(self.block_size_batches)[skip:]:
                yield gather_rows(rows)
            skip = 0
