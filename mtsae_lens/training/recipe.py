"""Train an SAE from `TrainSettings`: make SAELens's configuration from them, check it before any work, and run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import partial
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAE

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.blocks import Block
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.context_blocks import ContextBlocks
from mtsae_lens.data.documents import check_source
from mtsae_lens.data.language_models import check_device, load_language_model, resolve_hook
from mtsae_lens.errors import ConfigError, MTSAEError, OutputError, nearest
from mtsae_lens.output_folders import in_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.config import ARCHITECTURE, MTTrainingSAEConfig
from mtsae_lens.sae.field_types import as_whole_numbers, check_fields
from mtsae_lens.training.cached import adopt_cache
from mtsae_lens.training.dilations import select_dilations
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.training.runner_checks import check_config
from mtsae_lens.training.settings import TrainSettings
from mtsae_lens.training.transcoding import architecture_of
from mtsae_lens.upstream import SAE_TRAINING_CLASS_REGISTRY, SAEMetadata

AUTO = "auto"
_RECORDED = {"metadata": "which the run records itself; leave it out", "device": "which belongs to the run; give --device"}
"""Fields of every architecture that settings of the SAE may not set."""
_ANY_WIDTH = 64  # stands for the model's own width where settings are checked before the model is loaded


def sae_config(settings: TrainSettings, d_in: int, d_out: int | None = None) -> Any:
    """Make the training configuration of the architecture.

    Args:
        settings: the settings of the run.
        d_in: width at the hook.
        d_out: width at `hook_name_out`, for a transcoder.

    Returns:
        The configuration.

    Raises:
        ConfigError: the architecture or one of its settings is unknown, or a value is refused.
    """
    architecture = architecture_of(settings)
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise ConfigError(
            f"expected a known architecture, got {settings.architecture!r}."
            f"{nearest(settings.architecture, SAE_TRAINING_CLASS_REGISTRY)}"
        )
    config_class = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    valid = [field.name for field in fields(config_class) if field.init]
    for name in settings.sae:
        if name in _RECORDED:
            raise ConfigError(f"expected a setting of the SAE, got --set {name}, {_RECORDED[name]}")
        if name not in valid:
            raise ConfigError(
                f"expected a setting of architecture {settings.architecture!r}, got {name!r}.{nearest(name, valid)}"
            )
    values: dict[str, Any] = {
        "d_in": d_in,
        "d_sae": settings.d_sae,
        "device": settings.device,
        "normalize_activations": settings.normalize_activations,
    }
    if settings.hook_name_out is not None:
        values |= {"d_out": d_out, "metadata": SAEMetadata(hook_name_out=settings.hook_name_out)}
    elif settings.hook_name.endswith("hook_z"):
        values["reshape_activations"] = "hook_z"
    if issubclass(config_class, MTTrainingSAEConfig):
        values["context_size"] = settings.context_size
    given = as_whole_numbers(config_class, settings.sae)
    check_fields(config_class, given)
    values |= given
    k = values.get("k")
    if k is not None and not 0 < k <= settings.d_sae:
        raise ConfigError(
            f"expected k from 1 to {settings.d_sae}, the number of features (--d-sae), got {k}; change k or --d-sae"
        )
    try:
        return config_class(**values)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"expected settings of architecture {settings.architecture!r}, got an error ({' '.join(str(error).split())}); change --set"
        ) from error


def runner_config(settings: TrainSettings, d_in: int, d_out: int | None = None) -> LanguageModelSAERunnerConfig[Any]:
    """Make SAELens's configuration of the run.

    Args:
        settings: the settings of the run.
        d_in: width at the hook.
        d_out: width at `hook_name_out`, for a transcoder.

    Returns:
        The configuration.

    Raises:
        ConfigError: settings that SAELens or the architecture refuses.
    """
    steps = settings.training_tokens // settings.batch_size_tokens
    return LanguageModelSAERunnerConfig(
        sae=sae_config(settings, d_in, d_out),
        model_name=settings.model,
        model_from_pretrained_kwargs=None if settings.dtype == FLOAT32 else {"dtype": settings.dtype},
        hook_name=settings.hook_name,
        dataset_path=settings.dataset,
        context_size=settings.context_size,
        training_tokens=settings.training_tokens,
        train_batch_size_tokens=settings.batch_size_tokens,
        lr=settings.lr,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=int(settings.lr_warm_up_fraction * steps)
        if settings.lr_warm_up_steps is None
        else settings.lr_warm_up_steps,
        store_batch_size_prompts=settings.lm_batch_size_sequences,
        n_batches_in_buffer=max(1, settings.buffer_size_sequences // settings.lm_batch_size_sequences),
        lr_end=settings.lr_end_fraction * settings.lr,
        dead_feature_window=settings.dead_feature_window,
        n_batches_for_norm_estimate=20,
        disable_concat_sequences=not settings.packed,
        prepend_bos=settings.prepend_bos,
        seed=settings.seed,
        device=settings.device,
        autocast=settings.autocast,
        autocast_lm=settings.autocast_lm,
        compile_sae=settings.compile_sae,
        compile_llm=settings.compile_llm,
        use_cached_activations=settings.cache is not None,
        cached_activations_path=None if settings.cache is None else str(settings.cache),
        prefetch_llm_batches=settings.device.startswith("cuda") if settings.prefetch is None else settings.prefetch,
        logger=LoggingConfig(
            log_to_wandb=settings.wandb,
            wandb_project=settings.wandb_project,
            wandb_entity=settings.wandb_entity,
            run_name=settings.wandb_run_name,
        ),
        checkpoint_path=None,
        output_path=str(settings.out),
        verbose=False,
    )


def trainer_options(settings: TrainSettings) -> TrainerOptions:
    """Return the settings of a run for which SAELens's configuration has no field."""
    return TrainerOptions(
        weight_decay=settings.weight_decay,
        b_dec_init=settings.b_dec_init,
        frozen=settings.frozen,
        max_norm_multiple=settings.max_norm_multiple,
        text_seed=settings.text_seed,
        log_every_n_steps=settings.log_every_n_steps,
        checkpoint_every_n_steps=settings.checkpoint_every_n_steps,
    )


