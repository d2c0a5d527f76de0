"""SAELens's trainer, with what training an MTSAE needs besides.

`SAETrainer` hard-codes Adam, throws the gradient norm away, counts walls as samples, logs nothing offline, and saves in mid-step when
interrupted. Its schedules, statistics, activation scaling and metrics are used as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import wandb
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE, TrainStepInput, TrainStepOutput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import SAETrainer
from tqdm.auto import tqdm
from typing_extensions import override

from mtsae_lens.errors import DataError, TrainingInterrupted
from mtsae_lens.interruption import stop_on_signal
from mtsae_lens.sae.training import MTTrainingSAE
from mtsae_lens.training.checkpoints import save_checkpoint
from mtsae_lens.training.log import LOG_FILE, TrainingLog
from mtsae_lens.training.wandb_run import histogram

Batches = Callable[[int], Iterator[torch.Tensor]]


@dataclass(frozen=True)
class TrainerOptions:
    """What SAELens's configuration has no field for."""

    weight_decay: float = 0.0
    """AdamW's; 0 is Adam. The paper has 0.01."""

    log_every_n_steps: int = 10
    checkpoint_every_n_steps: int = 500
    run_dir: Path | None = None
    """Where `training_log.jsonl` and `checkpoints/` go; None writes neither."""


_REMEDY = "lower the learning rate (--lr), or look for activations that are no numbers"


