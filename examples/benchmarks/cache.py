"""What does a cache cost, and what do several SAEs in one pass cost?

Times, each taken once in every repeat, in one process:

- `pass`: the language model reads the text to the hook, and nothing else;
- `write`: `mtsae cache`, which is a pass and the writing of its activations;
- `read`: all blocks of the cache, checked and put together; the files are in the page cache of the system;
- `memory`: N SAEs, one after another, trained on activations that are in memory;
- `alone`: N SAEs, one after another, each with a separate pass;
- `together`: N SAEs in one pass of the language model; `together, cached`: in one pass of the cache.

`together` should cost at most 1.5 times (`pass` + `memory`).

    python examples/benchmarks/cache.py [--model DIR --hook-name HOOK] [--architecture topk]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAE
from timed_trainings import add_options, make_cache_settings, make_settings, print_row, write_results

from mtsae_lens.commands.cache import run_cache
from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.blocks import Block, StoredBlocks
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.training.fit import fit
from mtsae_lens.training.recipe import make_runner, runner_config, train_sae
from mtsae_lens.training.settings import TrainSettings
from mtsae_lens.training.several import train_saes

N_SAES = 4


def trainings(args: argparse.Namespace, out: Path, **changes: Any) -> list[TrainSettings]:
    """SAEs of four values of k on the same text."""
    return [make_settings(args, out / str(place), k=args.k + place, **changes) for place in range(N_SAES)]


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def from_memory(settings: list[TrainSettings], blocks: list[Block]) -> None:
    h, masked = torch.cat([block.h for block in blocks]), torch.cat([block.masked for block in blocks])
    blocks.clear()
    for each in settings:
        cfg = runner_config(each, h.shape[-1])
        n_sequences = each.batch_size_tokens // each.context_size
        stream = StoredBlocks(h, n_sequences, each.buffer_size_sequences // n_sequences, masked=masked)
        sae = TrainingSAE.from_dict(cfg.sae.to_dict())
        fit(sae, stream, n_steps=cfg.total_training_steps, batch_size_tokens=each.batch_size_tokens, lr=cfg.lr)


def read_all(cache: Path, hook_name: str) -> None:
    opened = ActivationCache.open(cache)
    stream = opened.stream(hook_name, 8, block_size_batches=80)
    n_blocks = -(-opened.contents.n_contexts // 640)
    for block in stream.blocks(0):
        if block.number == n_blocks - 1:
            break


def measure(args: argparse.Namespace, model: Any, folder: Path) -> dict[str, float]:
    """Seconds of every part, once."""
    cache, settings = folder / "cache", trainings(args, folder / "live")
    found: dict[str, float] = {}
    runner = make_runner(trainings(args, folder / "pass")[0], model)
    blocks: list[Block] = []
    found["pass"] = seconds(lambda: blocks.extend(runner.stream.blocks(0)))
    found["memory"] = seconds(partial(from_memory, settings, blocks))
    found["together"] = seconds(lambda: train_saes(trainings(args, folder / "together"), model))
    found["alone"] = seconds(lambda: [train_sae(each, model) for each in settings])
    found["write"] = seconds(lambda: run_cache(make_cache_settings(args, cache), model))
    found["read"] = seconds(lambda: read_all(cache, args.hook_name))
    found["together, cached"] = seconds(lambda: train_saes(trainings(args, folder / "cached", cache=cache)))
    found["together, prefetch"] = seconds(lambda: train_saes(trainings(args, folder / "prefetch", prefetch=True), model))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "topk", 1024, "runs/benchmarks/cache.json")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_language_model(args.model)
    times: dict[str, list[float]] = {}
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory(prefix="mtsae-cache-") as folder:
            for name, value in measure(args, model, Path(folder)).items():
                times.setdefault(name, []).append(value)
    ratios = {
        "together / (pass + memory)": ("together", ("pass", "memory")),
        "together, prefetch / (pass + memory)": ("together, prefetch", ("pass", "memory")),
        "together / alone": ("together", ("alone",)),
        "together, cached / alone": ("together, cached", ("alone",)),
        "write / pass": ("write", ("pass",)),
        "read / pass": ("read", ("pass",)),
    }
    results = {}
    for name, (above, below) in ratios.items():
        found = [times[above][r] / sum(times[part][r] for part in below) for r in range(args.repeats)]
        results[name] = {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}
        print_row(name, found)
    write_results(args, {"ratios": results, "seconds": times})


if __name__ == "__main__":
    main()