def check_settings(settings: TrainSettings) -> None:
    """Check settings before the language model is loaded.

    Args:
        settings: the settings of the run.

    Raises:
        ConfigError: no run can follow the settings.
    """
    check_device(settings.device)
    plain = settings.model_copy(update={"sae": {k: v for k, v in settings.sae.items() if (k, v) != ("dilations", AUTO)}})
    try:
        cfg = runner_config(plain, settings.sae.get("d_in", _ANY_WIDTH), _ANY_WIDTH)
    except (TypeError, ValueError, ArithmeticError) as error:
        if isinstance(error, MTSAEError):
            raise
        raise ConfigError(
            f"expected settings that SAELens accepts, got an error ({' '.join(str(error).split())[:300]}); change them"
        ) from error
    check_config(cfg)
    if settings.sae.get("dilations") == AUTO:
        _check_selection(cfg.sae, settings.architecture)


def _check_selection(sae: Any, architecture: str) -> None:
    """Raise `ConfigError` if dilations cannot be selected from data: no encoder reads them, or several ranks train it."""
    if not isinstance(sae, MTTrainingSAEConfig):
        raise ConfigError(
            f"expected architecture {ARCHITECTURE!r} for dilations={AUTO!r}, got {architecture!r}; leave dilations out"
        )
    if sae.memory != "none":
        raise ConfigError(
            f"expected memory='none' for dilations={AUTO!r}, got {sae.memory!r}, where the encoder reads the token alone; leave dilations out"
        )
    if not current_ranks().is_alone:
        raise ConfigError(
            f"expected dilations to be given with {current_ranks().size} ranks, got {AUTO!r}, which reads a block in one process; select them "
            "in a short run without torchrun, and give them with --set dilations=[...]"
        )


