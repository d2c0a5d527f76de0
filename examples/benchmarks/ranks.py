"""How much faster do several ranks train an SAE than one process with the same batches?

Each way trains the same SAE once in every repeat, in separate processes with one torch thread each, which have the language model already. A
time is that of the slowest rank, from joining the others to the saved SAE. `efficiency` is the time of one rank over `n` times that of `n`
ranks: 1 where each rank has a core to itself and nothing is lost. `work` is the same ratio of processor seconds, which says how evenly work is
divided, also where other programs use the cores; waiting for other ranks is not in it. The weights must be the same up to rounding.

    python examples/benchmarks/ranks.py [--ranks 2] [--model DIR --hook-name HOOK] [--architecture topk] [--cached]
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from timed_trainings import add_options, make_cache_settings, make_settings, print_row, write_results

from mtsae_lens.commands.cache import run_cache
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.ranks import joined_ranks
from mtsae_lens.training.recipe import train_sae
from mtsae_lens.training.settings import TrainSettings


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--cached", action="store_true", help="train from a cache, without the language model")
    add_options(parser, "mtsae", 2048, "runs/benchmarks/ranks.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_language_model(args.model)
    times: dict[int, list[tuple[float, float]]] = {1: [], args.ranks: []}
    differences = []
    with tempfile.TemporaryDirectory(prefix="mtsae-ranks-") as name:
        folder, cache = Path(name), None
        if args.cached:
            cache = folder / "cache"
            run_cache(make_cache_settings(args, cache), model)
        for repeat in range(args.repeats):
            for n in times if repeat % 2 == 0 else reversed(times):
                settings = make_settings(args, folder / f"{n}-{repeat}", cache=cache)
                times[n].append(train_on_ranks(n, settings, model))
            differences.append(difference(folder / f"{args.ranks}-{repeat}", folder / f"1-{repeat}"))
    for n, found in times.items():
        print_row(f"{n} ranks, s", [seconds for seconds, _ in found])
    ratios = {}
    for place, name in enumerate(("efficiency", "work")):
        pairs = zip(times[1], times[args.ranks], strict=True)
        ratios[name] = [one[place] / (args.ranks * several[place]) for one, several in pairs]
        print_row(name, ratios[name])
    print(f"| largest difference of the weights | {max(differences):.1e} |")
    content = {
        "seconds and processor seconds": times,
        "ratios": ratios,
        "differences": differences,
        "load": os.getloadavg(),
    }
    write_results(args, content)


if __name__ == "__main__":
    main()
