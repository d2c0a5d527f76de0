"""Check a `LanguageModelSAERunnerConfig` of SAELens: what this package's runner follows, what changes nothing, and what it refuses."""

from __future__ import annotations

import copy
from dataclasses import MISSING, Field, fields, replace
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, TopKTrainingSAEConfig, TrainingSAEConfig

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.language_models import resolve_hook
from mtsae_lens.data.origins import absolute_name
from mtsae_lens.data.precision import dtype_name, recorded_dtype, unfollowed_options
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.ranks import current_ranks
from mtsae_lens.training.transcoding import check_output, check_transcoder
from mtsae_lens.upstream import HfDataset

_FOLLOWED = frozenset(
    "sae model_name hook_name hook_head_index dataset_path context_size from_pretrained_path n_batches_in_buffer training_tokens "
    "store_batch_size_prompts disable_concat_sequences device llm_device seed prepend_bos autocast autocast_lm train_batch_size_tokens "
    "adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles dead_feature_window "
    "feature_sampling_window logger n_checkpoints output_path resume_from_checkpoint model_from_pretrained_kwargs "
    "n_batches_for_norm_estimate use_cached_activations cached_activations_path prefetch_llm_batches "
    "compile_sae sae_compilation_mode compile_llm llm_compilation_mode".split()
)
"""Settings of SAELens's configuration that this runner reads."""

_NO_EFFECT = frozenset(
    "hook_eval dataset_trust_remote_code streaming is_dataset_tokenized act_store_device n_eval_batches "
    "eval_batch_size_prompts checkpoint_path save_final_checkpoint verbose sae_lens_version sae_lens_training_version".split()
)
"""Settings whose value changes nothing that is trained here. Every other setting must be left at its default."""

_ALSO_CARRIED_OUT: dict[str, Any] = {"exclude_special_tokens": True}
"""Values besides the default that say what this runner does anyway."""