def select_from_data(settings: TrainSettings, model: Any, d_in: int, d_out: int | None = None) -> tuple[TrainSettings, Block]:
    """Select `dilations` from the first block of training activations.

    Args:
        settings: settings with `dilations: auto`.
        model: the language model.
        d_in: width at the hook.
        d_out: width at `hook_name_out`, for a transcoder.

    Returns:
        The settings with the selected dilations, and the block, so that it is not read again. The selection depends on the
        settings alone.
    """
    given = {name: value for name, value in settings.sae.items() if name != "dilations"}
    plain = settings.model_copy(update={"sae": given})
    runner = SequenceSAETrainingRunner(runner_config(plain, d_in, d_out), override_model=model, options=trainer_options(plain))
    block = next(runner.stream.blocks(0))
    n_dilations = len(runner.sae.cfg.dilations) - 1
    dilations = select_dilations(
        block.h[..., :d_in], block.masked, n_dilations, kernel_size=runner.sae.cfg.kernel_size, max_lag=given.get("max_lag")
    )
    return settings.model_copy(update={"sae": given | {"dilations": list(dilations)}}), block


@in_output_folder
def train_sae(settings: TrainSettings, model: Any = None, *, resume: bool = False) -> TrainingSAE[Any]:
    """Train an SAE and save it, without a report.

    Args:
        settings: the settings of the run.
        model: a hooked language model; None to load the one that the settings name. A cache needs none.
        resume: whether to continue the run in the output folder from its newest checkpoint.

    Returns:
        The trained SAE.

    Raises:
        ConfigError: no run can follow the settings.
        OutputError: the folder holds another run, and `resume` is False.
    """
    return make_runner(settings, model, resume=resume).run(resume=resume)


def make_runner(settings: TrainSettings, model: Any = None, *, resume: bool = False) -> SequenceSAETrainingRunner:
    """Check settings and make the runner that carries them out.

    Args:
        settings: the settings of the run.
        model: a hooked language model; None to load the one that the settings name. A cache needs none.
        resume: whether the output folder may hold the run already.

    Returns:
        The runner.

    Raises:
        ConfigError: no run can follow the settings.
        OutputError: the folder holds another run, and `resume` is False.
    """
    if settings.saes:
        raise ConfigError(
            f"expected the settings of one SAE, got saes with {len(settings.saes)}; call train_saes(settings_of_each(settings))"
        )
    settings = adopt_cache(settings)
    settings = settings.model_copy(update={"device": current_ranks().local_device(settings.device)})
    check_settings(settings)
    if settings.cache is None:
        check_source(settings.dataset)
    if not resume and any((settings.out / name).exists() for name in ("checkpoints", "cfg.json")):
        raise OutputError(
            f"{settings.out}: expected a folder without a run, got one that holds a run already; give --resume, or another --out"
        )
    if settings.cache is not None:
        width_at: Callable[[str], int] = ActivationCache.open(settings.cache).check_hook
    else:
        model = model or load_language_model(settings.model, device=settings.device, dtype=settings.dtype)
        width_at = partial(resolve_hook, model)
    d_in = width_at(settings.hook_name)
    d_out = None if settings.hook_name_out is None else width_at(settings.hook_name_out)
    first_block: list[Block] = []
    if settings.sae.get("dilations") == AUTO:
        settings, block = select_from_data(settings, model, d_in, d_out)
        first_block = [block]
        del block  # so that it is freed after training on it
    runner = SequenceSAETrainingRunner(
        runner_config(settings, d_in, d_out), override_model=model, options=trainer_options(settings)
    )
    if first_block and isinstance(runner.stream, ContextBlocks):
        runner.stream.read_already.append(first_block.pop())
    return runner
