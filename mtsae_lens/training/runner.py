"""Train an SAE on a language model from SAELens's own configuration, as `LanguageModelSAETrainingRunner` does."""

from __future__ import annotations

import copy
import json
import tempfile
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE, TrainingSAEConfig
from safetensors.torch import save_file

from mtsae_lens.data.activation_cache import ActivationCache, CachedActivations
from mtsae_lens.data.activations import ActivationReader, SequenceActivations
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.context_blocks import ContextBlocks
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import check_rows, check_source, read_documents, read_rows
from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.language_models import check_device, load_language_model, resolve_hook
from mtsae_lens.data.massive import MASSIVE
from mtsae_lens.data.origins import DIGESTS, record_origins, share_metadata
from mtsae_lens.data.precision import HALF_PRECISION, dtype_name, recorded_dtype, torch_dtype
from mtsae_lens.data.shared_pass import SharedBlocks
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.files import sync_folder, whole_folder, write_json
from mtsae_lens.machine_paths import shorten
from mtsae_lens.output_folders import check_output_folder, hold_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.sae.saved import seal_sae
from mtsae_lens.training.checkpoints import delete_other_checkpoints, list_checkpoints, load_checkpoint, resume_from
from mtsae_lens.training.compiling import compile_function, compiled_step
from mtsae_lens.training.fit import batches_for
from mtsae_lens.training.log import LOG_FILE, restore_log
from mtsae_lens.training.runner_checks import check_config, check_ranks, open_cache, without_output
from mtsae_lens.training.trainer import SequenceSAETrainer, TrainerOptions
from mtsae_lens.training.wandb_run import wandb_run
from mtsae_lens.upstream import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME, HfDataset


