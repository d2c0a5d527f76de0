"""Report the training steps that are logged: a row in the training log and on Weights & Biases, the numbers beside the bar, and a warning."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import wandb
from tqdm.auto import tqdm

from mtsae_lens.data.prefetch import Waits
from mtsae_lens.errors import DivergedError
from mtsae_lens.sae.collapse import FiringCounts, count_always_on
from mtsae_lens.training.log import TrainingLog
from mtsae_lens.training.rank_means import mean_log_row, sum_firing_counts
from mtsae_lens.training.wandb_run import histogram
from mtsae_lens.upstream import TrainStepOutput

if TYPE_CHECKING:
    from mtsae_lens.training.trainer import SequenceSAETrainer

WAIT_FOR_ACTIVATIONS, WAIT_FOR_SAE = "time/wait_for_activations_s", "time/wait_for_sae_s"
"""Names in the log of the seconds since the last row in which the SAE waited for activations, and their reader for the SAE."""

REMEDY = "lower the learning rate (--lr), or check the activations for NaN or infinity"
"""What to do about a loss or weights that are not finite."""


class StepReporter:
    """Report the logged steps of one run.

    Args:
        waits: what the source of the batches measures of its waiting; None leaves it out of the log.
    """

    def __init__(self, waits: Waits | None) -> None:
        self._waits, self._logged_waits = waits, Waits()
        self._warned = False

    @torch.no_grad()
    def report(self, trainer: SequenceSAETrainer, output: TrainStepOutput, log: TrainingLog, progress: tqdm) -> None:  # type: ignore[type-arg]
        """Write the row of the step that was just taken, and show it.

        Args:
            trainer: the trainer, after the step.
            output: the output of the step.
            log: the log of the run.
            progress: the bar of the run.

        Raises:
            DivergedError: the loss is not finite.
        """
        step = trainer.n_training_steps
        if not torch.isfinite(output.loss):
            raise DivergedError(f"expected a finite loss at step {step}, got {output.loss.item()}; {REMEDY}")
        row = self._make_row(trainer, output)
        log.write(step, row)
        if trainer.cfg.logger.log_to_wandb:
            _send_to_wandb(trainer, row)
        progress.set_postfix(
            ev=f"{row['metrics/explained_variance']:.3f}",
            l0=f"{row['metrics/l0']:.1f}",
            dead=int(row["sparsity/dead_features"]),
            never_fired=row["sparsity/never_fired"],
            always_on=row["sparsity/always_on"],
        )
        self._warn_if_collapsed(trainer, row, progress)

    def _make_row(self, trainer: SequenceSAETrainer, output: TrainStepOutput) -> dict[str, Any]:
        """Compute what SAELens logs, and the entries of this package."""
        counts, n_rows = sum_firing_counts(output.feature_acts)
        row = trainer.build_train_step_log_dict(output=output, n_training_samples=trainer.n_training_samples)
        row["details/grad_norm"] = float(trainer.grad_norm)
        row["sparsity/never_fired"] = int(trainer.never_fired.sum())
        row["sparsity/always_on"] = count_always_on(counts / n_rows)
        row |= self._new_waits()
        return mean_log_row(row, output.sae_in, output.sae_out, trainer.share_of_rows)

    def _new_waits(self) -> dict[str, float]:
        """Return the seconds that each side has waited since the last row of the log."""
        if self._waits is None:
            return {}
        now, before = replace(self._waits), self._logged_waits
        self._logged_waits = now
        return {
            WAIT_FOR_ACTIVATIONS: round(now.for_activations - before.for_activations, 4),
            WAIT_FOR_SAE: round(now.for_sae - before.for_sae, 4),
        }

    def _warn_if_collapsed(self, trainer: SequenceSAETrainer, row: Mapping[str, Any], progress: tqdm) -> None:  # type: ignore[type-arg]
        """Print the warning once, not before features can count as dead."""
        warning = logged_counts(row, trainer.sae.cfg.d_sae).warning
        if warning and not self._warned and trainer.n_training_steps >= trainer.dead_feature_window:
            self._warned = True
            progress.write(f"warning: step {trainer.n_training_steps}: {warning}", file=sys.stderr)


def _send_to_wandb(trainer: SequenceSAETrainer, row: dict[str, Any]) -> None:
    step = trainer.n_training_steps
    wandb.log(row, step=step)
    if step % (trainer.options.log_every_n_steps * trainer.cfg.logger.eval_every_n_wandb_logs) == 0:
        wandb.log({name: histogram(values) for name, values in trainer.sae.log_histograms().items()}, step=step)


def logged_counts(row: Mapping[str, Any], d_sae: int) -> FiringCounts:
    """Read from a row of the training log how many features are silent and always on.

    Args:
        row: a row of the log; an entry that an older log does not have counts as 0.
        d_sae: number of features.

    Returns:
        The counts.
    """
    silent, never, always_on, l0 = (
        row.get(name) or 0 for name in ("sparsity/dead_features", "sparsity/never_fired", "sparsity/always_on", "metrics/l0")
    )
    return FiringCounts(d_sae, int(max(silent, never)), int(always_on), float(l0))
