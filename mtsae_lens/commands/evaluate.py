"""Measure an SAE on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from mtsae_lens.commands.loading import open_sae
from mtsae_lens.commands.settings import Settings
from mtsae_lens.data.contexts import read_tokens
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.files import prepare_output_dir
from mtsae_lens.records import Stopwatch, provenance, write_metrics
from mtsae_lens.reporting.page import Section, Table, write_report

METRIC_MEANINGS: dict[str, str] = {
    "explained_variance": "centred R^2 of the reconstruction; 1 is perfect, 0 as good as the mean",
    "l0": "features active at a token; the price of the reconstruction",
    "l1": "sum of feature activations at a token",
    "mse": "squared error summed over dimensions; 0 is perfect",
    "cossim": "cosine of activation and reconstruction; 1 is perfect",
    "ce_loss_score": "share of the model's loss recovered against zero ablation; 1 is perfect, 0 as bad as zeros",
    "ce_loss_without_sae": "the model's own loss, nats per token",
    "ce_loss_with_sae": "its loss through the reconstruction",
    "ce_loss_with_ablation": "its loss with the activations set to zero",
    "kl_div_score": "the same share for KL divergence; 1 is perfect",
    "kl_div_with_sae": "KL of the model and the model through the reconstruction, nats",
    "kl_div_with_ablation": "KL of the model and the model with zeros",
    "l2_ratio": "norm of the reconstruction over norm of the activation; 1 is unbiased",
    "relative_reconstruction_bias": "shrinkage; 1 is unbiased, below 1 shrinks",
    "dead_features": "features that fire on none of the tokens; 0 is best",
    "n_features": "features in all",
    "n_tokens": "tokens measured on",
    "future_leak": "share of activation that depends on later tokens; 0 is causal",
}


class EvaluateSettings(Settings):
    """Settings of `mtsae evaluate`."""

    sae: Path
    out: Path
    dataset: str | None = None
    """Held-out text; None for the dataset it was trained on. The split `test` is read."""
    model: str | None = None
    n_contexts: int = Field(512, gt=0)
    batch_size: int = Field(16, gt=0)
    seed: int = Field(0, ge=0, lt=2**32)
    device: str = "cpu"


def metrics_table(columns: dict[str, dict[str, float]]) -> Table:
    """One column of metrics per SAE, with what each means."""
    names = [name for name in METRIC_MEANINGS if any(name in column for column in columns.values())]
    rows = [[name, *(column.get(name) for column in columns.values()), METRIC_MEANINGS[name]] for name in names]
    return Table(["metric", *columns, "meaning"], rows)


def run_evaluate(settings: EvaluateSettings) -> dict[str, Any]:
    """Measure, and write `metrics.json` (keys: `METRIC_MEANINGS`, and `provenance`) and `report.html`."""
    watch = Stopwatch()
    prepare_output_dir(settings.out)
    lm, model = open_sae(settings.sae, model=settings.model, device=settings.device, batch_size=settings.batch_size)
    dataset = settings.dataset or lm.sae.cfg.metadata.dataset_path or "embedded"
    table = read_tokens(dataset, "test", lm.cutter, settings.n_contexts, seed=settings.seed)
    measured = evaluate_fidelity(lm.sae, model, lm.cutter, table, batch_size=settings.batch_size)
    made = provenance(settings.seed, watch.seconds, settings.model_dump(mode="json"))
    write_metrics(settings.out, {**measured, "provenance": made})
    text = f"SAELens's run_evals on {measured['n_tokens']:,.0f} held-out tokens of {dataset}, special tokens left out."
    sections = [Section("Fidelity", text, table=metrics_table({lm.sae.cfg.architecture(): measured}))]
    write_report(
        settings.out, "Evaluation", f"{settings.sae}: {lm.sae.cfg.architecture()} at {lm.splice.hook_name}.", sections, made
    )
    return measured
