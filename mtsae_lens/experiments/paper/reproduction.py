"""The paper's run, exactly: 10,000 tokens in batches of 2,048 are 4 steps, at learning rates of 1 to 4 thousandths of the peak.

What the paper leaves open and how it is read here: `d_sae` (4 * d_in), the batch size of 2,048 (tokens), the cosine warm-up (a linear
rise over 1,000 steps, then a cosine), the first encoder weights (the transposed decoder for the first scale, zero for the others).
The rows of a batch are mixed over the whole buffer, as an activation buffer does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, LoggingConfig, TrainingSAE

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.paper.consistency import warm_up_lr
from mtsae_lens.experiments.paper.measures import finite, row_metrics
from mtsae_lens.experiments.paper.published import D_SAE_PER_D_IN, METRICS, PublishedSettings
from mtsae_lens.experiments.paper.setup import Subject
from mtsae_lens.experiments.paper.tap_moments import scale_statistics
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.training.log import read_log
from mtsae_lens.training.runner import SequenceSAETrainingRunner
from mtsae_lens.training.trainer import TrainerOptions

CURVES = ("overall_loss", "l2_loss", "l1_loss", "separation_loss", "grad_norm", "lr", "explained_variance")


def runner_config(
    subject: Subject, settings: PublishedSettings, seed: int, out: Path
) -> LanguageModelSAERunnerConfig[MTTrainingSAEConfig]:
    """SAELens's configuration of the paper's run."""
    sae = MTTrainingSAEConfig.paper(
        subject.d_in, D_SAE_PER_D_IN * subject.d_in, context_size=settings.context_size, device=subject.device
    )
    return LanguageModelSAERunnerConfig(
        sae=sae,
        model_name=subject.model_name,
        hook_name=subject.hook_name,
        dataset_path=subject.dataset,
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
        device=subject.device,
        dtype="float32",
        autocast=False,
        autocast_lm=False,
        disable_concat_sequences=False,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=str(out),
        verbose=False,
    )


def build_runner(subject: Subject, settings: PublishedSettings, seed: int, out: Path) -> SequenceSAETrainingRunner:
    """The product's own runner, every step logged."""
    options = TrainerOptions(weight_decay=settings.weight_decay, b_dec_init="zeros", log_every_n_steps=1)
    return SequenceSAETrainingRunner(runner_config(subject, settings, seed, out), override_model=subject.model, options=options)


def curve(log: Sequence[Mapping[str, Any]], settings: PublishedSettings) -> list[dict[str, float]]:
    """Loss terms, gradient norm and learning rate of each step. The log holds the rate of the step to come, so it is moved by one."""
    rows = []
    for row in log:
        values = {name: row[f"losses/{name}"] for name in CURVES[:4]}
        rows.append(
            values
            | {
                "step": row["step"],
                "grad_norm": row["details/grad_norm"],
                "lr": _lr_of_step(log, row["step"], settings),
                "explained_variance": row["metrics/explained_variance"],
            }
        )
    return rows


def _lr_of_step(log: Sequence[Mapping[str, Any]], step: int, settings: PublishedSettings) -> float:
    """The learning rate that a step was made with."""
    return warm_up_lr(1, settings) if step == 1 else float(log[step - 2]["details/current_learning_rate"])


def paper_metrics(sae: TrainingSAE[Any], subject: Subject, table: TokenTable, h: Any) -> dict[str, float | None]:
    """Every metric of the paper, on held-out contexts and their activations `h`."""
    measured = evaluate_fidelity(sae, subject.model, subject.cutter, table)
    metrics = finite({name: measured[name] for name in (*METRICS, "dead_features", "future_leak") if name in measured})
    return {"l2_loss": row_metrics(sae, h)["l2_loss"]} | metrics


def reproduce_seed(
    subject: Subject, settings: PublishedSettings, seed: int, folder: Path, table: TokenTable, h: Any
) -> dict[str, Any]:
    """One run of the paper.

    Returns:
        `curve` (per step), `table_1` (by dilation: mean and std of the convolution after training, on held-out text), `trained` and
        `untrained` (every metric of the paper on held-out text), `d_sae`, `largest_weight_change`.
    """
    runner = build_runner(subject, settings, seed, folder)
    untrained = deepcopy(runner.sae)
    trained = runner.run()
    untrained.cfg.metadata = deepcopy(trained.cfg.metadata)
    before = {name: parameter.detach() for name, parameter in untrained.named_parameters()}
    return {
        "curve": curve(read_log(folder / "training_log.jsonl"), settings),
        "table_1": scale_statistics(trained, h),
        "trained": paper_metrics(trained, subject, table, h),
        "untrained": paper_metrics(untrained, subject, table, h),
        "d_sae": trained.cfg.d_sae,
        "largest_weight_change": max(float((p.detach() - before[name]).abs().max()) for name, p in trained.named_parameters()),
    }


def reproduction_trials(
    subject: Subject, settings: PublishedSettings, n_seeds: int, out: Path, n_test_contexts: int
) -> dict[str, Callable[[], dict[str, Any]]]:
    """One trial per seed; training files go to `out/seed_N`."""
    table = subject.test_table(n_test_contexts)
    h = subject.activations(table.tokens)
    return {
        f"seed_{seed}": partial(reproduce_seed, subject, settings, seed, out / f"seed_{seed}", table, h)
        for seed in range(n_seeds)
    }
