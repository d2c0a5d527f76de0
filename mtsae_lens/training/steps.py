"""The loop of training steps, for one SAE or for several that share what they read."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from mtsae_lens.interruption import ComputationStopped, stop_on_signal
from mtsae_lens.ranks import current_ranks

if TYPE_CHECKING:
    from mtsae_lens.training.trainer import SequenceSAETrainer


def train_side_by_side(trainers: Sequence[SequenceSAETrainer]) -> None:
    """Take all steps of some trainers, each step of all before the next one of any, so that they can share what they read.

    Args:
        trainers: of runs with the same number of steps. One that has come further than another waits for it.

    Raises:
        DataError: activations that cannot be trained on.
        DivergedError: a loss or weights that are not finite.
        TrainingInterrupted: Ctrl-C or SIGTERM came; the step was finished and the states are saved, as far as there is a `run_dir`.
    """
    first, total = min(trainer.n_training_steps for trainer in trainers), trainers[0].cfg.total_training_steps
    description = f"Training {trainers[0].sae.cfg.architecture() if len(trainers) == 1 else f'{len(trainers)} SAEs'}"
    with stop_on_signal() as stop, ExitStack() as opened:
        try:
            data = []
            for trainer in trainers:
                batches = trainer.batches(trainer.n_training_steps)
                if isinstance(batches, Generator):
                    opened.enter_context(closing(batches))  # which ends a thread that reads ahead
                data.append(trainer.begin(batches))
            logs = [opened.enter_context(trainer.open_log()) for trainer in trainers]
            done = sum(trainer.n_training_steps for trainer in trainers)
            bar = tqdm(total=total * len(trainers), initial=done, desc=description, unit="step")
            progress = opened.enter_context(bar)
            for step in range(first, total):
                behind = [place for place, trainer in enumerate(trainers) if trainer.n_training_steps == step]
                for place in behind:
                    trainers[place].run_step(next(data[place]), logs[place], progress)
                stop.signal_number = current_ranks().agree_to_stop(stop.signal_number)
                for place in behind:
                    trainers[place].save_if_due(stops=bool(stop))
                if stop.signal_number is not None:
                    raise ComputationStopped(stop.signal_number)
        except ComputationStopped as stopped:
            ended = [trainer.save_on_interruption(stopped.signal_number) for trainer in trainers]
            furthest = max(range(len(trainers)), key=lambda place: trainers[place].n_training_steps)
            raise ended[furthest] from None
