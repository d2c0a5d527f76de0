"""Activations of a language model as whole sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.padding import attention_options
from mtsae_lens.errors import DataError


@dataclass(frozen=True)
class ActivationReader:
    """Runs a language model to a hook."""

    model: AnyHookedModel
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

    Special tokens and position 0 are masked.
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

    def blocks(self, first: int) -> Iterator[tuple[int, Float[Tensor, "batch pos d_in"]]]:
        """See `SequenceBlocks.blocks`."""
        n_sequences = self.batch_size_sequences * self.block_size_batches
        contexts = iter(self.contexts)
        for _ in islice(contexts, first * n_sequences):
            pass  # skipped contexts cost their tokenisation, not the language model
        number = first
        while True:
            tokens = torch.tensor(list(islice(contexts, n_sequences)), dtype=torch.long)
            order = torch.randperm(n_sequences, generator=self.generator(number))
            parts = []
            for batch in tokens[order].split(self.lm_batch_size_sequences):
                h = self.reader.read(batch)
                parts.append(h.masked_fill(self._masked(batch).unsqueeze(-1).to(h.device), 0.0))
            yield number, torch.cat(parts)
            number += 1
