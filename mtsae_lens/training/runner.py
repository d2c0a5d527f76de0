"""Train an SAE on a language model from SAELens's own configuration, as `LanguageModelSAETrainingRunner` does."""

from __future__ import annotations

import copy
import json
import tempfile
from contextlib import nullcontext
from dataclasses import MISSING, Field, asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE, TrainingSAEConfig
from safetensors.torch import save_file

from mtsae_lens.data.activations import ActivationReader, SequenceActivations
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import check_rows, check_source, read_documents, read_rows
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.language_models import check_device, load_language_model, resolve_hook
from mtsae_lens.data.massive import MASSIVE
from mtsae_lens.data.origins import record_origins, share_metadata
from mtsae_lens.data.precision import HALF_PRECISION, dtype_name, recorded_dtype, unfollowed_options
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.files import sync_folder, whole_folder, write_json
from mtsae_lens.machine_paths import shorten
from mtsae_lens.output_folders import check_output_folder, hold_output_folder
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sae.saved import seal_sae
from mtsae_lens.training.checkpoints import delete_other_checkpoints, list_checkpoints, resume_from
from mtsae_lens.training.compiling import compile_function, compiled_step
from mtsae_lens.training.fit import batches_for
from mtsae_lens.training.log import LOG_FILE, restore_log
from mtsae_lens.training.trainer import SequenceSAETrainer, TrainerOptions
from mtsae_lens.training.wandb_run import wandb_run
from mtsae_lens.upstream import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, HfDataset

_FOLLOWED = frozenset(
    "sae model_name hook_name hook_head_index dataset_path context_size from_pretrained_path n_batches_in_buffer training_tokens "
    "store_batch_size_prompts disable_concat_sequences device llm_device seed prepend_bos autocast autocast_lm train_batch_size_tokens "
    "adam_beta1 adam_beta2 lr lr_scheduler_name lr_warm_up_steps lr_end lr_decay_steps n_restart_cycles dead_feature_window "
    "feature_sampling_window logger n_checkpoints output_path resume_from_checkpoint model_from_pretrained_kwargs "
    "n_batches_for_norm_estimate compile_sae sae_compilation_mode compile_llm llm_compilation_mode".split()
)
"""Settings of SAELens's configuration that this runner reads."""

_NO_EFFECT = frozenset(
    "hook_eval dataset_trust_remote_code streaming is_dataset_tokenized cached_activations_path act_store_device n_eval_batches "
    "eval_batch_size_prompts checkpoint_path save_final_checkpoint verbose sae_lens_version sae_lens_training_version".split()
)
"""Settings whose value changes nothing that is trained here. Every other setting must be left at its default."""

_ALSO_CARRIED_OUT: dict[str, Any] = {"exclude_special_tokens": True}
"""Values besides the default that say what this runner does anyway."""


