"""Fill the settings of a training from the cache that it reads, and refuse a cache of something else."""

from __future__ import annotations

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.origins import absolute_name
from mtsae_lens.errors import ConfigError
from mtsae_lens.training.settings import TrainSettings


def adopt_cache(settings: TrainSettings) -> TrainSettings:
    """Take what was not given from the cache: model, text, hook, contexts, and the batches of the language model.

    Args:
        settings: settings of a training; without `cache` they are returned as they are.

    Returns:
        Complete settings.

    Raises:
        ConfigError: a setting that was given is not that of the cache, or the cache has several hooks and none was chosen.
        DataError: the cache is damaged or not complete.
    """
    if settings.cache is None:
        return settings
    cache = ActivationCache.open(settings.cache)
    contents, given = cache.contents, settings.model_fields_set
    recorded = {
        "model": contents.model_name,
        "dtype": contents.model_dtype,
        "dataset": contents.dataset_path,
        "context_size": contents.context_size,
        "prepend_bos": contents.prepend_bos,
        "packed": not contents.disable_concat_sequences,
    }
    chosen = {
        "model": absolute_name("model_name", settings.model),
        "dataset": absolute_name("dataset_path", settings.dataset),
        **{name: getattr(settings, name) for name in ("dtype", "context_size", "prepend_bos", "packed")},
    }
    for name, value in recorded.items():
        if name in given and chosen[name] != value:
            raise ConfigError(
                f"expected {name}={value!r}, that of the cache in {cache.folder}, got {chosen[name]!r}; leave it out, or make another cache"
            )
    taken = recorded
    if "hook_name" in given:
        cache.check_hook(settings.hook_name)
    elif len(contents.hooks) == 1:
        taken |= {"hook_name": next(iter(contents.hooks))}
    else:
        raise ConfigError(
            f"expected one hook of the cache in {cache.folder} ({', '.join(contents.hooks)}), got none; give --hook-name "
            f"{next(iter(contents.hooks))}"
        )
    if settings.hook_name_out is not None:
        cache.check_hook(settings.hook_name_out)
    if "lm_batch_size_sequences" not in given:
        taken |= {"lm_batch_size_sequences": contents.lm_batch_size_sequences}
    return settings.model_copy(update=taken)