def open_cache(cfg: LanguageModelSAERunnerConfig[Any], override_dataset: HfDataset | None) -> ActivationCache:
    """Open the cache of a configuration, and check that it holds what the configuration names.

    Args:
        cfg: with `use_cached_activations=True`.
        override_dataset: rows that were given in place of a text, which a cache cannot have.

    Raises:
        ConfigError: the cache was made from something else, or settings that a cache cannot follow.
        DataError: the cache is damaged or not complete.
    """
    if override_dataset is not None or cfg.hook_head_index is not None or cfg.autocast_lm:
        raise ConfigError(
            "expected no override_dataset, hook_head_index or autocast_lm beside a cache, which is read as it was written, got at least one "
            "of them; leave them out"
        )
    if cfg.cached_activations_path is None:
        raise ConfigError(
            "expected the folder of a cache with use_cached_activations=True, got None; give "
            "cached_activations_path='runs/cache'"
        )
    cache = ActivationCache.open(cfg.cached_activations_path)
    contents = cache.contents
    if cache.check_hook(cfg.hook_name) != cfg.sae.d_in:
        raise ModelError(
            f"expected width d_in={cfg.sae.d_in}, that of the SAE, got {contents.hooks[cfg.hook_name]} at {cfg.hook_name} in {cache.folder}; "
            "make them equal"
        )
    check_output(cfg, cache)
    expected = {
        "model_name": (absolute_name("model_name", cfg.model_name), contents.model_name),
        "dataset_path": (absolute_name("dataset_path", cfg.dataset_path), contents.dataset_path),
        "context_size": (cfg.context_size, contents.context_size),
        "prepend_bos": (cfg.prepend_bos, contents.prepend_bos),
        "disable_concat_sequences": (cfg.disable_concat_sequences, contents.disable_concat_sequences),
        "dtype": (recorded_dtype(cfg.model_from_pretrained_kwargs) or FLOAT32, contents.model_dtype),
    }
    for name, (given, recorded) in expected.items():
        if given != recorded:
            raise ConfigError(
                f"expected {name}={recorded!r}, that of the cache in {cache.folder}, got {given!r}; give that, or make another cache"
            )
    return cache


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def check_config(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check SAELens's configuration.

    Args:
        cfg: the configuration.

    Raises:
        ConfigError: settings contradict each other, or the runner does not follow them.
    """
    _check_normalization(cfg.sae)
    if not getattr(cfg.sae, "skip_first_position", True):
        raise ConfigError(
            "expected skip_first_position=True, got False: this runner masks position 0 of every context, as HookedLM and the export do; "
            "leave it out, or train on your own contexts with mtsae_lens.training.fit.fit"
        )
    check_transcoder(cfg)
    for field in fields(cfg):
        value, default = getattr(cfg, field.name), _default(field)
        if field.name in _FOLLOWED | _NO_EFFECT or value in (default, _ALSO_CARRIED_OUT.get(field.name, default)):
            continue
        raise ConfigError(f"expected {field.name}={default!r}, got {value!r}, which this runner does not follow; leave it out")
    options = cfg.model_from_pretrained_kwargs or {}
    if not_followed := unfollowed_options(options):
        raise ConfigError(
            f"expected model_from_pretrained_kwargs with dtype only, got {', '.join(not_followed)}, which this runner does not follow; leave "
            "it out, or make the model yourself and give it as override_model"
        )
    for name, value in options.items():
        if isinstance(value, torch.dtype):  # it goes into JSON at the end of the run
            raise ConfigError(
                f"expected the name of a dtype in model_from_pretrained_kwargs, got {value}; give {name}={dtype_name(value)!r}"
            )
    if cfg.train_batch_size_tokens % cfg.context_size:
        multiple = max(1, round(cfg.train_batch_size_tokens / cfg.context_size)) * cfg.context_size
        raise ConfigError(
            f"expected train_batch_size_tokens to be a multiple of context_size={cfg.context_size}, got {cfg.train_batch_size_tokens}; give "
            f"{multiple}"
        )
    if cfg.total_training_steps < 1:
        raise ConfigError(
            f"expected training_tokens of at least one batch ({cfg.train_batch_size_tokens} tokens), got {cfg.training_tokens}; give more"
        )
    k = getattr(cfg.sae, "k", 1)
    if k > cfg.sae.d_sae and getattr(cfg.sae, "activation", "topk") == "topk":  # SAELens's default of 100 may be more
        raise ConfigError(f"expected k of at most d_sae={cfg.sae.d_sae}, got {k}; give a smaller k (--set k=16)")
    sae_context_size = getattr(cfg.sae, "context_size", cfg.context_size)
    if sae_context_size != cfg.context_size:
        raise ConfigError(
            f"expected context_size={cfg.context_size}, that of the runner, got an SAE with context_size={sae_context_size}; make them equal"
        )


def _check_normalization(sae: TrainingSAEConfig) -> None:
    """Raise `ConfigError` for a normalization of the input that this runner, or SAELens's training of the architecture, does not follow.

    With a normalization of each position, `topk` and what SAELens derives from it (`abstopk`, `batchtopk`, `matryoshka_batchtopk`) raise an
    error as soon as a feature is dead, because their auxiliary loss would compare normalized activations with others; a coefficient of 0
    does not help. The nested reconstructions of `matryoshka_batchtopk` also undo the normalization twice.
    """
    given = sae.normalize_activations
    if given == "covariance_whitening":
        raise ConfigError(
            "expected a value of normalize_activations that this runner follows, got 'covariance_whitening'; give 'expected_average_only_in'"
        )
    if isinstance(sae, TopKTrainingSAEConfig) and given in ("layer_norm", "constant_norm_rescale"):
        raise ConfigError(
            f"expected normalize_activations 'expected_average_only_in' or 'none' for architecture {sae.architecture()!r}, got {given!r}, with "
            "which SAELens does not train it; give --set normalize_activations=expected_average_only_in, or an architecture such as jumprelu"
        )


def check_model(cfg: LanguageModelSAERunnerConfig[Any], model: AnyHookedModel, dtype: str | None) -> None:
    """Check that the language model has the dtype, the hook, the width and the context that the configuration names.

    Args:
        cfg: SAELens's configuration.
        model: the language model.
        dtype: the dtype in `cfg.model_from_pretrained_kwargs`, or None.

    Raises:
        ConfigError: the model has another dtype, lacks the hook, or has a shorter context.
        ModelError: the width at the hook is not that of the SAE.
    """
    if dtype not in (None, dtype_name(model.cfg.dtype)):
        raise ConfigError(
            f"expected a model in {dtype!r}, as model_from_pretrained_kwargs say, got override_model in {dtype_name(model.cfg.dtype)!r}; make "
            "them equal"
        )
    width = resolve_hook(model, cfg.hook_name, cfg.hook_head_index)
    if width != cfg.sae.d_in:
        raise ModelError(
            f"expected width d_in={cfg.sae.d_in}, that of the SAE, got {width} at {cfg.hook_name} of {cfg.model_name}; give the SAE "
            f"d_in={width}"
        )
    check_output(cfg, model)
    if cfg.context_size > model.cfg.n_ctx:
        raise ConfigError(
            f"expected context_size of at most {model.cfg.n_ctx}, the context of the model, got {cfg.context_size}; lower it"
        )


def check_ranks(cfg: LanguageModelSAERunnerConfig[Any], sae: Any) -> None:
    """Check that the ranks of this process can train the SAE together.

    Args:
        cfg: SAELens's configuration.
        sae: the configuration of the SAE.

    Raises:
        ConfigError: the SAE is trained by one process only, or a batch has fewer contexts than there are ranks.
    """
    ranks = current_ranks()
    if ranks.is_alone:
        return
    if getattr(sae, "memory", "none") != "none":
        raise ConfigError(
            f"expected memory='none' with {ranks.size} ranks, got {sae.memory!r}, which draws errors from the batch of one process; train it "
            "without torchrun"
        )
    n_contexts = cfg.train_batch_size_tokens // cfg.context_size
    if n_contexts < ranks.size:
        raise ConfigError(
            f"expected a context for each of {ranks.size} ranks in a batch, got {n_contexts} (train_batch_size_tokens="
            f"{cfg.train_batch_size_tokens}); give --batch-size-tokens {ranks.size * cfg.context_size} or fewer ranks"
        )


def without_output(cfg: LanguageModelSAERunnerConfig[Any]) -> LanguageModelSAERunnerConfig[Any]:
    """Return the configuration for a rank that writes nothing: no output folder, and no Weights & Biases."""
    changed = copy.copy(cfg)
    changed.output_path = None
    changed.logger = replace(cfg.logger, log_to_wandb=False)
    return changed
