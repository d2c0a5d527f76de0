"""Write the activations of a language model to disk, shard by shard; a run that is stopped goes on with the shards that are missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from mtsae_lens.data.activations import read_hooks, token_chunks
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.cache_manifest import (
    CONTEXTS,
    MANIFEST_FILE,
    CacheContents,
    CacheManifest,
    manifest_name,
    merge_rank_manifests,
    read_manifest,
    shard_file,
    write_manifest,
)
from mtsae_lens.data.contexts import ContextStream
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.precision import torch_dtype
from mtsae_lens.digests import digest_file
from mtsae_lens.errors import ConfigError, DataError, OutputError
from mtsae_lens.files import write_whole_file
from mtsae_lens.progress import advance, phase
from mtsae_lens.ranks import current_ranks

_MARGIN = 2**24  # bytes for headers, the manifest and what the file system takes


def missing_shards(folder: Path, contents: CacheContents) -> tuple[CacheManifest, list[int]]:
    """Find out which shards of a cache are still to be written, because they are absent or damaged.

    Args:
        folder: of the cache, which may be empty.
        contents: what the cache is to hold.

    Returns:
        The manifest of the shards that are whole, and the numbers of the others.

    Raises:
        ConfigError: the folder holds a cache of something else.
        DataError: the manifest is damaged.
    """
    manifest, ranks = CacheManifest(contents=contents), current_ranks()
    if not ranks.is_first:
        return manifest, ranks.tell(None)
    if (folder / MANIFEST_FILE).is_file():
        manifest = read_manifest(folder)
        differences = contents_differences(manifest.contents, contents)
        if differences:
            raise ConfigError(
                f"{folder}: expected a cache with the same settings, got others ({'; '.join(differences)}); give another --out or delete it"
            )
        merge_rank_manifests(folder, manifest)  # of ranks that were stopped
        with phase("Checking what is there", "file", len(manifest.files)):
            manifest.files = {name: digest for name, digest in manifest.files.items() if _is_whole(folder / name, digest)}
    whole = set(manifest.complete_shards())
    return manifest, ranks.tell([shard for shard in range(contents.n_shards) if shard not in whole])


def contents_differences(recorded: CacheContents, wanted: CacheContents) -> list[str]:
    """Name what differs between two descriptions of a cache."""
    then, now = recorded.model_dump(), wanted.model_dump()
    return [f"{name}: {then[name]!r} there, {now[name]!r} now" for name in then if then[name] != now[name]]


def _is_whole(path: Path, digest: str) -> bool:
    whole = path.is_file() and digest_file(path) == digest
    advance()
    return whole


def check_room(folder: Path, contents: CacheContents, shards: list[int]) -> tuple[int, int]:
    """Compare the size of what is to be written with the free space of the disk.

    Args:
        folder: of the cache; it exists.
        contents: what the cache is to hold.
        shards: the shards that are to be written.

    Returns:
        Bytes that are to be written, and bytes that are free.

    Raises:
        OutputError: there is not enough room.
    """
    needed, free = contents.n_bytes(iter(shards)), shutil.disk_usage(folder).free
    if shards and needed + _MARGIN > free:
        raise OutputError(
            f"{folder}: expected {format_bytes(needed)} of free space for the cache, got {format_bytes(free)}; give fewer --n-tokens, "
            "--storage-dtype bfloat16, or another --out"
        )
    return needed, free


def format_bytes(n_bytes: int) -> str:
    """Write a number of bytes in the largest unit that fits, such as `1.5 GB`."""
    size = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def write_shards(
    folder: Path, manifest: CacheManifest, shards: list[int], model: AnyHookedModel, contexts: ContextStream
) -> CacheManifest:
    """Run the language model over the contexts of some shards, and write each shard as soon as it is complete.

    Each of several ranks writes its part of the shards, and the first one then merges their manifests.

    Args:
        folder: of the cache.
        manifest: of the shards that are there; it is extended and written after every shard.
        shards: the numbers of those that are to be written, in ascending order.
        model: the language model.
        contexts: the text, in the order of the cache.

    Returns:
        The manifest.

    Raises:
        DataError: activations that are not finite, or that the storage dtype cannot hold.
        OutputError: a file cannot be written.
    """
    ranks = current_ranks()
    own = [shards[place] for place in ranks.share(len(shards))]
    if own or ranks.is_first:
        write_manifest(folder, manifest, manifest_name(ranks.rank))
    if own:
        _write_own(folder, manifest, own, model, contexts)
    ranks.wait_for_all()
    if ranks.is_first:
        merge_rank_manifests(folder, manifest)
    ranks.wait_for_all()  # a rank may open the cache next
    return manifest


def _write_own(
    folder: Path, manifest: CacheManifest, shards: list[int], model: AnyHookedModel, contexts: ContextStream
) -> None:
    contents = manifest.contents
    n_contexts = sum(map(contents.shard_length, shards))
    first = shards[0] * contents.shard_size_sequences
    chunks = token_chunks(contexts, contents.lm_batch_size_sequences, first)
    with phase(f"Caching {len(shards)} shards", "context", n_contexts):
        for shard in shards:
            tensors = _read_shard(contents, shard, model, contexts, chunks)
            for part, content in tensors.items():
                name = shard_file(part, shard)
                with write_whole_file(folder / name) as partial:
                    save_file(content, partial)
                manifest.files[name] = digest_file(folder / name)
            write_manifest(folder, manifest, manifest_name(current_ranks().rank))


def _read_shard(
    contents: CacheContents,
    shard: int,
    model: AnyHookedModel,
    contexts: ContextStream,
    chunks: Iterator[tuple[int, Int[Tensor, "batch pos"]]],
) -> Mapping[str, dict[str, Tensor]]:
    """Return the tensors of a shard by the name of their part."""
    dtype = torch_dtype(contents.storage_dtype)
    size, n_positions = contents.shard_length(shard), contents.context_size
    first = shard * contents.shard_size_sequences
    tokens = torch.empty(size, n_positions, dtype=torch.int32)
    masked = torch.empty(size, n_positions, dtype=torch.bool)
    activations = {hook: torch.empty(size, n_positions, width, dtype=dtype) for hook, width in contents.hooks.items()}
    for number, chunk in chunks:
        if number < first:
            continue  # of a shard that is there
        place = slice(number - first, number - first + len(chunk))
        tokens[place], masked[place] = chunk, contexts.cutter.masked(chunk)
        found = read_hooks(model, list(contents.hooks), chunk)
        for (hook, stored), h in zip(activations.items(), found, strict=True):
            stored[place] = _stored(hook, zero_rows(h, masked[place]), dtype)
        advance(len(chunk))
        if place.stop >= size:
            break
    parts = {hook: {"activations": stored} for hook, stored in activations.items()}
    return parts | {CONTEXTS: {"tokens": tokens, "masked": masked}}


def _stored(hook: str, h: Float[Tensor, "batch pos d_in"], dtype: torch.dtype) -> Float[Tensor, "batch pos d_in"]:
    stored = h.to(dtype)
    if dtype == torch.float16 and not torch.isfinite(stored).all():
        raise DataError(
            f"expected activations at {hook} of at most {torch.finfo(dtype).max:,.0f}, the limit of float16, got {h.abs().max():.3g}; "
            "give --storage-dtype bfloat16"
        )
    return stored
