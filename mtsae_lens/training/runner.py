"""Train an SAE on a language model from SAELens's own configuration, as `LanguageModelSAETrainingRunner` does."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE, TrainingSAEConfig

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.context_blocks import ContextBlocks
from mtsae_lens.data.documents import check_rows, check_source
from mtsae_lens.data.language_models import check_device, load_language_model
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.precision import HALF_PRECISION, dtype_name, recorded_dtype, torch_dtype
from mtsae_lens.data.shared_pass import SharedBlocks
from mtsae_lens.errors import ConfigError
from mtsae_lens.output_folders import check_output_folder, hold_output_folder
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.training.checkpoints import delete_other_checkpoints, list_checkpoints, resume_ranks_from
from mtsae_lens.training.compiling import compiled_step
from mtsae_lens.training.fingerprint import make_fingerprint
from mtsae_lens.training.fit import batches_for
from mtsae_lens.training.log import LOG_FILE, restore_log
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.runner_checks import check_config, check_model, check_ranks, open_cache, without_output
from mtsae_lens.training.saved_run import record_run, save_run, send_sae_to_wandb
from mtsae_lens.training.streams import make_cached_stream, make_live_stream
from mtsae_lens.training.threshold import needs_threshold, set_threshold_
from mtsae_lens.training.trainer import SequenceSAETrainer
from mtsae_lens.training.wandb_run import wandb_run
from mtsae_lens.upstream import HfDataset


class SequenceSAETrainingRunner:
    """Build model, stream, SAE and trainer from a `LanguageModelSAERunnerConfig`, and run them.

    Differences from SAELens:

    - `model_name` may be `embedded` or a local folder, and `dataset_path` a local file, a local folder or an embedded domain
      (`mtsae_lens.data`).
    - Of `model_from_pretrained_kwargs` only `dtype` is followed; others are refused.
    - Contexts stay whole. Special tokens and position 0 are masked. Any architecture in SAELens's registry can be trained, on the same rows.
    - The optimizer is AdamW. The log is JSONL, and goes to Weights & Biases too if the configuration asks for it.
    - `resume=True` continues a run, and ends in the weights of a run that was not interrupted.
    - With `use_cached_activations=True` the runner reads the cache that `mtsae cache` wrote into `cached_activations_path`, and loads no
      language model.
    - `prefetch_llm_batches` reads one block of activations ahead, whatever number it gives.
    - Several ranks (`mtsae_lens.ranks`) train one SAE together, and the first one writes the files.

    Args:
        cfg: SAELens's configuration. `output_path` receives the SAE, `training_log.jsonl` and `checkpoints/`.
        override_model: a hooked model to use instead of loading `cfg.model_name`; a cache needs none.
        override_dataset: rows with a `text` column, to use instead of `cfg.dataset_path`. They are read once in every epoch, so a
            generator is refused. Token ids (`input_ids`) are refused too, because they may be of another tokenizer than the model's.
        override_sae: an SAE to train further.
        options: settings of optimizer and log for which SAELens has no field; without them a row is logged every
            `cfg.logger.wandb_log_frequency` steps.

    Raises:
        ConfigError: settings contradict each other, or this runner does not follow them.
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
        self.cache: ActivationCache | None = None
        """The cache that is read; None where a language model runs."""
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
            check_model(cfg, model, dtype)
            self._model_dtype = dtype_name(model.cfg.dtype)
            self.stream = make_live_stream(cfg, model, override_dataset, self.text_seed)
        else:
            self._model_dtype = self.cache.contents.model_dtype
            self.stream = make_cached_stream(cfg, self.cache, self.text_seed)
        self._own_stream = self.stream  # `stream` may be replaced by that of a pass that several runs share
        self.sae = override_sae or _make_sae(cfg)
        self.sae.to(cfg.device)
        if isinstance(self.sae, TemporalEncoder):  # the setting of an SAE that was made before this was checked may be False
            self.sae.cfg.skip_first_position = True

    @property
    def text_seed(self) -> int:
        """The seed of the order of the text."""
        return self.cfg.seed if self.options.text_seed is None else self.options.text_seed

    @property
    def _half_precision(self) -> str | None:
        """The name of the model's dtype where that is half precision."""
        return self._model_dtype if torch_dtype(self._model_dtype) in HALF_PRECISION else None

    def run(self, *, resume: bool = False) -> TrainingSAE[Any]:
        """Train the SAE and save it.

        Args:
            resume: whether to continue from the newest checkpoint under `output_path`, or from `cfg.resume_from_checkpoint`.

        Returns:
            The trained SAE.

        Raises:
            DataError: every checkpoint is damaged.
            OutputError: `output_path` cannot be written, or another process writes to it.
            TrainingInterrupted: the run was stopped with Ctrl-C or SIGTERM, and its state is saved.
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
        """Make the trainer of the run. The caller holds the output folder.

        Args:
            resume: whether to continue from the newest checkpoint.

        Returns:
            The trainer, and whether it continues from a checkpoint.
        """
        record_run(self.cfg, self.sae, cache=self.cache, half_precision=self._half_precision)
        fingerprint = make_fingerprint(
            self.cfg,
            self.options,
            text_seed=self.text_seed,
            half_precision=self._half_precision,
            cache_digest=None if self.cache is None else self.cache.digest,
            reads_dataset=self._reads_dataset,
        )
        trainer = SequenceSAETrainer(
            self.cfg.to_sae_trainer_config(),
            self.sae,
            batches_for(self.sae, self.stream, self.options.max_norm_multiple),
            self.options,
            fingerprint,
            self.stream.waits,
        )
        candidates = [Path(self.cfg.resume_from_checkpoint)] if self.cfg.resume_from_checkpoint else []
        if resume and not candidates and trainer.checkpoints_dir is not None:
            candidates = list_checkpoints(trainer.checkpoints_dir)
        checkpoint = resume_ranks_from(trainer, candidates, fingerprint)
        if checkpoint is not None and checkpoint.parent == trainer.checkpoints_dir:
            delete_other_checkpoints(checkpoint)  # a kill may have come while an old one was being deleted
        out = self.options.run_dir
        if checkpoint is not None and out is not None:
            restore_log(out / LOG_FILE, checkpoint / LOG_FILE)
        return trainer, checkpoint is not None

    def save(self, trainer: SequenceSAETrainer) -> TrainingSAE[Any]:
        """Write the SAE into the output folder, if there is one, after the last step.

        Args:
            trainer: from `prepare`.

        Returns:
            The SAE.
        """
        if needs_threshold(self.sae):
            set_threshold_(self.sae, (zero_rows(h, masked) for h, masked in self._own_stream.chunks(0)))
        out = self.options.run_dir
        if out is not None:
            save_run(self.cfg, self.sae, self.options, trainer.log_feature_sparsity, out)
            if self.cfg.logger.log_to_wandb:
                send_sae_to_wandb(self.cfg, self.sae, out)
        return self.sae


def _make_sae(cfg: LanguageModelSAERunnerConfig[Any]) -> TrainingSAE[Any]:
    """Load the SAE that the configuration names, or make a new one from its seed."""
    if cfg.from_pretrained_path is not None:
        return TrainingSAE.load_from_disk(cfg.from_pretrained_path, cfg.device)
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        try:
            return TrainingSAE.from_dict(TrainingSAEConfig.from_dict(cfg.get_training_sae_cfg_dict()).to_dict())
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(
                f"expected settings of architecture {cfg.sae.architecture()!r}, got an error ({reason}); change cfg.sae"
            ) from error
