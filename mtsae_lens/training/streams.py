"""Make the stream of activations that a `LanguageModelSAERunnerConfig` describes: from a language model as it reads text, or from a cache."""

from __future__ import annotations

from functools import partial
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig

from mtsae_lens.data.activation_cache import ActivationCache, CachedActivations
from mtsae_lens.data.activations import ActivationReader, HooksReader, SequenceActivations
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import read_documents, read_rows
from mtsae_lens.training.compiling import compile_function
from mtsae_lens.training.transcoding import hook_names_of
from mtsae_lens.upstream import HfDataset


def make_live_stream(
    cfg: LanguageModelSAERunnerConfig[Any], model: AnyHookedModel, override_dataset: HfDataset | None, text_seed: int
) -> SequenceActivations:
    """Make the stream of a language model that runs while the SAE is trained.

    Args:
        cfg: SAELens's configuration.
        model: the language model.
        override_dataset: rows to read instead of `cfg.dataset_path`, or None.
        text_seed: the seed of the order of the text.

    Returns:
        The stream. Nothing is read yet.
    """
    assert model.tokenizer is not None
    cutter = ContextCutter(
        tokenizer=model.tokenizer,
        context_size=cfg.context_size,
        prepend_bos=cfg.prepend_bos,
        packed=not cfg.disable_concat_sequences,
    )
    read = partial(read_documents, cfg.dataset_path, "train")
    if override_dataset is not None:
        read = partial(read_rows, override_dataset)
    names, run = hook_names_of(cfg), _run_with_cache(cfg, model)
    reader: ActivationReader | HooksReader = ActivationReader(model, cfg.hook_name, cfg.hook_head_index, cfg.autocast_lm, run)
    if len(names) > 1:
        reader = HooksReader(model, names, cfg.autocast_lm, run)
    return SequenceActivations(
        reader=reader,
        contexts=ContextStream(read, cutter, text_seed),
        batch_size_sequences=_batch_size_sequences(cfg),
        block_size_batches=_block_size_batches(cfg),
        lm_batch_size_sequences=cfg.store_batch_size_prompts,
        seed=cfg.seed,
        n_batches=cfg.total_training_steps,
        prefetch=bool(cfg.prefetch_llm_batches),
    )


def make_cached_stream(cfg: LanguageModelSAERunnerConfig[Any], cache: ActivationCache, text_seed: int) -> CachedActivations:
    """Make the stream of a cache.

    Args:
        cfg: SAELens's configuration.
        cache: the cache, which holds the hooks of the run.
        text_seed: the seed of the order of the contexts.

    Returns:
        The stream. Nothing is read yet.
    """
    return CachedActivations(
        cache,
        hook_names_of(cfg),
        _batch_size_sequences(cfg),
        _block_size_batches(cfg),
        seed=cfg.seed,
        text_seed=text_seed,
        n_batches=cfg.total_training_steps,
        to_device=cfg.device,
        prefetch=bool(cfg.prefetch_llm_batches),
    )


def _batch_size_sequences(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    return cfg.train_batch_size_tokens // cfg.context_size


def _block_size_batches(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    return max(1, cfg.n_batches_in_buffer * cfg.store_batch_size_prompts // _batch_size_sequences(cfg))


def _run_with_cache(cfg: LanguageModelSAERunnerConfig[Any], model: AnyHookedModel) -> Any:
    """Return the compiled `run_with_cache` of the model; None for the model's own."""
    if not cfg.compile_llm:
        return None
    return compile_function(model.run_with_cache, "compile_llm", cfg.llm_compilation_mode)
