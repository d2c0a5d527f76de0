"""Activations of a language model as whole sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from mtsae_lens.data.blocks import Block
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.context_blocks import Chunk, ContextBlocks
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.prefetch import Waits
from mtsae_lens.errors import DataError
from mtsae_lens.interruption import raise_if_stopped
from mtsae_lens.ranks import current_ranks
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

    def read(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        """Activations at the hook, heads flattened (or one head taken).

        Raises:
            DataError: an activation is NaN or infinite.
        """
        return read_hooks(
            self.model, [self.hook_name], tokens, head_index=self.head_index, autocast=self.autocast, run=self.compiled_run
        )[0]


@dataclass(frozen=True)
class HooksReader:
    """Runs a language model to several hooks."""

    model: AnyHookedModel
    hook_names: tuple[str, ...]
    autocast: bool = False
    compiled_run: Callable[..., Any] | None = None
    """As in `ActivationReader`."""

    def read(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos width"]:
        """Return the activations of all hooks side by side; see `ActivationReader.read`."""
        found = read_hooks(self.model, self.hook_names, tokens, autocast=self.autocast, run=self.compiled_run)
        return torch.cat(found, dim=-1)


@torch.no_grad()
def read_hooks(
    model: AnyHookedModel,
    hook_names: Sequence[str],
    tokens: Int[Tensor, "batch pos"],
    *,
    head_index: int | None = None,
    autocast: bool = False,
    run: Callable[..., Any] | None = None,
) -> list[Float[Tensor, "batch pos d_in"]]:
    """Run a language model once, to the last of some hooks.

    Args:
        model: with hooks.
        hook_names: the hooks.
        tokens: contexts.
        head_index: the head whose activations are taken; None for all of them, side by side.
        autocast: whether to run the model in bfloat16 where torch finds it safe.
        run: `model.run_with_cache`, compiled; None for the model's own.

    Returns:
        The activations of each hook in float32, in the order of the names.

    Raises:
        DataError: an activation is NaN or infinite.
    """
    device = torch.device(model.cfg.device)
    layers = [extract_stop_at_layer_from_tlens_hook_name(name) for name in hook_names]
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
        _, cache = (run or model.run_with_cache)(
            tokens.to(device),
            names_filter=list(hook_names),
            stop_at_layer=None if None in layers else max(layer for layer in layers if layer is not None),
            prepend_bos=False,
            **attention_options(model, torch.zeros_like(tokens, dtype=torch.bool)),
        )
    found = []
    for name in hook_names:
        h = cache[name].float()
        if head_index is not None:
            h = h[:, :, head_index]
        elif h.ndim == 4:
            h = rearrange(h, "batch pos head d_head -> batch pos (head d_head)")
        if not torch.isfinite(h).all():
            raise DataError(
                f"expected finite activations at {name}, got NaN or infinity; check the model's weights, or give --dtype float32"
            )
        found.append(h)
    return found


def token_chunks(
    contexts: Iterable[list[int]], size: int, first_context: int = 0
) -> Iterator[tuple[int, Int[Tensor, "batch pos"]]]:
    """Yield the contexts of a stream `size` at once, as the language model reads them: always the same ones together.

    Rounding in a forward pass may depend on what else is in it, so equal chunks are what makes activations equal bit for bit, wherever a run
    begins.

    Args:
        contexts: the stream.
        size: of a chunk.
        first_context: the first chunk is the one that holds this context.

    Returns:
        An iterator over the number of the first context in the chunk, and the tokens. Skipped contexts are tokenized.
    """
    number = first_context // size * size
    stream = islice(contexts, number, None)
    while chunk := list(islice(stream, size)):
        yield number, torch.tensor(chunk, dtype=torch.long)
        number += size


@dataclass(frozen=True)
class SequenceActivations(ContextBlocks):
    """Blocks of a language model's activations.

    Special tokens and position 0 are masked, and their activations are zero, as in a cache. While a block is read,
    `mtsae_lens.interruption.raise_if_stopped` is asked before each forward pass of the language model, and a progress bar shows how far it is.
    """

    reader: ActivationReader | HooksReader
    contexts: ContextStream
    batch_size_sequences: int
    block_size_batches: int = 16
    lm_batch_size_sequences: int = 32
    seed: int = 0
    n_batches: int | None = None
    prefetch: bool = False
    read_already: list[Block] = field(default_factory=list, repr=False, compare=False)
    waits: Waits = field(default_factory=Waits, repr=False, compare=False)

    @property
    def cutter(self) -> ContextCutter:
        """How the contexts were cut."""
        return self.contexts.cutter

    @property
    def batch_size_tokens(self) -> int:
        """Positions in a batch, masked ones included."""
        return self.batch_size_sequences * self.cutter.context_size

    @property
    @override
    def device(self) -> torch.device:
        return torch.device(self.reader.model.cfg.device)

    @override
    def chunks(self, first_block: int) -> Iterator[Chunk]:
        first_context = sum(len(self.own_contexts(number)) for number in range(first_block))
        contexts = self.contexts if current_ranks().is_alone else self._own_stream()
        for number, tokens in token_chunks(contexts, self.lm_batch_size_sequences, first_context):
            raise_if_stopped()
            h = self.reader.read(tokens)
            masked = self.cutter.masked(tokens).to(h.device)
            wanted = slice(max(0, first_context - number), None)
            yield zero_rows(h, masked)[wanted], masked[wanted]

    def _own_stream(self) -> Iterator[list[int]]:
        """Yield the contexts of this rank. Those of other ranks are tokenized too, because where a context ends depends on them."""
        stream, place = iter(self.contexts), 0
        for number in count():
            own = self.own_contexts(number)
            if not own:
                return
            yield from islice(stream, own.start - place, own.stop - place)
            place = own.stop
