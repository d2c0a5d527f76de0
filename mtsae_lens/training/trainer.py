"""SAELens's trainer, with what the training of an MTSAE needs in addition.

`SAETrainer` starts `b_dec` at zero, hard-codes Adam, drops the gradient norm, waits for dead features longer than a short run lasts, logs
nothing offline, and saves in the middle of a step when interrupted. Its schedules, statistics, activation scaling and metrics are used
unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens import SAETrainer, TrainingSAE
from tqdm.auto import tqdm
from typing_extensions import override

from mtsae_lens.data.prefetch import Waits
from mtsae_lens.errors import DivergedError, TrainingInterrupted
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.pointwise_step import take_sparse_step
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.sae.transcoder import MTTrainingTranscoder
from mtsae_lens.training.checkpoints import save_checkpoint
from mtsae_lens.training.log import LOG_FILE, TrainingLog
from mtsae_lens.training.optimizer import keep_lr_ratios_, make_lr_scheduler, make_optimizer
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.rank_means import add_up_step_, sum_firing_counts
from mtsae_lens.training.start import look_ahead, restore_scale_, start_b_dec_, start_memory_
from mtsae_lens.training.step_reports import REMEDY, StepReporter
from mtsae_lens.training.steps import train_side_by_side
from mtsae_lens.training.transcoding import start_transcoder_
from mtsae_lens.upstream import SAETrainerConfig, TrainStepInput, TrainStepOutput, count_firing

Batches = Callable[[int], Iterator[torch.Tensor]]

_MAX_START_POSITIONS = 10_240
"""The largest number of positions whose statistics set the scale and the start of `b_dec`, whatever `n_batches_for_norm_estimate` says. Their
batches stay in memory until training has read them, and this many estimate both to within a percent."""

_DEAD_WINDOWS_IN_A_RUN = 3
"""The window after which a feature counts as dead is at most the run divided by this, so that AuxK has two thirds of it to revive features."""


class SequenceSAETrainer(SAETrainer[TrainingSAE[Any], Any]):
    """Train any SAELens architecture on batches that can be entered at any step.

    Args:
        cfg: SAELens's trainer configuration; `train_batch_size_samples` counts positions, masked ones included.
        sae: the SAE to train.
        batches: a function that iterates over the batches from a step on. Each row counts, so masked positions must have been left out, as
            `SequenceBlocks.mixed` does.
        options: settings beyond SAELens's.
        fingerprint: the settings that must be the same when a checkpoint is continued.
        waits: what the source of the batches measures of its waiting, for the log.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: TrainingSAE[Any],
        batches: Batches,
        options: TrainerOptions,
        fingerprint: dict[str, Any] | None = None,
        waits: Waits | None = None,
    ) -> None:
        super().__init__(cfg=cfg, sae=sae, data_provider=iter(()))
        self.batches = batches
        self.options = options
        self.fingerprint = fingerprint or {}
        self.grad_norm = 0.0
        """The norm of the gradient of the last step, before it was clipped."""
        self.share_of_rows = 1.0
        """This rank's part of the rows of the last step."""
        if options.frozen is not None:
            (sae if options.frozen == "all" else sae.W_dec).requires_grad_(False)
        self._saved_step = 0
        self._reporter = StepReporter(waits)
        self.optimizer = make_optimizer(sae, cfg, options.weight_decay)
        self.lr_scheduler = make_lr_scheduler(cfg, self.optimizer)
        self.dead_feature_window = min(cfg.dead_feature_window, max(1, cfg.total_training_steps // _DEAD_WINDOWS_IN_A_RUN))
        """Steps without firing after which a feature counts as dead: as configured, but at most a third of the run."""
        if isinstance(sae, MTTrainingSAE) and sae.cfg.normalize_decoder:
            self.optimizer.register_step_post_hook(lambda *_: sae.normalize_decoder_())

    def _is_logged(self) -> bool:
        step = self.n_training_steps + 1
        return step % self.options.log_every_n_steps == 0 or step == self.cfg.total_training_steps

    @property
    @override
    def dead_neurons(self) -> torch.Tensor:
        return self.n_forward_passes_since_fired > self.dead_feature_window

    @property
    def never_fired(self) -> torch.Tensor:
        """The features that have not fired in this run yet, a mask `(d_sae,)`."""
        return self.n_forward_passes_since_fired >= max(1, self.n_training_steps)

    @property
    def _run_dir(self) -> Path | None:
        return self.options.run_dir

    @property
    def checkpoints_dir(self) -> Path | None:
        """The folder of the checkpoints; None without `run_dir`."""
        return self._run_dir / "checkpoints" if self._run_dir else None

    @override
    def fit(self) -> TrainingSAE[Any]:
        """Train to the end.

        Returns:
            The SAE, with its activation scale folded in.

        Raises:
            DataError: activations that cannot be trained on.
            DivergedError: a loss or weights that are not finite.
            TrainingInterrupted: Ctrl-C or SIGTERM came; the step was finished and the state is saved, if there is a `run_dir`.
        """
        train_side_by_side([self])
        return self.finish()

    def begin(self, batches: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Prepare the first step.

        Args:
            batches: from the next step on.

        Returns:
            The batches that the steps read, those that a new run reads for its start included.
        """
        self.sae.to(self.cfg.device)
        current_ranks().copy_from_first_(self.sae.state_dict().values())
        return self._start(batches) if self.n_training_steps == 0 else batches

    def finish(self) -> TrainingSAE[Any]:
        """Return the SAE after the last step, with its activation scale folded in."""
        self._check_finite()
        if self.activation_scaler.scaling_factor is not None:
            self.sae.fold_activation_norm_scaling_factor(self.activation_scaler.scaling_factor)
            self.activation_scaler.scaling_factor = None
        self.set_final_sae_metadata()
        return self.sae

    def open_log(self) -> TrainingLog:
        """Open the log of the run at the step that it has reached."""
        return TrainingLog(self._run_dir / LOG_FILE if self._run_dir else None, self.n_training_steps)

    def run_step(self, batch: torch.Tensor, log: TrainingLog, progress: tqdm) -> None:  # type: ignore[type-arg]
        """Take the next step, and log it if it is due.

        Args:
            batch: rows of activations.
            log: the log of the run.
            progress: the bar to move.
        """
        sparsity_log = self.maybe_reset_sparsity()
        if sparsity_log and self.cfg.logger.log_to_wandb:
            wandb.log(sparsity_log, step=self.n_training_steps)
        logged = self._is_logged()
        output = self.step(batch)
        self.n_training_steps += 1
        progress.update()
        if logged:
            self._reporter.report(self, output, log, progress)

    def save_if_due(self, *, stops: bool) -> None:
        """Save a checkpoint after a step where one is due, or where the run stops."""
        if self._is_checkpoint_step() or (stops and self.checkpoints_dir):
            self._save_checkpoint()

    def _is_checkpoint_step(self) -> bool:
        step = self.n_training_steps
        due = step % self.options.checkpoint_every_n_steps == 0 or step == self.cfg.total_training_steps
        return due and self.checkpoints_dir is not None

    def _save_checkpoint(self) -> None:
        assert self.checkpoints_dir is not None
        self._check_finite()
        self._saved_step = self.n_training_steps
        save_checkpoint(self, self.checkpoints_dir, self.fingerprint)

    def save_on_interruption(self, signal_number: int) -> TrainingInterrupted:
        """Save the state if it is not saved yet, and say how to resume. Called between two steps."""
        step = self.n_training_steps
        if step == 0:
            return TrainingInterrupted(signal_number, "before the first step; type the same command again")
        if self.checkpoints_dir is None:
            return TrainingInterrupted(signal_number, "not saved: no run_dir")
        if self._saved_step != step:
            self._save_checkpoint()
        saved = f"saved at step {step} of {self.cfg.total_training_steps}; --resume continues"
        return TrainingInterrupted(signal_number, saved)

    def _check_finite(self) -> None:
        """Raise `DivergedError` for weights that are not finite, so that they never replace an earlier checkpoint."""
        for name, parameter in self.sae.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DivergedError(
                    f"expected finite weights at step {self.n_training_steps}, got NaN or infinity in {name}; {REMEDY}"
                )

    def _start(self, data: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Set the scale of the activations and the start of `b_dec`, and return all batches, also those read for that."""
        n_batches = min(
            max(1, self.cfg.n_batches_for_norm_estimate),
            self.cfg.total_training_steps,
            math.ceil(_MAX_START_POSITIONS / self.cfg.train_batch_size_samples),
        )
        statistics, data = look_ahead(data, n_batches, self.sae.cfg.d_in)
        scaler = self.activation_scaler
        restored = restore_scale_(self.sae) if isinstance(self.sae, MTTrainingSAE) else None
        if restored is not None:
            scaler.scaling_factor = restored
            return data  # an SAE that was trained has its start
        if self.sae.cfg.normalize_activations == "expected_average_only_in" and scaler.scaling_factor is None:
            scaler.scaling_factor = self.sae.cfg.d_in**0.5 / statistics.mean_norm
        starts_at_mean = self.options.b_dec_init == "mean"
        if isinstance(self.sae, MTTrainingTranscoder):
            return start_transcoder_(
                self.sae, data, n_batches, scaling_factor=scaler.scaling_factor, starts_at_mean=starts_at_mean
            )
        if starts_at_mean:
            start_b_dec_(self.sae, scaler(statistics.mean))
        if isinstance(self.sae, MTTrainingSAE) and self.sae.has_memory:
            first = list(islice(data, n_batches))
            start_memory_(self.sae, [scaler(batch.to(self.sae.device)) for batch in first])
            data = chain(first, data)
        return data

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        """Take one step.

        Positions are counted whether they are masked or not, so that every architecture takes the same number of steps.

        Args:
            batch: rows of activations, as `batches` yields them.

        Returns:
            The output of the SAE's training step.
        """
        output = self._update(self.sae, self.activation_scaler(batch.to(self.sae.device)))
        self.n_training_samples += self.cfg.train_batch_size_samples
        return output

    def _update(self, sae: TrainingSAE[Any], sae_in: torch.Tensor) -> TrainStepOutput:
        """Take an optimizer step on scaled activations as SAELens does, but keep the gradient norm.

        Several ranks take it together: the loss is the mean over the rows of all of them.
        """
        sae.train()
        with self.autocast_if_enabled:
            step_input = TrainStepInput(
                sae_in=sae_in,
                dead_neuron_mask=self.dead_neurons,
                coefficients=self.get_coefficients(),
                n_training_steps=self.n_training_steps,
                is_logging_step=self._is_logged(),
            )
            output = take_sparse_step(sae, step_input) or sae.training_forward_pass(step_input=step_input)
        self._count_firing(output)
        if output.loss.requires_grad:  # not if all weights are frozen
            (output.loss * self.share_of_rows).backward()
        add_up_step_(sae, self.share_of_rows)
        self.grad_norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)  # type: ignore[assignment]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        keep_lr_ratios_(self.optimizer)
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, output: TrainStepOutput) -> None:
        counts, n_of_all = sum_firing_counts(output.feature_acts)
        self.share_of_rows = len(output.sae_in) / n_of_all
        count_firing(self, counts, n_of_all)
