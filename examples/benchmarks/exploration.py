"""Measure what exploring an SAE costs: the seconds of every part, and peak memory.

    python examples/benchmarks/exploration.py runs/wide --dataset embedded --split train --n-tokens 1000000

The pass over the text is measured on `--measured-tokens` tokens, and scaled up to `--n-tokens`. The time of the effects depends on the number
of features, not on the text. It is measured on all features, or on `--measured-features` of them.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mtsae_lens.exploration.ablation import measure_ablation
from mtsae_lens.exploration.cofiring import choose_sampling_interval
from mtsae_lens.exploration.columns import TokenTexts
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.example_table import get_encoder_biases, write_examples
from mtsae_lens.exploration.feature_table import Effects, write_features
from mtsae_lens.exploration.model_attribution import attribute_to_tokens
from mtsae_lens.exploration.peaks import find_strongest_peaks
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.exploration.text_table import write_texts
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.attribution import attribution


def timed(compute: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the clock, seconds of all cores, result."""
    clock, cores = time.perf_counter(), time.process_time()
    result = compute()
    return time.perf_counter() - clock, time.process_time() - cores, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", type=Path)
    parser.add_argument("--dataset", default="embedded")
    parser.add_argument("--split", default="train")
    parser.add_argument("--n-tokens", type=int, default=1_000_000)
    parser.add_argument("--measured-tokens", type=int, default=None)
    parser.add_argument("--measured-features", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--n-threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.n_threads)

    lm, _ = open_sae(options.sae, model=None, device="cpu", batch_size=options.batch_size)
    plan, d_sae = Plan(), lm.sae.cfg.d_sae
    measured_tokens = min(options.measured_tokens or options.n_tokens, options.n_tokens)
    corpora = Corpora((options.dataset,), options.split, lm.cutter, measured_tokens)
    survey = Survey(lm, plan, 1, choose_sampling_interval(options.n_tokens))

    def look() -> list[float]:
        seconds = []
        for batch in corpora.batches(lm.batch_size):
            start = time.process_time()
            survey.add(batch)
            seconds.append(time.process_time() - start)
        return seconds

    parts: dict[str, dict[str, float]] = {}

    def record(name: str, factor: float, compute: Callable[[], Any]) -> Any:
        clock, cores, result = timed(compute)
        parts[name] = {"seconds": clock * factor, "core_seconds": cores * factor}
        return result

    by_batch = record("pass", options.n_tokens / measured_tokens, look)
    state = options.sae / ".exploration-benchmark.safetensors"
    record("save", 1.0, lambda: survey.save(state))
    parts["save"]["megabytes"] = state.stat().st_size / 1e6
    state.unlink()
    n_features = options.measured_features or d_sae
    measured: dict[str, torch.Tensor] = {}
    for name, n, measure in (
        ("ablation", plan.n_ablated, lambda peaks: measure_ablation(lm, peaks)),
        ("model attribution", plan.n_attributed, lambda peaks: attribute_to_tokens(lm, peaks, plan.before, plan.after)),
    ):
        peaks = find_strongest_peaks(survey, n)
        chosen = peaks.rows((peaks.feature < n_features).nonzero().squeeze(1))
        values = record(name, d_sae / n_features, lambda measure=measure, chosen=chosen: measure(chosen))
        measured[name] = torch.full((d_sae, n, values.shape[1]), torch.nan)
        measured[name][chosen.feature, chosen.rank] = values
    (table,) = corpora.tables(plan.n_attribution_contexts)
    effects = Effects(measured["ablation"], record("attribution", 1.0, lambda: attribution(lm, table)).float().cpu())
    texts, bias = TokenTexts(lm.cutter.tokenizer, lm.model.cfg.d_vocab), get_encoder_biases(lm.sae)
    with TemporaryDirectory() as out:
        # co-firing features, decoder and nearest directions are found here
        record("features.parquet", 1.0, lambda: write_features(Path(out, "f"), survey, texts, effects))
        attributions = measured["model attribution"]
        record("examples.parquet", 1.0, lambda: write_examples(Path(out, "e"), survey, texts, attributions, bias))
        record("texts.parquet", 1.0, lambda: write_texts(Path(out, "t"), lm, [table], texts))
    total = {kind: sum(part[kind] for part in parts.values()) for kind in ("seconds", "core_seconds")}
    print(
        json.dumps(
            {
                "d_sae": d_sae,
                "n_tokens": options.n_tokens,
                "measured_tokens": int(survey.counts.n_tokens.sum()),
                "n_threads": options.n_threads,
                "parts": parts,
                "total": total,
                "core_seconds_first_batch": by_batch[0],
                "core_seconds_last_batch": by_batch[-1],
                "peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
