"""Train one SAE of the grid, and measure one."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens import SAE

from mtsae_lens.commands.evaluate_results import finite_or_none
from mtsae_lens.data.choices import Split
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import DivergedError, SilentSAEError
from mtsae_lens.evaluation.bits import measure_bits
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.experiments.compare.arms import ARMS, MEMORY, CompareArm
from mtsae_lens.experiments.compare.held_out import HeldOutText, measure_on_tune, split_batches
from mtsae_lens.experiments.compare.results import Coded, Measured
from mtsae_lens.experiments.compare.search import Trained
from mtsae_lens.opening import load_sae
from mtsae_lens.output_folders import hold_output_folder
from mtsae_lens.records import Stopwatch
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.training.recipe import make_runner
from mtsae_lens.training.settings import TrainSettings

_CODED_SPLITS: tuple[Split, Split] = ("select", "test")
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TuneText:
    """What a training is measured on to choose among trainings."""

    text: HeldOutText
    n_contexts: int


def n_features(arm: CompareArm, d_in: int, d_sae: int, memory: Mapping[str, Any]) -> int:
    """Return the number of features of an arm.

    The wider control has `d_sae + ceil(prediction / (2 d_in + 1))` features: each has a column of the encoder, a row of the decoder and a bias,
    and `prediction` is the number of weights of the prediction of the SAE with memory.

    Args:
        arm: the arm.
        d_in: width of the activations.
        d_sae: number of features of the other arms.
        memory: further settings of the SAE with memory.
    """
    if not arm.wider:
        return d_sae
    cfg = MTTrainingSAEConfig(d_in=d_in, d_sae=d_sae, k=1, **{**ARMS[MEMORY].sae, **memory})
    weights = (cfg.n_memory_reads + 1) * d_in * min(cfg.memory_rank, d_in)
    return d_sae + math.ceil(weights / (2 * d_in + 1))


def train_cell(settings: TrainSettings, coefficient: float | None, tune: TuneText, *, keep: bool) -> Trained:
    """Train an SAE and measure it on TUNE. A training that was stopped goes on from its last checkpoint.

    Args:
        settings: settings of the training; its folder belongs to it alone.
        coefficient: the sparsity coefficient in the settings, for the record.
        tune: what to measure on.
        keep: whether to keep the SAE; one whose training diverged is never kept.

    Returns:
        What it reaches, or in `failed` how training diverged.

    Raises:
        DataError: the text or the activations cannot be trained on.
    """
    resumed, watch, failed = (settings.out / _CHECKPOINTS).exists(), Stopwatch(), ""
    l0 = explained_variance = math.nan
    with hold_output_folder(settings.out):
        runner = make_runner(settings, resume=True)
        try:
            runner.run(resume=True)
        except DivergedError as error:
            failed = str(error)
    seconds = watch.seconds
    if not failed:
        sae = load_sae(settings.out, settings.device)
        l0, explained_variance = measure_on_tune(sae, tune.text, tune.n_contexts)
    shutil.rmtree(settings.out / _CHECKPOINTS if keep and not failed else settings.out, ignore_errors=True)
    return Trained(
        lr=settings.lr,
        coefficient=coefficient,
        l0=l0,
        explained_variance=explained_variance,
        seconds=None if resumed else seconds,
        failed=failed,
    )


def measure_cell(folder: Path, text: HeldOutText, n_contexts: int) -> Measured:
    """Measure an SAE on TEST.

    Args:
        folder: folder of the SAE.
        text: the text.
        n_contexts: largest number of contexts.
    """
    model, cutter = text.load()
    sae = load_sae(folder, text.device)
    metrics = evaluate_fidelity(sae, model, cutter, read_tokens(text.dataset, "test", cutter, n_contexts))
    return Measured(
        architecture=sae.cfg.architecture(),
        hook_name=str(sae.cfg.metadata.hook_name),
        d_sae=int(sae.cfg.d_sae),
        n_parameters=sum(parameter.numel() for parameter in sae.parameters()),
        flops_per_token=training_flops(sae),
        metrics=finite_or_none(metrics),
    )


def code_cell(folder: Path, text: HeldOutText, n_contexts: int, value_bits: int) -> Coded:
    """Measure the bits per token of an SAE on TEST, with counts that start from SELECT.

    Args:
        folder: folder of the SAE.
        text: the text.
        n_contexts: largest number of contexts of each split.
        value_bits: logarithm of the number of levels of a value.

    Returns:
        The numbers; all of them are NaN for an SAE of which no feature fires.

    Raises:
        DataError: the SAE cannot read the activations, or TEST has no position.
    """
    sae = load_sae(folder, text.device)
    select, test = (split_batches(sae, text, split, n_contexts) for split in _CODED_SPLITS)
    try:
        return Coded(**measure_bits(sae, select, test, value_bits))
    except SilentSAEError:
        return Coded(*[math.nan] * 4)


def training_flops(sae: SAE[Any]) -> int:
    """Return the floating-point operations of training on one token.

        6 * number of weights in matrices

    A weight takes part in one multiplication and one addition in the forward pass, and twice as many in the backward pass (Kaplan et al.
    2020, arXiv 2001.08361). All products count as dense, also where a training step skips what is zero, and the update of the weights does not
    count.

    Args:
        sae: the SAE.
    """
    return 6 * sum(parameter.numel() for parameter in sae.parameters() if parameter.ndim > 1)
