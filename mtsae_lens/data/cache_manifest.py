"""The manifest of a cache of activations: what was read, how, and the SHA-256 of every file.

    DIR/cache.json                              this manifest, with its own digest
    DIR/contexts/shard_00000.safetensors        `tokens (n, pos)` int32 and `masked (n, pos)` bool
    DIR/HOOK/shard_00000.safetensors            `activations (n, pos, d_in)`, zero at masked positions

Contexts are in the order in which training with the same seed reads them. All shards but the last hold the same number of contexts, so shard i
begins at context `i * shard_size_sequences`, and any process can read or write any shard by itself. A shard counts once the manifest names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mtsae_lens.data.choices import Dtype
from mtsae_lens.data.precision import torch_dtype
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.sealed import read_json, write_sealed_json

MANIFEST_FILE = "cache.json"
CONTEXTS = "contexts"
"""The folder of tokens and masks; a hook has a dot in its name."""
FORMAT = "mtsae-cache-1"
_TOKEN_BYTES = 5  # an int32 and a bool


class CacheContents(BaseModel):
    """What a cache holds. The names are those of SAELens's configuration where it has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model_name: str
    """The language model, a local folder as an absolute path."""
    model_dtype: Dtype
    dataset_path: str
    """The text, local files as absolute paths."""
    local_contents: dict[str, str]
    """Digests of the contents of a local model and text, by `model_name` and `dataset_path`."""
    hooks: dict[str, int]
    """The width of the activations at each hook, by its name."""
    context_size: int = Field(gt=1)
    prepend_bos: bool
    disable_concat_sequences: bool
    """Whether a context holds one document."""
    seed: int
    """Of the order of the text."""
    n_contexts: int = Field(gt=0)
    lm_batch_size_sequences: int = Field(gt=0)
    """Contexts in a forward pass of the language model."""
    shard_size_sequences: int = Field(gt=0)
    """Contexts in each shard but the last."""
    storage_dtype: Dtype

    @property
    def n_shards(self) -> int:
        """Number of shards of the whole cache."""
        return -(-self.n_contexts // self.shard_size_sequences)

    @property
    def n_tokens(self) -> int:
        """Number of positions, masked ones included."""
        return self.n_contexts * self.context_size

    def shard_length(self, shard: int) -> int:
        """Return the number of contexts in a shard."""
        return min(self.shard_size_sequences, self.n_contexts - shard * self.shard_size_sequences)

    def n_bytes(self, shards: Iterator[int] | range | None = None) -> int:
        """Return the size of some shards on disk, or of all, but for their headers of a few hundred bytes."""
        n_contexts = sum(map(self.shard_length, range(self.n_shards) if shards is None else shards))
        width = torch_dtype(self.storage_dtype).itemsize * sum(self.hooks.values())
        return n_contexts * self.context_size * (width + _TOKEN_BYTES)

    def files(self, shard: int) -> list[str]:
        """Return the names of the files of a shard, relative to the folder."""
        return [shard_file(part, shard) for part in (*self.hooks, CONTEXTS)]


class CacheManifest(BaseModel):
    """The content of `cache.json`."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format: Literal["mtsae-cache-1"] = "mtsae-cache-1"
    contents: CacheContents
    files: dict[str, str] = {}
    """The SHA-256 of every file that is complete, by its name relative to the folder."""

    def complete_shards(self) -> list[int]:
        """Return the shards whose files are all named."""
        return [i for i in range(self.contents.n_shards) if all(name in self.files for name in self.contents.files(i))]


def shard_file(part: str, shard: int) -> str:
    """Return the name of a file of a shard, relative to the folder.

    Args:
        part: a hook, or `CONTEXTS`.
        shard: its number.
    """
    return f"{part}/shard_{shard:05d}.safetensors"


def read_manifest(folder: Path) -> CacheManifest:
    """Read the manifest of a cache, complete or not.

    Raises:
        ConfigError: the folder is no cache.
        DataError: the manifest is damaged.
    """
    path = folder / MANIFEST_FILE
    if not path.is_file():
        raise ConfigError(
            f"{folder}: expected a cache of activations, got no {MANIFEST_FILE} in it; make one with mtsae cache --out {folder}"
        )
    manifest = read_json(path, CacheManifest, f"delete {folder} and make the cache again with mtsae cache")
    if any("/" in hook or hook in (CONTEXTS, ".", "..") for hook in manifest.contents.hooks):  # they are names of folders
        raise DataError(
            f"{path} is damaged (a hook has the name of a path); delete {folder} and make the cache again with mtsae cache"
        )
    return manifest


def write_manifest(folder: Path, manifest: CacheManifest, name: str = MANIFEST_FILE) -> None:
    """Write the manifest of a cache, whole or not at all.

    Args:
        folder: of the cache.
        manifest: the manifest.
        name: of the file.
    """
    content = manifest.model_dump(mode="json")
    write_sealed_json(folder / name, content | {"files": dict(sorted(manifest.files.items()))})


def manifest_name(rank: int) -> str:
    """Return the name of the manifest that a rank writes; those of all but the first one are merged into `cache.json` at the end."""
    return f"cache.rank{rank}.json" if rank else MANIFEST_FILE


def merge_rank_manifests(folder: Path, manifest: CacheManifest) -> None:
    """Add to a manifest the files that other ranks have written, of caches with the same contents, and delete their manifests.

    Args:
        folder: of the cache.
        manifest: the manifest that is extended, and written.

    Raises:
        DataError: the manifest of a rank is damaged.
    """
    found = sorted(folder.glob(manifest_name(1).replace("1", "*")))
    for path in found:
        other = read_json(path, CacheManifest, f"delete {path}; its shards are made again")
        if other.contents == manifest.contents:
            manifest.files |= other.files
    if found:
        write_manifest(folder, manifest)
    for path in found:
        path.unlink()
