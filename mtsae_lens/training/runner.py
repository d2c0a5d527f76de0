"""Train an SAE on a language model from SAELens's own configuration, as `LanguageModelSAETrainingRunner` does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens.config import HfDataset, LanguageModelSAERunnerConfig
from sae_lens.constants import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME
from sae_lens.saes.sae import TrainingSAE, TrainingSAEConfig
from safetensors.torch import save_file

from mtsae_lens.data.activations import ActivationReader, SequenceActivations
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import Document, check_source, read_documents
from mtsae_lens.data.language_models import check_device, load_language_model, resolve_hook
from mtsae_lens.data.precision import FLOAT32, HALF_PRECISION, dtype_name, recorded_dtype
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.files import prepare_output_dir, whole_folder, write_json
from mtsae_lens.training.checkpoints import latest_checkpoint, load_checkpoint
from mtsae_lens.training.fit import batches_for
from mtsae_lens.training.trainer import SequenceSAETrainer, TrainerOptions
from mtsae_lens.training.wandb_run import wandb_run

_REFUSED: dict[str, Any] = {  # field of SAELens's configuration: the one value that this runner carries out
    "use_cached_activations": False,
    "use_chat_formatting": False,
    "seqpos_slice": (None,),
    "prefetch_llm_batches": False,
    "compile_llm": False,
    "compile_sae": False,
}


class SequenceSAETrainingRunner:
    """Builds model, stream, SAE and trainer from a `LanguageModelSAERunnerConfig`, and runs them.

    What differs from SAELens: `model_name` may be `embedded` or a local folder and `dataset_path` a local file, folder or embedded
    domain (`mtsae_lens.data`); of `model_from_pretrained_kwargs` only `dtype` is followed; contexts stay whole, special tokens are
    masked; AdamW; the log is JSONL (and wandb if asked); `resume=True` continues a run to the very weights it would have reached. Any
    architecture in SAELens's registry can be trained, on the same rows.

    Args:
        cfg: SAELens's configuration. `output_path` receives the SAE, `training_log.jsonl` and `checkpoints/`.
        override_model: a hooked model to use instead of loading `cfg.model_name`.
        override_dataset: rows with a `text` column, to use instead of `cfg.dataset_path`.
        override_sae: an SAE to train further.
        options: optimizer and logging settings that SAELens has no field for; without them a row is logged every
            `cfg.logger.wandb_log_frequency` steps.

    Raises:
        ConfigError: settings that contradict each other or that this runner does not carry out.
        ModelError, DataError: see `load_language_model` and `read_documents`.
    """

    def __init__(
        self,
        cfg: LanguageModelSAERunnerConfig[Any],
        override_model: AnyHookedModel | None = None,
        override_dataset: HfDataset | None = None,
        override_sae: TrainingSAE[Any] | None = None,
        options: TrainerOptions | None = None,
    ) -> None:
        _check_config(cfg)
        if override_dataset is None:
            check_source(cfg.dataset_path)
        if cfg.output_path is not None:
            prepare_output_dir(Path(cfg.output_path))
        self.cfg = cfg
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

        def rows() -> Iterator[Document]:
            for place, row in enumerate(override_dataset or ()):
                if not isinstance(row.get("text"), str):
                    raise DataError(f"override_dataset needs rows with a string under 'text'; its columns: {', '.join(row)}")
                yield Document(row["text"], str(place), "train")

        read = partial(read_documents, cfg.dataset_path, "train") if override_dataset is None else rows
        n_sequences = cfg.train_batch_size_tokens // cfg.context_size
        return SequenceActivations(
            reader=ActivationReader(self.model, cfg.hook_name, cfg.hook_head_index, cfg.autocast_lm),
            contexts=ContextStream(read, cutter, cfg.seed),
            batch_size_sequences=n_sequences,
            block_size_batches=max(1, cfg.n_batches_in_buffer * cfg.store_batch_size_prompts // n_sequences),
            lm_batch_size_sequences=cfg.store_batch_size_prompts,
            seed=cfg.seed,
        )

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
        values["model_dtype"] = self._half_precision  # None as where a checkpoint is older than this
        sae = {k: v for k, v in cfg.sae.to_dict().items() if k not in ("metadata", "device")}
        return json.loads(json.dumps(values | {f"sae.{key}": value for key, value in sae.items()}))

    def run(self, *, resume: bool = False) -> TrainingSAE[Any]:
        """Train, save, and return the SAE.

        Args:
            resume: continue from the newest checkpoint under `output_path` (or from `cfg.resume_from_checkpoint`).

        Raises:
            TrainingInterrupted: a signal came; the state is saved.
        """
        self._set_metadata()
        trainer = SequenceSAETrainer(
            self.cfg.to_sae_trainer_config(), self.sae, batches_for(self.sae, self.stream), self.options, self._fingerprint()
        )
        checkpoint = Path(self.cfg.resume_from_checkpoint) if self.cfg.resume_from_checkpoint else None
        if resume and checkpoint is None and trainer.checkpoints_dir is not None:
            checkpoint = latest_checkpoint(trainer.checkpoints_dir)
        if checkpoint is not None:
            load_checkpoint(trainer, checkpoint, trainer.fingerprint)
        out = self.options.run_dir
        with wandb_run(self.cfg, out, resume=checkpoint is not None):
            sae = trainer.fit()
            if out is not None:
                self._save(sae, trainer, out)
                if self.cfg.logger.log_to_wandb:
                    paths = (out / name for name in (SAE_WEIGHTS_FILENAME, SAE_CFG_FILENAME, SPARSITY_FILENAME))
                    self.cfg.logger.log(self, *paths, wandb_aliases=["final_model"])
        return sae

    def _save(self, sae: TrainingSAE[Any], trainer: SequenceSAETrainer, out: Path) -> None:
        with whole_folder(out / ".sae") as folder:
            sae.save_inference_model(folder)
            save_file({"sparsity": trainer.log_feature_sparsity}, folder / SPARSITY_FILENAME)
            write_json(folder / RUNNER_CFG_FILENAME, self.cfg.to_dict() | {"options": _options_dict(self.options)})
        for file in sorted(
            (out / ".sae").iterdir(), reverse=True
        ):  # the weights before the config: without one there is no SAE
            file.replace(out / file.name)
        (out / ".sae").rmdir()

    def _set_metadata(self) -> None:
        cfg, metadata = self.cfg, self.sae.cfg.metadata
        for name in (
            "dataset_path hook_name model_name model_class_name hook_head_index context_size seqpos_slice prepend_bos "
            "exclude_special_tokens sequence_separator_token disable_concat_sequences"
        ).split():
            setattr(metadata, name, getattr(cfg, name))
        if self._half_precision is not None:  # as SAELens records it, and loads the model again
            metadata.model_from_pretrained_kwargs = {"dtype": self._half_precision}


def _options_dict(options: TrainerOptions) -> dict[str, Any]:
    return asdict(options) | {"run_dir": str(options.run_dir)}


def _check_config(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    if cfg.sae.normalize_activations == "covariance_whitening":
        raise ConfigError(
            "normalize_activations='covariance_whitening' is not carried out by this runner; use 'expected_average_only_in'"
        )
    for name, carried_out in _REFUSED.items():
        if getattr(cfg, name) != carried_out:
            raise ConfigError(f"{name}={getattr(cfg, name)!r} is not carried out by this runner; leave it at {carried_out!r}")
    for name, value in (cfg.model_from_pretrained_kwargs or {}).items():
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
