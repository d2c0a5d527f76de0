"""Compare initializations and normalizations on a language model: `python examples/initialization_ablation.py [OUT]`.

Trains each variant of the default MTSAE, and SAELens's TopK, on the same stored activations of the embedded model (1,170 steps of 512
tokens, 1,024 features, L0 32), three seeds each, and prints explained variance and dead features on held-out text. Finished training
runs are kept in OUT.
"""

import sys
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.data.blocks import StoredBlocks
from mtsae_lens.experiments.paper.measures import row_metrics
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.trials import run_trials

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "tap_init=far": {"tap_init": "far"},
    "tap_init=alike": {"tap_init": "alike"},
    "tap_init=conv": {"tap_init": "conv"},
    "context_gain=1": {"context_gain": 1.0},
    "scale_norm=none": {"scale_norm": "none"},
    "scale_norm=layer_norm": {"scale_norm": "layer_norm"},
    "no scale for the token alone": {"dilations": (1, 2, 4, 8)},
}
N_STEPS, BATCH_SIZE_SEQUENCES, CONTEXT_SIZE, D_SAE, K, LR = 1_170, 4, 128, 1_024, 32, 3e-3
SEEDS = range(3)


@lru_cache(maxsize=1)
def activations() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    setup = PaperSetup.load("embedded", "blocks.3.hook_resid_post", "embedded", CONTEXT_SIZE)
    return setup.activations(setup.train_tokens(4_800)), setup.activations(setup.test_table(256).tokens)


def trial(name: str, seed: int) -> dict[str, Any]:
    (h_train, masked_train), test = activations()
    shared = {"d_in": h_train.shape[-1], "d_sae": D_SAE, "k": K, "normalize_activations": "expected_average_only_in"}
    torch.manual_seed(seed)
    sae = (
        TopKTrainingSAE(TopKTrainingSAEConfig(**shared))
        if name == "SAELens topk"
        else MTTrainingSAE(MTTrainingSAEConfig(**shared, **VARIANTS[name]))
    )
    stream = StoredBlocks(h_train, BATCH_SIZE_SEQUENCES, block_size_batches=64, seed=seed, masked=masked_train)
    size = BATCH_SIZE_SEQUENCES * CONTEXT_SIZE
    schedule = {"n_steps": N_STEPS, "lr": LR, "lr_warm_up_steps": N_STEPS // 20, "lr_end": LR / 20}
    fit(sae, stream, batch_size_tokens=size, **schedule, options=TrainerOptions(b_dec_init="zeros"))
    return row_metrics(sae, *test)


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/initialization")
    names = [*VARIANTS, "SAELens topk"]
    trials = {f"{name}/seed_{seed}": partial(trial, name, seed) for name in names for seed in SEEDS}
    settings = {"n_steps": N_STEPS, "d_sae": D_SAE, "k": K, "lr": LR, "variants": VARIANTS}
    results = run_trials(out, settings, trials, "Initialisation", n_workers=2)
    for name in names:
        rows = [results[f"{name}/seed_{seed}"] for seed in SEEDS]
        scores = ", ".join(f"{row['explained_variance']:.4f}" for row in rows)
        print(f"{name:30s} explained variance {scores}; dead features {', '.join(str(row['dead_features']) for row in rows)}")
