"""Measure how outlier dimensions affect training, by the start of `b_dec`: explained variance and live features on held-out rows.

    python examples/benchmarks/outlier_dimensions.py --out runs/outlier_dimensions.json

There are three streams of planted features (`mtsae_lens.data.planted`): without outliers; with outlier dimensions, which are a few dimensions
with a huge constant mean and a large variance, as in Gemma (`mtsae_lens.data.outliers`); and with outlier dimensions and 1% of outlier
tokens, whose activations are ten times as long. MTSAE and TopK are trained in this package, with `b_dec` starting at zero, at the mean and
at the geometric median. TopK is also trained in SAELens's own trainer. All are trained on the same rows. It takes about three minutes on one
core, and the same seed gives the same numbers.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from sae_lens import LoggingConfig, TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainingSAE
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.data.blocks import Block, SequenceBlocks
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.outliers import OutlierBlocks
from mtsae_lens.data.planted import PlantedBlocks, PlantedConfig, PlantedFeatures
from mtsae_lens.sae.collapse import firing_counts
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.start import RowStatistics

D_SAE, K, LR, BATCH_SIZE_SEQUENCES = 128, 8, 3e-3, 16
N_START_BATCHES = 20
HELD_OUT_BLOCK = 100_000


@dataclass(frozen=True)
class OutlierTokens(SequenceBlocks):
    """A stream in which every hundredth position, at random, is ten times as long."""

    stream: SequenceBlocks

    def __post_init__(self) -> None:
        for name in ("batch_size_sequences", "block_size_batches", "seed"):
            object.__setattr__(self, name, getattr(self.stream, name))

    def blocks(self, first: int) -> Iterator[Block]:
        """See `SequenceBlocks.blocks`."""
        for block in self.stream.blocks(first):
            chosen = torch.rand(block.masked.shape, generator=self.generator(-1 - block.number)) < 0.01
            yield replace(block, h=torch.where(chosen.unsqueeze(-1), 10 * block.h, block.h))


def geometric_median(rows: Tensor, n_iterations: int = 100) -> Tensor:
    """Find the point with the least sum of distances to the rows (Weiszfeld's iteration)."""
    median = rows.mean(dim=0)
    for _ in range(n_iterations):
        weights = 1 / (rows - median).norm(dim=-1, keepdim=True).clamp(min=1e-9)
        median = (weights * rows).sum(dim=0) / weights.sum()
    return median


def make_sae(architecture: str, features: PlantedFeatures, seed: int) -> TrainingSAE[Any]:
    """A fresh SAE."""
    cfg = features.cfg
    shared: dict[str, Any] = {
        "d_in": cfg.d_in,
        "d_sae": D_SAE,
        "k": K,
        "normalize_activations": "expected_average_only_in",
    }
    torch.manual_seed(seed)
    if architecture == "topk":
        return TopKTrainingSAE(TopKTrainingSAEConfig(**shared))
    return MTTrainingSAE(MTTrainingSAEConfig(context_size=cfg.context_size, **shared))


def train_here(sae: TrainingSAE[Any], stream: SequenceBlocks, start: str, n_steps: int, n_positions: int) -> None:
    """Train in this package."""
    if start == "geometric median":
        rows = list(islice(stream.mixed(), N_START_BATCHES))
        statistics = RowStatistics.of(rows, sae.cfg.d_in)
        # a b_dec that is not zero is kept
        sae.b_dec.data = geometric_median(torch.cat(rows)) * sae.cfg.d_in**0.5 / statistics.mean_norm
    options = TrainerOptions(b_dec_init="zeros" if start == "zeros" else "mean", log_every_n_steps=n_steps)
    schedule = {"lr": LR, "lr_warm_up_steps": n_steps // 20, "lr_end": LR / 20}
    fit(sae, stream, n_steps=n_steps, batch_size_tokens=n_positions, **schedule, options=options)


def train_in_saelens(sae: TrainingSAE[Any], stream: SequenceBlocks, n_steps: int, n_positions: int) -> None:
    """Train in SAELens's own trainer, on the same rows."""
    cfg = SAETrainerConfig(
        n_checkpoints=0,
        checkpoint_path=None,
        save_final_checkpoint=False,
        total_training_samples=n_steps * n_positions,
        device="cpu",
        autocast=False,
        lr=LR,
        lr_end=LR / 20,
        lr_scheduler_name="cosineannealing",
        lr_warm_up_steps=n_steps // 20,
        adam_beta1=0.9,
        adam_beta2=0.999,
        lr_decay_steps=0,
        n_restart_cycles=1,
        train_batch_size_samples=n_positions,
        dead_feature_window=1000,
        feature_sampling_window=2000,
        logger=LoggingConfig(log_to_wandb=False),
        n_batches_for_norm_estimate=N_START_BATCHES,
    )
    SAETrainer(cfg, sae, stream.mixed()).fit()


@torch.no_grad()
def measure(sae: TrainingSAE[Any], stream: SequenceBlocks) -> dict[str, Any]:
    """Explained variance, live and always-on features on rows that were not trained on."""
    block = next(stream.blocks(HELD_OUT_BLOCK))
    h, kept = zero_rows(block.h, block.masked), ~block.masked.flatten()
    feature_acts = sae.encode(h if isinstance(sae, MTTrainingSAE) else h.flatten(0, 1))
    rows, found = h.flatten(0, 1)[kept], sae.decode(feature_acts).reshape(-1, h.shape[-1])[kept]
    error, variance = (rows - found).pow(2).sum(), (rows - rows.mean(dim=0)).pow(2).sum()
    counts = firing_counts((feature_acts.reshape(-1, D_SAE)[kept] != 0).float().mean(dim=0))
    return {
        "explained_variance": 1 - (error / variance).item(),
        "live": 1 - counts.n_silent / D_SAE,
        "always_on": counts.n_always_on,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/outlier_dimensions.json"))
    parser.add_argument("--n-steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)

    features = PlantedFeatures(PlantedConfig(context_size=32, durations=(1, 4), lags=((1, 2), (2, 4))))
    plain = PlantedBlocks(features, BATCH_SIZE_SEQUENCES, block_size_batches=8, seed=options.seed)
    streams = {
        "plain": plain,
        "outlier dimensions": OutlierBlocks(plain),
        "and outlier tokens": OutlierTokens(OutlierBlocks(plain)),
    }
    n_positions = BATCH_SIZE_SEQUENCES * features.cfg.context_size
    ours = [(architecture, start) for architecture in ("mtsae", "topk") for start in ("zeros", "mean", "geometric median")]
    results = []
    print(
        f"{'stream':20s} {'trained in':10s} {'SAE':6s} {'b_dec starts at':17s} {'EV':>6s} {'live':>6s} {'always on (of 8)':>17s}"
    )
    for name, stream in streams.items():
        for trainer, architecture, start in [*(("here", *arm) for arm in ours), ("SAELens", "topk", "zeros")]:
            sae = make_sae(architecture, features, options.seed)
            if trainer == "here":
                train_here(sae, stream, start, options.n_steps, n_positions)
            else:
                train_in_saelens(sae, stream, options.n_steps, n_positions)
            row = {"stream": name, "trainer": trainer, "architecture": architecture, "start": start} | measure(sae, stream)
            results.append(row)
            print(
                f"{name:20s} {trainer:10s} {architecture:6s} {start:17s} {row['explained_variance']:6.3f} {row['live']:6.1%} "
                f"{row['always_on']:17d}",
                flush=True,
            )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"n_steps": options.n_steps, "seed": options.seed, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
