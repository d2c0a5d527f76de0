"""How many tokens per second does training take, from text to SAE, beside SAELens's own runner?

The same configuration, model object, text, width, k and number of tokens for every way: SAELens's `LanguageModelSAETrainingRunner` with TopK;
ours live, with TopK and with MTSAEs; and ours from a cache of the activations (`mtsae cache`). A time is that of `runner.run()`; loading the
model and writing the cache are not in it. Repeats are interleaved in one process; ratios are taken within a repeat, and their median is
printed with the lowest and the highest.

    python examples/benchmarks/end_to_end.py                                  # the embedded model
    python examples/benchmarks/end_to_end.py --model DIR --hook-name blocks.10.hook_resid_post    # a local Hugging Face folder
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    TopKTrainingSAEConfig,
)

from mtsae_lens import MTTrainingSAEConfig, SequenceSAETrainingRunner
from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data.documents import read_documents
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.training.options import TrainerOptions

REFERENCE = "SAELens, TopK"


SAES: dict[str, dict[str, Any] | None] = {
    "TopK": None,
    "MTSAE": {},
    "MTSAE, context_rank 64": {"context_rank": 64},
}
"""Settings of the MTSAEs that are trained; None for SAELens's own class."""


def sae_config(args: argparse.Namespace, name: str, d_in: int) -> Any:
    shared = {"d_in": d_in, "d_sae": args.d_sae, "k": args.k, "normalize_activations": "expected_average_only_in"}
    settings = SAES[name]
    if settings is None:
        return TopKTrainingSAEConfig(**shared)
    return MTTrainingSAEConfig(**shared, context_size=args.context_size, **settings)


def runner_config(args: argparse.Namespace, name: str, d_in: int, **changes: Any) -> LanguageModelSAERunnerConfig[Any]:
    values: dict[str, Any] = {
        "sae": sae_config(args, name, d_in),
        "model_name": args.model,
        "hook_name": args.hook_name,
        "dataset_path": args.dataset,
        "context_size": args.context_size,
        "training_tokens": args.tokens,
        "train_batch_size_tokens": args.batch_size_tokens,
        "store_batch_size_prompts": 32,
        "n_batches_in_buffer": 20,
        "n_batches_for_norm_estimate": 1,  # SAELens reads these batches besides the text, which in a short run would weigh too much
        "lr": 1e-3,
        "lr_warm_up_steps": 0,
        "checkpoint_path": None,
        "output_path": None,
        "exclude_special_tokens": True,
        "logger": LoggingConfig(log_to_wandb=False),
        "verbose": False,
    }
    return LanguageModelSAERunnerConfig(**(values | changes))


def ways(args: argparse.Namespace, model: Any, cache: Path) -> dict[str, Callable[[], Callable[[], Any]]]:
    """By the name of a way, a function that prepares a run and returns what is timed."""
    d_in = resolve_hook(model, args.hook_name)
    rows = Dataset.from_list([{"text": document.text} for document in read_documents(args.dataset, "train")])
    options = TrainerOptions(log_every_n_steps=100)

    def saelens() -> Callable[[], Any]:
        return LanguageModelSAETrainingRunner(
            runner_config(args, "TopK", d_in), override_dataset=rows, override_model=model
        ).run

    def ours(sae: str, *, cached: bool, prefetch: bool = False) -> Callable[[], Any]:
        changes = {"use_cached_activations": True, "cached_activations_path": str(cache)} if cached else {}
        cfg = runner_config(args, sae, d_in, prefetch_llm_batches=prefetch, **changes)
        return SequenceSAETrainingRunner(cfg, override_model=None if cached else model, options=options).run

    return {
        REFERENCE: saelens,
        "ours live, TopK, prefetch": lambda: ours("TopK", cached=False, prefetch=True),
        "ours from a cache, TopK, prefetch": lambda: ours("TopK", cached=True, prefetch=True),
        **{f"ours live, {sae}": partial(ours, sae, cached=False) for sae in SAES},
        **{f"ours from a cache, {sae}": partial(ours, sae, cached=True) for sae in SAES},
    }


def measure(args: argparse.Namespace, model: Any, cache: Path) -> dict[str, list[float]]:
    """Tokens per second of every way and repeat."""
    speeds: dict[str, list[float]] = {name: [] for name in ways(args, model, cache)}
    clock = time.process_time if args.processor_time else time.perf_counter
    for _ in range(args.repeats):
        for name, prepare in ways(args, model, cache).items():
            run = prepare()
            start = clock()
            run()
            speeds[name].append(args.tokens / (clock() - start))
            print(f"{name}: {speeds[name][-1]:,.0f} tokens/s", flush=True)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--hook-name", default="blocks.3.hook_resid_post")
    parser.add_argument("--dataset", default="embedded")
    parser.add_argument("--tokens", type=int, default=163_840)
    parser.add_argument("--context-size", type=int, default=128)
    parser.add_argument("--batch-size-tokens", type=int, default=1024)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="measure this instead, beside other busy processes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/end_to_end.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_language_model(args.model)
    with tempfile.TemporaryDirectory(prefix="mtsae-cache-") as folder:
        cache = Path(folder) / "cache"
        settings = CacheSettings(
            model=args.model,
            hook_name=(args.hook_name,),
            dataset=args.dataset,
            n_tokens=args.tokens,
            context_size=args.context_size,
            out=cache,
        )
        run_cache(settings, model)
        speeds = measure(args, model, cache)
    results = {}
    for name, found in speeds.items():
        ratios = [one / other for one, other in zip(found, speeds[REFERENCE], strict=True)]
        results[name] = {
            "tokens_per_second": statistics.median(found),
            "ratio_to_saelens": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        print(
            f"| {name} | {statistics.median(found):,.0f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings_used = {name: str(value) for name, value in vars(args).items() if name != "out"}
    args.out.write_text(json.dumps({"settings": settings_used, "results": results, "all": speeds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