class SequenceSAETrainingRunner:
    """Build model, stream, SAE and trainer from a `LanguageModelSAERunnerConfig`, and run them.

    Differences from SAELens: `model_name` may be `embedded` or a local folder, and `dataset_path` a local file, folder or embedded domain
    (`mtsae_lens.data`). Of `model_from_pretrained_kwargs` only `dtype` is followed; others are refused. Contexts stay whole; special tokens and
    position 0 are masked. The optimizer is AdamW. The log is JSONL, and wandb if asked for. `resume=True` continues a run to the same
    weights as without an interruption. Any architecture in SAELens's registry can be trained, on the same rows.

    Args:
        cfg: SAELens's configuration. `output_path` receives the SAE, `training_log.jsonl` and `checkpoints/`.
        override_model: a hooked model to use instead of loading `cfg.model_name`.
        override_dataset: rows with a `text` column, to use instead of `cfg.dataset_path`. They are read once in every epoch, so a
            generator is refused. Token ids (`input_ids`) are refused too, because they may be of another tokenizer than the model's.
        override_sae: an SAE to train further.
        options: settings of optimizer and log for which SAELens has no field; without them a row is logged every
            `cfg.logger.wandb_log_frequency` steps.

    Raises:
        ConfigError: settings contradict each other, or this runner does not carry them out.
        DataError: the text cannot be read (`read_documents`).
        ModelError: the model cannot be loaded (`load_language_model`), or its width is not that of the SAE.
    """

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_model: AnyHookedModel | None = None,
        override_dataset: HfDataset | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        options: TrainerOptions | None = None,
    ) -> None:
        check_config(cfg)
        if override_dataset is None:
            check_source(cfg.dataset_path)
        else:
            check_rows(override_dataset)
        if cfg.output_path is not None:
            check_output_folder(Path(cfg.output_path))
        self.cfg, self._reads_dataset = cfg, override_dataset is None
        options = options or TrainerOptions(log_every_n_steps=cfg.logger.wandb_log_frequency)
        self.options = replace(options, run_dir=Path(cfg.output_path) if cfg.output_path else None)
        if cfg.n_checkpoints:
            every = -(-cfg.total_training_steps // (cfg.n_checkpoints + 1))
            self.options = replace(self.options, checkpoint_every_n_steps=every)
        for device in (cfg.device, cfg.sae.device):
            check_device(device)
        dtype = recorded_dtype(cfg.model_from_pretrained_kwargs)
        self.model = override_model or load_language_model(
            cfg.model_name, device=cfg.llm_device or cfg.device, dtype=dtype or FLOAT32
        )
        self._check_model(dtype)
        self.stream = self._build_stream(override_dataset)
        self.sae = override_sae or self._build_sae()
        self.sae.to(cfg.device)
        if isinstance(self.sae, TemporalEncoder):  # an SAE made before this was checked may say otherwise
            self.sae.cfg.skip_first_position = True

    @property
    def _half_precision(self) -> str | None:
        """The name of the model's dtype where that is half precision."""
        dtype = self.model.cfg.dtype
        return dtype_name(dtype) if dtype in HALF_PRECISION else None

    def _check_model(self, dtype: str | None) -> None:
        if dtype not in (None, dtype_name(self.model.cfg.dtype)):
            raise ConfigError(
                f"model_from_pretrained_kwargs say dtype {dtype!r}, the model that was given is in {dtype_name(self.model.cfg.dtype)}; make "
                "them equal"
            )
        width = resolve_hook(self.model, self.cfg.hook_name, self.cfg.hook_head_index)
        if width != self.cfg.sae.d_in:
            raise ModelError(
                f"{self.cfg.hook_name} of {self.cfg.model_name} has width {width}, but the SAE has d_in={self.cfg.sae.d_in}"
            )
        if self.cfg.context_size > self.model.cfg.n_ctx:
            raise ConfigError(
                f"context_size={self.cfg.context_size} is longer than the model's context of {self.model.cfg.n_ctx}"
            )

    def _build_stream(self, override_dataset: HfDataset | None) -> SequenceActivations:
        cfg = self.cfg
        assert self.model.tokenizer is not None
        cutter = ContextCutter(
            tokenizer=self.model.tokenizer,
            context_size=cfg.context_size,
            prepend_bos=cfg.prepend_bos,
            packed=not cfg.disable_concat_sequences,
        )

        read = partial(read_documents, cfg.dataset_path, "train")
        if override_dataset is not None:
            read = partial(read_rows, override_dataset)
        n_sequences = cfg.train_batch_size_tokens // cfg.context_size
        return SequenceActivations(
            reader=ActivationReader(self.model, cfg.hook_name, cfg.hook_head_index, cfg.autocast_lm, self._run_with_cache()),
            contexts=ContextStream(read, cutter, cfg.seed),
            batch_size_sequences=n_sequences,
            block_size_batches=max(1, cfg.n_batches_in_buffer * cfg.store_batch_size_prompts // n_sequences),
            lm_batch_size_sequences=cfg.store_batch_size_prompts,
            seed=cfg.seed,
            n_batches=cfg.total_training_steps,
        )

    def _run_with_cache(self) -> Any:
        cfg = self.cfg
        if not cfg.compile_llm:
            return None
        return compile_function(self.model.run_with_cache, "compile_llm", cfg.llm_compilation_mode)

    def _build_sae(self) -> TrainingSAE[Any]:
        if self.cfg.from_pretrained_path is not None:
            return TrainingSAE.load_from_disk(self.cfg.from_pretrained_path, self.cfg.device)
        with torch.random.fork_rng():
            torch.manual_seed(self.cfg.seed)
            try:
                return TrainingSAE.from_dict(TrainingSAEConfig.from_dict(self.cfg.get_training_sae_cfg_dict()).to_dict())
            except (TypeError, ValueError) as error:
                raise ConfigError(f"architecture {self.cfg.sae.architecture()!r} refuses its settings: {error}") from error

    def _fingerprint(self) -> dict[str, Any]:
        cfg = self.cfg
        names = (
            "model_name hook_name dataset_path context_size training_tokens train_batch_size_tokens lr lr_scheduler_name "
            "lr_warm_up_steps lr_decay_steps lr_end n_restart_cycles adam_beta1 adam_beta2 seed prepend_bos disable_concat_sequences "
            "dead_feature_window feature_sampling_window n_batches_in_buffer store_batch_size_prompts n_batches_for_norm_estimate "
            "hook_head_index autocast autocast_lm"
        ).split()
        values = {name: getattr(cfg, name) for name in names} | {"weight_decay": self.options.weight_decay}
        # None for what a checkpoint that is older than the setting was made with, or begun by: its b_dec has started already
        values["b_dec_init"] = None if self.options.b_dec_init == "mean" else self.options.b_dec_init
        multiple = self.options.max_norm_multiple
        values["max_norm_multiple"] = (
            None if multiple == MASSIVE else str(multiple)
        )  # None where a checkpoint is older than this
        values["model_dtype"] = self._half_precision  # None as where a checkpoint is older than this
        values["model_contents"] = list(model_stamps(cfg.model_name).values())
        values["dataset_contents"] = list(text_stamps(cfg.dataset_path).values()) if self._reads_dataset else []
        # the stream masks position 0 in any case, and how a step is computed is a matter of rounding
        without_effect = {"metadata", "device", "skip_first_position", "training_step"}
        if isinstance(
            cfg.sae, MTTrainingSAEConfig
        ):  # so that a checkpoint may be older than the settings of another activation
            without_effect |= cfg.sae.unused_activation_fields
        sae = {k: v for k, v in cfg.sae.to_dict().items() if k not in without_effect}
        return json.loads(json.dumps(values | {f"sae.{key}": value for key, value in sae.items()}))

    def run(self, *, resume: bool = False) -> TrainingSAE[Any]:
        """Train the SAE and save it.

        Args:
            resume: whether to continue from the newest checkpoint under `output_path`, or from `cfg.resume_from_checkpoint`.

        Returns:
            The trained SAE.

        Raises:
            DataError: every checkpoint is damaged.
            OutputError: `output_path` cannot be written, or another process writes to it.
            TrainingInterrupted: Ctrl-C or SIGTERM came; the state is saved.
        """
        out = self.options.run_dir
        with hold_output_folder(out) if out is not None else nullcontext():
            return self._train(resume)

    def _train(self, resume: bool) -> TrainingSAE[Any]:
        self._set_metadata()
        batches = batches_for(self.sae, self.stream, self.options.max_norm_multiple)
        trainer = SequenceSAETrainer(self.cfg.to_sae_trainer_config(), self.sae, batches, self.options, self._fingerprint())
        candidates = [Path(self.cfg.resume_from_checkpoint)] if self.cfg.resume_from_checkpoint else []
        if resume and not candidates and trainer.checkpoints_dir is not None:
            candidates = list_checkpoints(trainer.checkpoints_dir)
        checkpoint = resume_from(trainer, candidates, trainer.fingerprint)
        if checkpoint is not None and checkpoint.parent == trainer.checkpoints_dir:
            delete_other_checkpoints(checkpoint)  # a kill may have come while an old one was being deleted
        out = self.options.run_dir
        if checkpoint is not None and out is not None:
            restore_log(out / LOG_FILE, checkpoint / LOG_FILE)
        with wandb_run(self.cfg, out, resume=checkpoint is not None):
            with compiled_step(self.sae, enabled=self.cfg.compile_sae, mode=self.cfg.sae_compilation_mode):
                sae = trainer.fit()
            if out is not None:
                self._save(sae, trainer, out)
                if self.cfg.logger.log_to_wandb:
                    self._log_final_model(out)
        return sae

    def _log_final_model(self, out: Path) -> None:
        """Send the SAE to wandb, with no path of this machine in its settings."""
        public = copy.copy(self)
        public.cfg = copy.copy(self.cfg)
        for name, value in vars(self.cfg).items():
            if isinstance(value, str):
                setattr(public.cfg, name, shorten(value))
        cfg = json.loads((out / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
        with tempfile.TemporaryDirectory(prefix="wandb_") as folder:
            shared = Path(folder) / SAE_CFG_FILENAME
            write_json(shared, cfg | {"metadata": share_metadata(cfg["metadata"])})
            paths = (out / SAE_WEIGHTS_FILENAME, shared, out / SPARSITY_FILENAME)
            self.cfg.logger.log(public, *paths, wandb_aliases=["final_model"])

    def _save(self, sae: TrainingSAE[Any], trainer: SequenceSAETrainer, out: Path) -> None:
        with whole_folder(out / ".sae") as folder:
            sae.save_inference_model(folder)
            if not isinstance(sae, TemporalEncoder):  # which has done so itself
                seal_sae(folder)
            save_file({"sparsity": trainer.log_feature_sparsity}, folder / SPARSITY_FILENAME)
            write_json(folder / RUNNER_CFG_FILENAME, self.cfg.to_dict() | {"options": _options_dict(self.options)})
        for file in sorted(
            (out / ".sae").iterdir(), reverse=True
        ):  # the weights before the config: without one there is no SAE
            file.replace(out / file.name)
        (out / ".sae").rmdir()
        sync_folder(out)

    def _set_metadata(self) -> None:
        cfg, metadata = self.cfg, self.sae.cfg.metadata
        for name in (
            "hook_name model_class_name hook_head_index context_size seqpos_slice prepend_bos "
            "exclude_special_tokens sequence_separator_token disable_concat_sequences"
        ).split():
            setattr(metadata, name, getattr(cfg, name))
        record_origins(metadata, cfg.model_name, cfg.dataset_path)
        if self._half_precision is not None:  # as SAELens records it, and loads the model again
            metadata.model_from_pretrained_kwargs = {"dtype": self._half_precision}


def _options_dict(options: TrainerOptions) -> dict[str, Any]:
    return asdict(options) | {"run_dir": str(options.run_dir)}


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def check_config(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check SAELens's configuration.

    Args:
        cfg: the configuration.

    Raises:
        ConfigError: settings contradict each other, or the runner does not carry them out.
    """
    if cfg.sae.normalize_activations == "covariance_whitening":
        raise ConfigError(
            "normalize_activations='covariance_whitening' is not carried out by this runner; use 'expected_average_only_in'"
        )
    if not getattr(cfg.sae, "skip_first_position", True):
        raise ConfigError(
            "skip_first_position=False is not carried out by this runner, which masks position 0 of every context, as HookedLM and the "
            "export do; leave it at True, or train on contexts of your own with mtsae_lens.training.fit.fit"
        )
    for field in fields(cfg):
        value, default = getattr(cfg, field.name), _default(field)
        if field.name in _FOLLOWED | _NO_EFFECT or value in (default, _ALSO_CARRIED_OUT.get(field.name, default)):
            continue
        raise ConfigError(f"{field.name}={value!r} is not carried out by this runner; leave it at {default!r}")
    options = cfg.model_from_pretrained_kwargs or {}
    if not_followed := unfollowed_options(options):
        raise ConfigError(
            f"expected model_from_pretrained_kwargs with dtype only, got {', '.join(not_followed)}, which this runner does not carry "
            "out; leave it out, or make the model yourself and give it as override_model"
        )
    for name, value in options.items():
        if isinstance(value, torch.dtype):  # it goes into JSON at the end of the run
            raise ConfigError(
                f"model_from_pretrained_kwargs are written as JSON: give {name}={dtype_name(value)!r}, not {value}"
            )
    if cfg.train_batch_size_tokens % cfg.context_size:
        multiple = max(1, round(cfg.train_batch_size_tokens / cfg.context_size)) * cfg.context_size
        raise ConfigError(
            f"train_batch_size_tokens={cfg.train_batch_size_tokens} is not a multiple of context_size={cfg.context_size}: a batch is "
            f"made of whole contexts; use {multiple}"
        )
    if cfg.total_training_steps < 1:
        raise ConfigError(
            f"training_tokens={cfg.training_tokens} is less than one batch of {cfg.train_batch_size_tokens} tokens; give more"
        )
    k = getattr(cfg.sae, "k", 1)
    if k > cfg.sae.d_sae and getattr(cfg.sae, "activation", "topk") == "topk":  # SAELens's default of 100 may be more
        raise ConfigError(f"the SAE has k={k} and only d_sae={cfg.sae.d_sae} features; give a smaller k (--set k=16)")
    sae_context_size = getattr(cfg.sae, "context_size", cfg.context_size)
    if sae_context_size != cfg.context_size:
        raise ConfigError(
            f"the SAE has context_size={sae_context_size}, the runner context_size={cfg.context_size}; make them equal"
        )
