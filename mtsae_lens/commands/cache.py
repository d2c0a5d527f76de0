"""Keep the activations of a language model on disk, for many trainings."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.cache_manifest import MANIFEST_FILE, CacheContents, CacheManifest, read_manifest
from mtsae_lens.data.cache_writer import check_room, format_bytes, missing_shards, write_shards
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import check_source, read_documents
from mtsae_lens.data.language_models import check_device, load_language_model, resolve_hook
from mtsae_lens.data.origins import Field, absolute_name, digest_contents
from mtsae_lens.data.precision import dtype_name, torch_dtype
from mtsae_lens.errors import ConfigError
from mtsae_lens.interruption import interrupt_on_signal
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks

_KEPT = "the shards that are complete are kept; run the same command to resume"


@interrupt_on_signal(_KEPT)
@in_output_folder
def run_cache(settings: CacheSettings, model: AnyHookedModel | None = None) -> CacheManifest:
    """Write the activations that training would read from a language model, or the part of them that is missing.

    The size is printed before the model runs. Several ranks (`mtsae_lens.ranks`) write a part of the shards each. See
    `mtsae_lens.data.cache_manifest` for the files.

    Args:
        settings: what to read; what is not given is taken from the cache that is in the folder already.
        model: a hooked language model; None to load the one that the settings name.

    Returns:
        The manifest of the complete cache.

    Raises:
        ConfigError: the folder holds a cache of something else.
        OutputError: the disk has not the room.
    """
    settings = _adopt_existing(settings)
    settings = settings.model_copy(update={"device": current_ranks().local_device(settings.device)})
    check_device(settings.device)
    check_source(settings.dataset)
    model = model or load_language_model(settings.model, device=settings.device, dtype=settings.dtype)
    contents = describe(settings, model)
    manifest, shards = missing_shards(settings.out, contents)
    needed, free = check_room(settings.out, contents, shards)
    print(
        f"{contents.n_tokens:,} tokens at {', '.join(contents.hooks)}: {format_bytes(contents.n_bytes())} in {contents.n_shards} shards; "
        f"{len(shards)} to write ({format_bytes(needed)}; {format_bytes(free)} are free)",
        file=sys.stderr,
    )
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, contents.context_size, contents.prepend_bos, not contents.disable_concat_sequences)
    contexts = ContextStream(partial(read_documents, settings.dataset, "train"), cutter, contents.seed)
    return write_shards(settings.out, manifest, shards, model, contexts)


def describe(settings: CacheSettings, model: AnyHookedModel) -> CacheContents:
    """Describe the cache that the settings ask for.

    Args:
        settings: what to read.
        model: the language model.

    Raises:
        ConfigError: a context that is longer than the model's.
        ModelError: a hook that the model does not have.
    """
    if settings.context_size > model.cfg.n_ctx:
        raise ConfigError(
            f"expected context_size of at most {model.cfg.n_ctx}, the model's context, got {settings.context_size}; lower it"
        )
    if (own := dtype_name(model.cfg.dtype)) != settings.dtype:
        raise ConfigError(f"expected a model in {settings.dtype}, the dtype of the settings, got one in {own}; make them equal")
    hooks = {name: resolve_hook(model, name) for name in settings.hook_name}
    names: dict[Field, str] = {
        "model_name": absolute_name("model_name", settings.model),
        "dataset_path": absolute_name("dataset_path", settings.dataset),
    }
    chunk = settings.lm_batch_size_sequences
    context_bytes = settings.context_size * max(hooks.values()) * torch_dtype(settings.storage_dtype).itemsize
    return CacheContents(
        model_name=names["model_name"],
        dataset_path=names["dataset_path"],
        model_dtype=settings.dtype,
        local_contents=digest_contents(names),
        hooks=hooks,
        context_size=settings.context_size,
        prepend_bos=settings.prepend_bos,
        disable_concat_sequences=not settings.packed,
        seed=settings.seed,
        n_contexts=-(-settings.n_tokens // (settings.context_size * chunk)) * chunk,
        lm_batch_size_sequences=chunk,
        shard_size_sequences=max(1, settings.shard_size_mb * 10**6 // (context_bytes * chunk)) * chunk,
        storage_dtype=settings.storage_dtype,
    )


def _adopt_existing(settings: CacheSettings) -> CacheSettings:
    """Take what was not given from the cache in the output folder, so that `mtsae cache --out DIR` completes or mends it."""
    if not (settings.out / MANIFEST_FILE).is_file():
        return settings
    contents = read_manifest(Path(settings.out)).contents
    context_bytes = contents.context_size * max(contents.hooks.values()) * torch_dtype(contents.storage_dtype).itemsize
    recorded = {
        "model": contents.model_name,
        "dtype": contents.model_dtype,
        "hook_name": tuple(contents.hooks),
        "dataset": contents.dataset_path,
        "n_tokens": contents.n_tokens,
        "storage_dtype": contents.storage_dtype,
        "context_size": contents.context_size,
        "prepend_bos": contents.prepend_bos,
        "packed": not contents.disable_concat_sequences,
        "lm_batch_size_sequences": contents.lm_batch_size_sequences,
        "shard_size_mb": -(-contents.shard_size_sequences * context_bytes // 10**6),
        "seed": contents.seed,
    }
    return settings.model_copy(
        update={name: value for name, value in recorded.items() if name not in settings.model_fields_set}
    )