class SequenceSAETrainingRunner:
    """Build model, stream, SAE and trainer from a `LanguageModelSAERunnerConfig`, and run them.

    Differences from SAELens: `model_name` may be `embedded` or a local folder, and `dataset_path` a local file, folder or embedded domain
    (`mtsae_lens.data`). Of `model_from_pretrained_kwargs` only `dtype` is followed; others are refused. Contexts stay whole; special tokens and
    position 0 are masked. The optimizer is AdamW. The log is JSONL, and wandb if asked for. `resume=True` continues a run to the same
    weights as without an interruption. Any architecture in SAELens's registry can be trained, on the same rows.
    With `use_cached_activations=True` it trains from
    the cache of `mtsae cache` in the folder `cached_activations_path`, and no language model is loaded. `prefetch_llm_batches` reads one block
    of activations ahead, whatever number it gives. Several ranks (`mtsae_lens.ranks`) train one SAE, of which the first one writes the files.

    Args:
        cfg: SAELens's configuration. `output_path` receives the SAE, `training_log.jsonl` and `checkpoints/`.
        override_model: a hooked model to use instead of loading `cfg.model_name`; a cache needs none.
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
        check_ranks(cfg, cfg.sae if override_sae is None else override_sae.cfg)
        if not current_ranks().is_first:
            cfg = without_output(cfg)
        self.cache = None
        if cfg.use_cached_activations:
            self.cache = open_cache(cfg, override_dataset)
        elif override_dataset is None:
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
        self.model: AnyHookedModel | None = None
        """The language model; None where a cache is read."""
        self.stream: ContextBlocks | SharedBlocks
        if self.cache is None:
            dtype = recorded_dtype(cfg.model_from_pretrained_kwargs)
            model = override_model or load_language_model(
                cfg.model_name, device=cfg.llm_device or cfg.device, dtype=dtype or FLOAT32
            )
            self.model = model
            self._check_model(model, dtype)
            self._model_dtype = dtype_name(model.cfg.dtype)
            self.stream = self._build_stream(model, override_dataset)
        else:
            self._model_dtype = self.cache.contents.model_dtype
            self.stream = self._build_cached_stream(self.cache)
        self.sae = override_sae or self._build_sae()
        self.sae.to(cfg.device)
        if isinstance(self.sae, TemporalEncoder):  # an SAE made before this was checked may say otherwise
            self.sae.cfg.skip_first_position = True

    @property
    def _half_precision(self) -> str | None:
        """The name of the model's dtype where that is half precision."""
        return self._model_dtype if torch_dtype(self._model_dtype) in HALF_PRECISION else None

    @property
    def text_seed(self) -> int:
        """The seed of the order of the text."""
        return self.cfg.seed if self.options.text_seed is None else self.options.text_seed

    def _check_model(self, model: AnyHookedModel, dtype: str | None) -> None:
        if dtype not in (None, dtype_name(model.cfg.dtype)):
            raise ConfigError(
                f"model_from_pretrained_kwargs say dtype {dtype!r}, the model that was given is in {dtype_name(model.cfg.dtype)}; make "
                "them equal"
            )
        width = resolve_hook(model, self.cfg.hook_name, self.cfg.hook_head_index)
        if width != self.cfg.sae.d_in:
            raise ModelError(
                f"{self.cfg.hook_name} of {self.cfg.model_name} has width {width}, but the SAE has d_in={self.cfg.sae.d_in}"
            )
        if self.cfg.context_size > model.cfg.n_ctx:
            raise ConfigError(f"context_size={self.cfg.context_size} is longer than the model's context of {model.cfg.n_ctx}")

    @property
    def _batch_size_sequences(self) -> int:
        return self.cfg.train_batch_size_tokens // self.cfg.context_size

    @property
    def _block_size_batches(self) -> int:
        return max(1, self.cfg.n_batches_in_buffer * self.cfg.store_batch_size_prompts // self._batch_size_sequences)

    def _build_cached_stream(self, cache: ActivationCache) -> CachedActivations:
        cfg = self.cfg
        return CachedActivations(
            cache,
            (cfg.hook_name,),
            self._batch_size_sequences,
            self._block_size_batches,
            seed=cfg.seed,
            text_seed=self.text_seed,
            n_batches=cfg.total_training_steps,
            to_device=cfg.device,
            prefetch=bool(cfg.prefetch_llm_batches),
        )

    def _build_stream(self, model: AnyHookedModel, override_dataset: HfDataset | None) -> SequenceActivations:
        cfg = self.cfg
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
        return SequenceActivations(
            reader=ActivationReader(model, cfg.hook_name, cfg.hook_head_index, cfg.autocast_lm, self._run_with_cache(model)),
            contexts=ContextStream(read, cutter, self.text_seed),
            batch_size_sequences=self._batch_size_sequences,
            block_size_batches=self._block_size_batches,
            lm_batch_size_sequences=cfg.store_batch_size_prompts,
            seed=cfg.seed,
            n_batches=cfg.total_training_steps,
            prefetch=bool(cfg.prefetch_llm_batches),
        )

    def _run_with_cache(self, model: AnyHookedModel) -> Any:
        cfg = self.cfg
        if not cfg.compile_llm:
            return None
        return compile_function(model.run_with_cache, "compile_llm", cfg.llm_compilation_mode)

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
        # None for what an older checkpoint cannot have
        values["text_seed"] = None if self.text_seed == cfg.seed else self.text_seed
        values["cache"] = None if self.cache is None else self.cache.digest
        is_live = self.cache is None
        values["model_contents"] = list(model_stamps(cfg.model_name).values()) if is_live else []
        values["dataset_contents"] = list(text_stamps(cfg.dataset_path).values()) if is_live and self._reads_dataset else []
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
        trainer, was_resumed = self.prepare(resume=resume)
        with wandb_run(self.cfg, self.options.run_dir, resume=was_resumed):
            with compiled_step(self.sae, enabled=self.cfg.compile_sae, mode=self.cfg.sae_compilation_mode):
                trainer.fit()
            return self.save(trainer)

    def prepare(self, *, resume: bool) -> tuple[SequenceSAETrainer, bool]:
        """Make the trainer of the run. Whoever calls this holds the output folder.

        Args:
            resume: whether to continue from the newest checkpoint.

        Returns:
            The trainer, and whether it continues from a checkpoint.
        """
        self._set_metadata()
        trainer = SequenceSAETrainer(
            self.cfg.to_sae_trainer_config(),
            self.sae,
            batches_for(self.sae, self.stream, self.options.max_norm_multiple),
            self.options,
            self._fingerprint(),
            self.stream.waits,
        )
        candidates = [Path(self.cfg.resume_from_checkpoint)] if self.cfg.resume_from_checkpoint else []
        if resume and not candidates and trainer.checkpoints_dir is not None:
            candidates = list_checkpoints(trainer.checkpoints_dir)
        checkpoint = _resume(trainer, candidates)
        if checkpoint is not None and checkpoint.parent == trainer.checkpoints_dir:
            delete_other_checkpoints(checkpoint)  # a kill may have come while an old one was being deleted
        out = self.options.run_dir
        if checkpoint is not None and out is not None:
            restore_log(out / LOG_FILE, checkpoint / LOG_FILE)
        return trainer, checkpoint is not None

    def save(self, trainer: SequenceSAETrainer) -> TrainingSAE[Any]:
        """Write the SAE of a trainer that has ended into the output folder, if there is one.

        Args:
            trainer: from `prepare`.

        Returns:
            The SAE.
        """
        out = self.options.run_dir
        if out is not None:
            self._save(self.sae, trainer, out)
            if self.cfg.logger.log_to_wandb:
                self._log_final_model(out)
        return self.sae

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
        if self.cache is not None:  # the files themselves may be on another machine
            setattr(metadata, DIGESTS, self.cache.contents.local_contents)
        if self._half_precision is not None:  # as SAELens records it, and loads the model again
            metadata.model_from_pretrained_kwargs = {"dtype": self._half_precision}


def _resume(trainer: SequenceSAETrainer, candidates: list[Path]) -> Path | None:
    """Load the first checkpoint that is not damaged; all ranks load the one that the first rank has found."""
    ranks = current_ranks()
    if ranks.is_first:
        checkpoint = resume_from(trainer, candidates, trainer.fingerprint)
        ranks.tell(str(checkpoint.absolute()) if checkpoint else None)
        return checkpoint
    if told := ranks.tell(None):
        load_checkpoint(trainer, Path(told), trainer.fingerprint)
    return Path(told) if told else None


def _options_dict(options: TrainerOptions) -> dict[str, Any]:
    return asdict(options) | {"run_dir": str(options.run_dir)}
