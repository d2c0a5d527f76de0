"""Read a cache of activations: checked before its first use, in the order of the text or in another one, epoch after epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor
from typing_extensions import override

from mtsae_lens.data.blocks import Block
from mtsae_lens.data.cache_manifest import CONTEXTS, CacheContents, CacheManifest, read_manifest, shard_file
from mtsae_lens.data.context_blocks import Chunk, ContextBlocks
from mtsae_lens.data.origins import digest_contents
from mtsae_lens.data.prefetch import Waits
from mtsae_lens.digests import digest_file, digest_json
from mtsae_lens.errors import DataError, nearest
from mtsae_lens.interruption import raise_if_stopped

_CHUNK = 32  # contexts that are read between two questions whether to stop


@dataclass(frozen=True, eq=False)
class ActivationCache:
    """A complete cache in a folder. Each file is compared with its SHA-256 when it is used first.

    `ActivationCache.open(Path("runs/cache")).stream("blocks.3.hook_resid_post", batch_size_sequences=4)` gives blocks for
    `mtsae_lens.training.fit.fit`.
    """

    folder: Path
    manifest: CacheManifest
    _opened: dict[str, dict[str, Tensor]] = field(default_factory=dict, repr=False)
    """Tensors of the files that were checked; they are mapped into memory, not read."""

    @classmethod
    def open(cls, folder: Path | str) -> ActivationCache:
        """Open a cache that is complete.

        Args:
            folder: the folder that `mtsae cache` wrote.

        Raises:
            ConfigError: the folder is no cache.
            DataError: the cache is damaged or not complete, or its model or text has changed since.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        contents = manifest.contents
        n_done = len(manifest.complete_shards())
        if n_done < contents.n_shards:
            raise DataError(
                f"{folder}: expected {contents.n_shards} shards, got {n_done}; finish the cache with mtsae cache --out {folder}"
            )
        here = digest_contents({"model_name": contents.model_name, "dataset_path": contents.dataset_path})
        for name, digest in here.items():
            if contents.local_contents.get(name) not in (None, digest):
                changed = contents.model_name if name == "model_name" else contents.dataset_path
                raise DataError(
                    f"{folder}: expected {changed} as it was when the cache was made, got other contents; delete the cache and make it again"
                )
        return cls(folder, manifest)

    @property
    def contents(self) -> CacheContents:
        """What the cache holds."""
        return self.manifest.contents

    @cached_property
    def digest(self) -> str:
        """A digest of all that the cache holds, wherever the folder is."""
        return digest_json(self.manifest.model_dump(mode="json"))

    def check_hook(self, hook_name: str) -> int:
        """Return the width of the activations at a hook.

        Raises:
            DataError: the cache does not hold this hook.
        """
        if hook_name not in self.contents.hooks:
            raise DataError(
                f"{self.folder}: expected a hook of this cache, got {hook_name!r}.{nearest(hook_name, self.contents.hooks)}"
            )
        return self.contents.hooks[hook_name]

    def read(self, hook_name: str, contexts: range | Int[Tensor, " context"]) -> Float[Tensor, "context pos d_in"]:
        """Return the activations of some contexts.

        Args:
            hook_name: the hook.
            contexts: their numbers; of a range nothing is copied that lies in one shard.

        Returns:
            The activations in the dtype of the cache, zero at masked positions.

        Raises:
            DataError: the cache does not hold this hook, or a file is damaged.
        """
        self.check_hook(hook_name)
        return self._take(hook_name, "activations", contexts)

    def tokens(self, contexts: range | Int[Tensor, " context"]) -> Int[Tensor, "context pos"]:
        """Return the tokens of some contexts."""
        return self._take(CONTEXTS, "tokens", contexts).long()

    def masked(self, contexts: range | Int[Tensor, " context"]) -> Bool[Tensor, "context pos"]:
        """Return which positions of some contexts are masked."""
        return self._take(CONTEXTS, "masked", contexts)

    def stream(
        self, hook_name: str, batch_size_sequences: int, *, block_size_batches: int = 16, seed: int = 0
    ) -> CachedActivations:
        """Return an endless stream of training batches, as `mtsae_lens.training.fit.fit` takes it.

        Args:
            hook_name: the hook.
            batch_size_sequences: contexts in a batch.
            block_size_batches: batches that are in memory at once and shuffled together.
            seed: of the order. With the seed of the cache the first epoch is in the order of the text.
        """
        self.check_hook(hook_name)
        return CachedActivations(self, (hook_name,), batch_size_sequences, block_size_batches, seed=seed, text_seed=seed)

    def _take(self, part: str, name: str, contexts: range | Tensor) -> Tensor:
        size, n_contexts = self.contents.shard_size_sequences, self.contents.n_contexts
        ends = (contexts.start, contexts.stop - 1) if isinstance(contexts, range) else (contexts.min(), contexts.max())
        if not 0 <= ends[0] <= ends[1] < n_contexts:
            raise DataError(
                f"{self.folder}: expected contexts from 0 to {n_contexts - 1}, got {int(ends[0])} to {int(ends[1])}"
            )
        if isinstance(contexts, range):
            pieces = []
            place = contexts.start
            while place < contexts.stop:
                shard, first = divmod(place, size)
                piece = self._tensor(part, shard, name)[first : first + contexts.stop - place]
                pieces.append(piece)
                place += len(piece)
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return torch.stack([self._tensor(part, number // size, name)[number % size] for number in contexts.tolist()])

    def _tensor(self, part: str, shard: int, name: str) -> Tensor:
        file = shard_file(part, shard)
        if file not in self._opened:
            self._opened[file] = self._check_and_open(file)
        return self._opened[file][name]

    def _check_and_open(self, file: str) -> dict[str, Tensor]:
        path, remedy = self.folder / file, f"make it again with mtsae cache --out {self.folder}, which keeps the others"
        try:
            if digest_file(path) != self.manifest.files[file]:
                raise DataError(f"{path} is damaged (its content does not match its SHA-256); {remedy}")
            with safe_open(path, "pt") as tensors:
                return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118  (it is no dictionary)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {' '.join(str(error).split())}); {remedy}") from error


@dataclass(frozen=True)
class CachedActivations(ContextBlocks):
    """Blocks of the activations in a cache, epoch after epoch.

    With the text seed of the cache, the first epoch is in the order of the text, so what is read equals what the language model gives with the
    same seed, bit for bit from a cache in float32. Every other epoch and text seed has another random order.
    """

    cache: ActivationCache
    hook_names: tuple[str, ...]
    """The hooks; the activations of several stand side by side."""
    batch_size_sequences: int
    block_size_batches: int = 16
    seed: int = 0
    text_seed: int = 0
    """Decides in which order contexts are read; `seed` shuffles the contexts of a block."""
    n_batches: int | None = None
    to_device: str = "cpu"
    """Where the blocks are put."""
    prefetch: bool = False
    read_already: list[Block] = field(default_factory=list, repr=False, compare=False)
    waits: Waits = field(default_factory=Waits, repr=False, compare=False)

    @property
    @override
    def device(self) -> torch.device:
        return torch.device(self.to_device)

    @override
    def chunks(self, first_block: int) -> Iterator[Chunk]:
        n_contexts = self.cache.contents.n_contexts
        known, order = -1, None  # the order of the epoch before
        for own in map(self.own_contexts, count(first_block)):
            if not own:
                return
            place = own.start
            while place < own.stop:
                raise_if_stopped()
                epoch, first = divmod(place, n_contexts)
                contexts = range(first, min(first + _CHUNK, first + own.stop - place, n_contexts))
                if epoch != known:
                    known, order = epoch, self._order(epoch)
                numbers = contexts if order is None else order[contexts.start : contexts.stop]
                found = [self.cache.read(name, numbers) for name in self.hook_names]
                yield found[0] if len(found) == 1 else torch.cat(found, dim=-1), self.cache.masked(numbers)
                place += len(contexts)

    def _order(self, epoch: int) -> Int[Tensor, " context"] | None:
        """Return the order of the contexts in an epoch; None for that of the text."""
        contents = self.cache.contents
        if epoch == 0 and self.text_seed == contents.seed:
            return None
        seed = random.Random(f"{self.text_seed} {epoch}").getrandbits(32)
        return torch.randperm(contents.n_contexts, generator=torch.Generator().manual_seed(seed))
