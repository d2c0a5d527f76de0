"""Activations of a language model as whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.padding import attention_options
from mtsae_lens.errors import DataError
from mtsae_lens.interruption import raise_if_stopped
from mtsae_lens.upstream import extract_stop_at_layer_from_tlens_hook_name


@dataclass(frozen=True)
class ActivationReader:
    """Runs a language model to a hook."""

    model: AnyHookedModel
    hook_name: str
    head_index: int | None = None
    autocast: bool = False
    compiled_run: Callable[..., Any] | None = None
    """`model.run_with_cache`, compiled; None for the model's own."""

    @torch.no_grad()
    def read(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        """Activations at the hook, heads flattened (or one head taken).

        Raises:
            DataError: an activation is NaN or infinite.
        """
        device = torch.device(self.model.cfg.device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            _, cache = (self.compiled_run or self.model.run_with_cache)(
                tokens.to(device),
                names_filter=[self.hook_name],
                stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(self.hook_name),
                prepend_bos=False,
                **attention_options(self.model, torch.zeros_like(tokens, dtype=torch.bool)),
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


@dataclass(frozen=True)
class SequenceActivations(SequenceBlocks):
    """Blocks of a language model's activations: block i holds the contexts i * n, ..., (i + 1) * n - 1 of its stream, shuffled.

    Special tokens and position 0 are masked. While a block is read, `mtsae_lens.interruption.raise_if_stopped` is asked after each forward
    pass of the language model, and a progress bar shows how far it is.
    """

    reader: ActivationReader
    contexts: ContextStream
    batch_size_sequences: int
    block_size_batches: int = 16
    lm_batch_size_sequences: int = 32
    seed: int = 0
    n_batches: int | None = None
    """Batches in the whole run; the last block holds no more than these need. None for an endless stream."""
    read_already: list[Float[Tensor, "batch pos d_in"]] = field(default_factory=list, repr=False, compare=False)
    """The first block, where somebody has read it; it is let go when it is used."""

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

    def blocks(self, first: int) -> Iterator[tuple[int, Float[Tensor, "batch pos d_in"]]]:
        """See `SequenceBlocks.blocks`.

        Raises:
            Stopped: a signal asked to stop while a block was read.
        """
        n_sequences = self.batch_size_sequences * self.block_size_batches
        contexts = iter(self.contexts)
        for _ in islice(contexts, first * n_sequences):
            pass  # skipped contexts cost their tokenisation, not the language model
        number = first
        while size := self._block_size(number):
            tokens = torch.tensor(list(islice(contexts, size)), dtype=torch.long)
            if number == 0 and self.read_already:
                yield number, self.read_already.pop()
            else:
                yield number, self._read(tokens[torch.randperm(size, generator=self.generator(number))])
            number += 1

    def _block_size(self, number: int) -> int:
        """Contexts in a block; 0 after the end of the run."""
        n_batches = self.block_size_batches
        if self.n_batches is not None:
            n_batches = min(n_batches, max(0, self.n_batches - number * self.block_size_batches))
        return n_batches * self.batch_size_sequences

    def _read(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        parts = []
        # shown only where it takes long
        with tqdm(total=len(tokens), desc="Reading activations", unit="context", leave=False, delay=1) as progress:
            for batch in tokens.split(self.lm_batch_size_sequences):
                raise_if_stopped()
                h = self.reader.read(batch)
                parts.append(h.masked_fill(self._masked(batch).unsqueeze(-1).to(h.device), 0.0))
                progress.update(len(batch))
        return torch.cat(parts)