class SequenceSAETrainer(SAETrainer[TrainingSAE[Any], Any]):
    """Trains any SAELens architecture on batches that can be entered at any step.

    Args:
        cfg: SAELens's trainer configuration; `train_batch_size_samples` counts positions, masked ones included.
        sae: the SAE to train.
        batches: `batches(step)` iterates over the batches from that step on, rows of zeros where masked.
        options: what goes beyond SAELens.
        fingerprint: settings that a checkpoint must share to be continued.
    """

    def __init__(
        self,
        cfg: SAETrainerConfig,
        sae: TrainingSAE[Any],
        batches: Batches,
        options: TrainerOptions,
        fingerprint: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(cfg=cfg, sae=sae, data_provider=iter(()))
        self.batches = batches
        self.options = options
        self.fingerprint = fingerprint or {}
        self.grad_norm = 0.0
        self.optimizer = torch.optim.AdamW(
            sae.parameters(), lr=cfg.lr, betas=(cfg.adam_beta1, cfg.adam_beta2), weight_decay=options.weight_decay, fused=True
        )
        assert cfg.lr_end is not None
        ramps = cfg.lr_warm_up_steps + cfg.lr_decay_steps
        self.lr_scheduler = get_lr_scheduler(
            cfg.lr_scheduler_name,
            lr=cfg.lr,
            optimizer=self.optimizer,
            warm_up_steps=cfg.lr_warm_up_steps,
            decay_steps=cfg.lr_decay_steps,
            # a cosine over no step at all would divide by zero in the last update
            training_steps=cfg.total_training_steps + (ramps == cfg.total_training_steps),
            lr_end=cfg.lr_end,
            num_cycles=cfg.n_restart_cycles,
        )
        if isinstance(sae, MTTrainingSAE) and sae.cfg.normalize_decoder:
            self.optimizer.register_step_post_hook(lambda *_: sae.normalize_decoder_())

    @override
    def _is_logging_step(self) -> bool:
        step = self.n_training_steps + 1
        return step % self.options.log_every_n_steps == 0 or step == self.cfg.total_training_steps

    @property
    def _run_dir(self) -> Path | None:
        return self.options.run_dir

    @property
    def checkpoints_dir(self) -> Path | None:
        """Where checkpoints go, if anywhere."""
        return self._run_dir / "checkpoints" if self._run_dir else None

    @override
    def fit(self) -> TrainingSAE[Any]:
        """Train to the end; on Ctrl-C or SIGTERM finish the step, save, and raise `TrainingInterrupted`."""
        self.sae.to(self.cfg.device)
        self._estimate_scaling()
        total_steps = self.cfg.total_training_steps
        log_path = self._run_dir / LOG_FILE if self._run_dir else None
        progress = tqdm(
            total=total_steps, initial=self.n_training_steps, desc=f"Training {self.sae.cfg.architecture()}", unit="step"
        )
        with stop_on_signal() as stop, TrainingLog(log_path, self.n_training_steps) as log, progress:
            data = self.batches(self.n_training_steps)
            while self.n_training_steps < total_steps:
                sparsity_log = self.maybe_reset_sparsity()
                if sparsity_log and self.cfg.logger.log_to_wandb:
                    wandb.log(sparsity_log, step=self.n_training_steps)
                logged = self._is_logging_step()
                output = self.step(next(data))
                self.n_training_steps += 1
                progress.update()
                if logged:
                    self._log(output, log, progress)
                due = self.n_training_steps % self.options.checkpoint_every_n_steps == 0 or self.n_training_steps == total_steps
                if self.checkpoints_dir and (stop or due):
                    self._check_finite()
                    save_checkpoint(self, self.checkpoints_dir, self.fingerprint)
                if stop.signal_number is not None:
                    saved = f"saved at step {self.n_training_steps} of {total_steps}; --resume continues"
                    raise TrainingInterrupted(stop.signal_number, saved if self.checkpoints_dir else "not saved: no run_dir")
        self._check_finite()
        if self.activation_scaler.scaling_factor is not None:
            self.sae.fold_activation_norm_scaling_factor(self.activation_scaler.scaling_factor)
            self.activation_scaler.scaling_factor = None
        self.set_final_sae_metadata()
        return self.sae

    def _check_finite(self) -> None:
        """Never save weights that are broken: a checkpoint from before can be resumed."""
        for name, parameter in self.sae.named_parameters():
            if not torch.isfinite(parameter).all():
                raise DataError(f"{name} is not finite at step {self.n_training_steps}; {_REMEDY}")

    def _estimate_scaling(self) -> None:
        """As in SAELens, but from the first batches without using them up, and without the rows of zeros."""
        if self.sae.cfg.normalize_activations == "expected_average_only_in" and self.activation_scaler.scaling_factor is None:
            d_in = self.sae.cfg.d_in
            rows = (own[(own != 0).any(dim=-1)] for own in (batch[:, :d_in] for batch in self.batches(0)))
            n_batches = min(self.cfg.n_batches_for_norm_estimate, self.cfg.total_training_steps)
            self.activation_scaler.estimate_scaling_factor(self.sae.cfg.d_in, rows, n_batches)

    @override
    def step(self, batch: torch.Tensor) -> TrainStepOutput:
        """One step; counts positions, masked or not, so that every architecture takes the same number of steps."""
        self.n_training_samples += self.cfg.train_batch_size_samples
        return self._train_step(self.sae, self.activation_scaler(batch.to(self.sae.device)))

    @override
    def _train_step(self, sae: TrainingSAE[Any], sae_in: torch.Tensor) -> TrainStepOutput:
        """Overrides the base class for the gradient norm, and because its statistics count masked rows as samples."""
        sae.train()
        with self.autocast_if_enabled:
            output = sae.training_forward_pass(
                step_input=TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=self.dead_neurons,
                    coefficients=self.get_coefficients(),
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self._is_logging_step(),
                )
            )
        self._count_firing(output)
        output.loss.backward()
        self.grad_norm = torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)  # type: ignore[assignment]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, output: TrainStepOutput) -> None:
        feature_acts = output.feature_acts.to_dense() if output.feature_acts.is_sparse else output.feature_acts
        counts = (feature_acts != 0).sum(dim=0)
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired[counts > 0] = 0
        self.act_freq_scores += counts
        self.n_frac_active_samples += int((output.sae_in != 0).any(dim=-1).sum())

    @torch.no_grad()
    def _log(self, output: TrainStepOutput, log: TrainingLog, progress: tqdm) -> None:  # type: ignore[type-arg]
        if not torch.isfinite(output.loss):
            raise DataError(f"the loss is {output.loss.item()} at step {self.n_training_steps}; {_REMEDY}")
        kept = (output.sae_in != 0).any(dim=-1)
        feature_acts = output.feature_acts.to_dense() if output.feature_acts.is_sparse else output.feature_acts
        output = replace(output, sae_in=output.sae_in[kept], sae_out=output.sae_out[kept], feature_acts=feature_acts[kept])
        row = self.build_train_step_log_dict(output=output, n_training_samples=self.n_training_samples)
        row["details/grad_norm"] = float(self.grad_norm)
        log.write(self.n_training_steps, row)
        if self.cfg.logger.log_to_wandb:
            wandb.log(row, step=self.n_training_steps)
            if self.n_training_steps % (self.options.log_every_n_steps * self.cfg.logger.eval_every_n_wandb_logs) == 0:
                histograms = {name: histogram(values) for name, values in self.sae.log_histograms().items()}
                wandb.log(histograms, step=self.n_training_steps)
        progress.set_postfix(
            ev=f"{row['metrics/explained_variance']:.3f}",
            l0=f"{row['metrics/l0']:.1f}",
            dead=int(row["sparsity/dead_features"]),
        )
