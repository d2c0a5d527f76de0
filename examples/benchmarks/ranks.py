"""How much faster do several ranks train an SAE than one process with the same batches?

Each way trains the same SAE once in every repeat, in processes of its own with one torch thread each, which have the language model already. A
time is that of the slowest rank, from joining the others to the saved SAE. `efficiency` is the time of one rank over `n` times that of `n`
ranks: 1 where each rank has a core of its own and nothing is lost. `work` is the same ratio of processor seconds, which says how evenly work is
divided, also where other programs use the cores; waiting for other ranks is not in it. The weights must be the same up to rounding.

    python examples/benchmarks/ranks.py [--ranks 2] [--model DIR --hook-name HOOK] [--architecture topk] [--cached]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mtsae_lens.commands.cache import run_cache
from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.ranks import joined_ranks
from mtsae_lens.training.recipe import train_sae
from mtsae_lens.training.settings import TrainSettings


def make_settings(args: argparse.Namespace, out: Path, cache: Path | None) -> TrainSettings:
    return TrainSettings(
        model=args.model,
        hook_name=args.hook_name,
        dataset=args.dataset,
        cache=cache,
        architecture=args.architecture,
        d_sae=args.d_sae,
        training_tokens=args.tokens,
        batch_size_tokens=args.batch_size_tokens,
        checkpoint_every_n_steps=10**6,
        log_every_n_steps=100,
        sae={"k": args.k},
        out=out,
    )


def train_on_ranks(n: int, settings: TrainSettings, model: Any) -> tuple[float, float]:
    """Train on some ranks, each a fork of this process; returns the seconds and the processor seconds of the slowest one."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        port = opened.getsockname()[1]
    context = multiprocessing.get_context("fork")
    times = context.SimpleQueue()

    def work(rank: int) -> None:
        torch.set_num_threads(1)
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in numbers.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "TQDM_DISABLE": "1", "TOKENIZERS_PARALLELISM": "false"}
        start, start_cpu = time.perf_counter(), time.process_time()
        with joined_ranks():
            train_sae(settings, model)
        times.put((time.perf_counter() - start, time.process_time() - start_cpu))

    processes = [context.Process(target=work, args=(rank,)) for rank in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit(f"a rank of {n} failed")
    seconds, cpu_seconds = zip(*(times.get() for _ in processes), strict=True)
    return max(seconds), max(cpu_seconds)


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of two SAEs, relative to the largest weight of each tensor."""
    ours, theirs = (load_file(path / "sae_weights.safetensors") for path in (one, other))
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max().clamp(min=1e-6)) for name in ours)


def summary(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--hook-name", default="blocks.3.hook_resid_post")
    parser.add_argument("--dataset", default="embedded")
    parser.add_argument("--architecture", default="mtsae")
    parser.add_argument("--cached", action="store_true", help="train from a cache, without the language model")
    parser.add_argument("--tokens", type=int, default=163_840)
    parser.add_argument("--batch-size-tokens", type=int, default=2048)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/ranks.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_language_model(args.model)
    times: dict[int, list[tuple[float, float]]] = {1: [], args.ranks: []}
    differences = []
    with tempfile.TemporaryDirectory(prefix="mtsae-ranks-") as name:
        folder, cache = Path(name), None
        if args.cached:
            cache = folder / "cache"
            wanted = {"model": args.model, "hook_name": (args.hook_name,), "dataset": args.dataset}
            run_cache(CacheSettings(**wanted, n_tokens=args.tokens, out=cache), model)
        for repeat in range(args.repeats):
            for n in times if repeat % 2 == 0 else reversed(times):
                settings = make_settings(args, folder / f"{n}-{repeat}", cache)
                times[n].append(train_on_ranks(n, settings, model))
            differences.append(difference(folder / f"{args.ranks}-{repeat}", folder / f"1-{repeat}"))
    for n, found in times.items():
        print(f"| {n} ranks, s | {summary([seconds for seconds, _ in found])} |")
    ratios = {}
    for place, name in enumerate(("efficiency", "work")):
        pairs = zip(times[1], times[args.ranks], strict=True)
        ratios[name] = [one[place] / (args.ranks * several[place]) for one, several in pairs]
        print(f"| {name} | {summary(ratios[name])} |")
    print(f"| largest difference of the weights | {max(differences):.1e} |")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    content = {
        "settings": settings,
        "seconds and processor seconds": times,
        "ratios": ratios,
        "differences": differences,
        "load": os.getloadavg(),
    }
    args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
