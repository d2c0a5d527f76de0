"""Repeat the paper's run exactly: 10,000 tokens in batches of 2,048 are 4 steps, at learning rates of 1 to 4 thousandths of the peak.

The paper leaves some settings open. They are read here as follows: `d_sae` is 4 * d_in, the batch size of 2,048 counts tokens, the
cosine warm-up is a linear rise over 1,000 steps followed by a cosine, and the initial encoder weights are the transposed decoder for
the first scale and zero for the others. The rows of a batch are mixed over the whole buffer, as an activation buffer does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAE
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.paper.consistency import derive_implied, warm_up_lr
from mtsae_lens.experiments.paper.measures import finite, row_metrics
from mtsae_lens.experiments.paper.published import D_SAE_PER_D_IN, METRICS, SCALE_STD, PublishedSettings
from mtsae_lens.experiments.paper.results import Metrics, PaperRun, Reproduction, TrainingStep
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.tap_moments import scale_statistics
from mtsae_lens.experiments.parts import as_json
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.training.log import read_log
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.trials import run_trials


def runner_config(
    setup: PaperSetup, settings: PublishedSettings, seed: int, out: Path
) -> LanguageModelSAERunnerConfig[MTTrainingSAEConfig]:
    """Return SAELens's configuration of the paper's run.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        seed: seed of the run.
        out: folder for the SAE.
    """
    sae = MTTrainingSAEConfig.paper(
        setup.d_in, D_SAE_PER_D_IN * setup.d_in, context_size=settings.context_size, device=setup.device
    )
    return LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=setup.model_name,
        hook_name=setup.hook_name,
        dataset_path=setup.dataset,
        context_size=settings.context_size,
        training_tokens=settings.training_tokens,
        train_batch_size_tokens=settings.batch_size_tokens,
        store_batch_size_prompts=settings.lm_batch_size_sequences,
        n_batches_in_buffer=max(1, settings.buffer_size_sequences // settings.lm_batch_size_sequences),
        lr=settings.lr,
        lr_end=0.0,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=settings.lr_warm_up_steps,
        seed=seed,
        device=setup.device,
        dtype="float32",
        autocast=False,
        autocast_lm=False,
        disable_concat_sequences=False,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(out),
        verbose=False,
    )


def build_runner(setup: PaperSetup, settings: PublishedSettings, seed: int, out: Path) -> SequenceSAETrainingRunner:
    """Build the package's own runner, which logs every step.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        seed: seed of the run.
        out: folder for the SAE.
    """
    options = TrainerOptions(weight_decay=settings.weight_decay, b_dec_init="zeros", log_every_n_steps=1)
    return SequenceSAETrainingRunner(runner_config(setup, settings, seed, out), override_model=setup.model, options=options)


def read_curve(log: Sequence[Mapping[str, Any]], settings: PublishedSettings) -> tuple[TrainingStep, ...]:
    """Return loss terms, gradient norm and learning rate of each step.

    A row of the log holds the learning rate of the next step, so the rates are shifted by one.

    Args:
        log: rows of the training log.
        settings: settings of the run.
    """
    return tuple(
        TrainingStep(
            step=row["step"],
            overall_loss=row["losses/overall_loss"],
            l2_loss=row["losses/l2_loss"],
            l1_loss=row["losses/l1_loss"],
            separation_loss=row["losses/separation_loss"],
            grad_norm=row["details/grad_norm"],
            lr=_lr_of_step(log, row["step"], settings),
            explained_variance=row["metrics/explained_variance"],
        )
        for row in log
    )


def _lr_of_step(log: Sequence[Mapping[str, Any]], step: int, settings: PublishedSettings) -> float:
    """Return the learning rate of a step."""
    return warm_up_lr(1, settings) if step == 1 else float(log[step - 2]["details/current_learning_rate"])


def paper_metrics(sae: TrainingSAE[Any], setup: PaperSetup, table: TokenTable, h: Float[Tensor, "n pos d_in"]) -> Metrics:
    """Measure every metric of the paper on held-out contexts.

    Args:
        sae: the SAE.
        setup: model, hook and text.
        table: held-out contexts.
        h: their activations.
    """
    measured = evaluate_fidelity(sae, setup.model, setup.cutter, table)
    metrics = finite({name: measured[name] for name in (*METRICS, "dead_features", "future_leak") if name in measured})
    return {"l2_loss": row_metrics(sae, h, setup.cutter.masked(table.tokens))["l2_loss"]} | metrics


def reproduce_seed(
    setup: PaperSetup, settings: PublishedSettings, seed: int, folder: Path, table: TokenTable, h: Float[Tensor, "n pos d_in"]
) -> PaperRun:
    """Run the paper's training once, and measure the SAE.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        seed: seed of the run.
        folder: folder for the training's files.
        table: held-out contexts.
        h: their activations.
    """
    runner = build_runner(setup, settings, seed, folder)
    untrained = deepcopy(runner.sae)
    trained = runner.run()
    untrained.cfg.metadata = deepcopy(trained.cfg.metadata)
    before = {name: parameter.detach() for name, parameter in untrained.named_parameters()}
    return PaperRun(
        curve=read_curve(read_log(folder / "training_log.jsonl"), settings),
        table_1=scale_statistics(trained, h),
        trained=paper_metrics(trained, setup, table, h),
        untrained=paper_metrics(untrained, setup, table, h),
        d_sae=trained.cfg.d_sae,
        largest_weight_change=max(float((p.detach() - before[name]).abs().max()) for name, p in trained.named_parameters()),
    )


def make_reproduction_trials(
    setup: PaperSetup, settings: PublishedSettings, n_seeds: int, out: Path, n_test_contexts: int
) -> dict[str, Callable[[], PaperRun]]:
    """Return the functions that make each run, one per seed; training files go to `out/seed_N`.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        n_seeds: number of runs.
        out: folder for the training's files.
        n_test_contexts: held-out contexts to measure on.
    """
    table = setup.test_table(n_test_contexts)
    h, _ = setup.activations(table.tokens)
    return {
        f"seed_{seed}": partial(reproduce_seed, setup, settings, seed, out / f"seed_{seed}", table, h)
        for seed in range(n_seeds)
    }


def reproduce(setup: PaperSetup, settings: PublishedSettings, n_seeds: int, n_test_contexts: int, out: Path) -> Reproduction:
    """Repeat the paper's run, seed by seed.

    Args:
        setup: model, hook and text.
        settings: settings of the paper.
        n_seeds: number of runs.
        n_test_contexts: held-out contexts to measure on.
        out: folder of the trials.
    """
    record = setup.record | asdict(settings) | {"n_test_contexts": n_test_contexts}
    trials = make_reproduction_trials(setup, settings, n_seeds, out, n_test_contexts)
    found = run_trials(out / "trials", record, {name: as_json(trial) for name, trial in trials.items()}, "The paper's run")
    seeds = {name: PaperRun.from_json(content) for name, content in found.items()}
    runs = list(seeds.values())
    return Reproduction(
        seeds=seeds,
        implied=derive_implied(),
        n_steps=len(runs[0].curve),
        largest_lr=max(step.lr for run in runs for step in run.curve),
        seeds_that_fall=sum(_falls([run.table_1[str(d)].std for d in SCALE_STD]) for run in runs),
    )


def _falls(values: Sequence[float]) -> bool:
    return all(later < earlier for earlier, later in itertools.pairwise(values))
