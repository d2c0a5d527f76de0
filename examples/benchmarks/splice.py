"""What does it cost to run a language model with an MTSAE spliced in, against one with a standard SAE of the same number of features?

Two ways to splice: an edit at the hook with the error term kept (`HookedLM.splice`: encode, edit, add the change), and SAELens's own
`run_with_saes`, which replaces the activations by the reconstruction (encode and decode). The encoder of an MTSAE with K scales multiplies K
times as much. Random weights; the cost does not depend on them. Interleaved repeats in one process; medians of the ratios.

    python examples/benchmarks/splice.py [--model embedded] [--d-sae 1024 4096] [--repeats 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, StandardSAE, StandardSAEConfig

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model, resolve_hook
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice

Run = Callable[[], Any]


def make_saes(d_in: int, d_sae: int, k: int, hook_name: str, context_size: int) -> dict[str, SAE[Any]]:
    """Make one SAE of each kind, with features that fire rarely, as after training."""
    generator = torch.Generator().manual_seed(0)
    saes: dict[str, SAE[Any]] = {
        "standard": StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae)),
        "mtsae": MTSAE(MTSAEConfig(d_in=d_in, d_sae=d_sae, k=k, context_size=context_size)),
    }
    for sae in saes.values():
        with torch.no_grad():
            sae.W_dec.copy_(torch.nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1))
            sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=generator) / d_in**0.5)
            if isinstance(sae, MTSAE):
                sae.taps.copy_(torch.randn(sae.taps.shape, generator=generator))
        sae.cfg.metadata.hook_name = hook_name
        sae.cfg.metadata.context_size = context_size
    return saes


def runs(model: Any, saes: dict[str, SAE[Any]], cutter: ContextCutter, tokens: torch.Tensor) -> dict[str, Run]:
    """Return the forward passes to be compared, by name."""
    edit = FeatureEdit(tuple(range(16)), multiplier=2.0)
    found: dict[str, Run] = {"language model": lambda: model(tokens, prepend_bos=False)}
    for name, sae in saes.items():
        lm = HookedLM(model, Splice(sae), cutter)
        hook = lm.splice.hook(edit, lm.masked(tokens))
        found[f"{name}, edited"] = lambda hook=hook: model.run_with_hooks(tokens, fwd_hooks=[hook], prepend_bos=False)
        found[f"{name}, run_with_saes"] = lambda sae=sae: model.run_with_saes(tokens, saes=[sae], prepend_bos=False)
    return found


@torch.no_grad()
def measure(found: dict[str, Run], repeats: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, list[float]]:
    """Return the seconds of every run, taken in turn; the first round is thrown away."""
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for repeat in range(repeats + 1):
        for name, run in found.items():
            start = clock()
            run()
            if repeat:
                seconds[name].append(clock() - start)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, to: str) -> float:
    """Return the median of the ratios of interleaved repeats."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[to], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded", help="a name or a local folder")
    parser.add_argument("--hook-name", help="by default the middle residual stream")
    parser.add_argument("--d-sae", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--contexts", type=int, default=16)
    parser.add_argument("--context-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--processor-time", action="store_true", help="measure this instead, beside other busy processes")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    model: Any = load_language_model(arguments.model)
    hook_name = arguments.hook_name or f"blocks.{model.cfg.n_layers // 2}.hook_resid_post"
    d_in = resolve_hook(model, hook_name)
    cutter = ContextCutter(model.tokenizer, arguments.context_size)
    shape = (arguments.contexts, arguments.context_size)
    tokens = torch.randint(5, model.cfg.d_vocab, shape, generator=torch.Generator().manual_seed(0))
    rows = []
    for d_sae in arguments.d_sae:
        saes = make_saes(d_in, d_sae, arguments.k, hook_name, arguments.context_size)
        seconds = measure(runs(model, saes, cutter, tokens), arguments.repeats, clock)
        row: dict[str, Any] = {"d_sae": d_sae, "seconds": {name: statistics.median(s) for name, s in seconds.items()}}
        for way in ("edited", "run_with_saes"):
            row[way] = {
                "mtsae_to_standard": ratio(seconds, f"mtsae, {way}", f"standard, {way}"),
                **{f"{name}_to_model": ratio(seconds, f"{name}, {way}", "language model") for name in saes},
            }
        rows.append(row)
        for way in ("edited", "run_with_saes"):
            cells = ", ".join(f"{name} {value:.2f}" for name, value in row[way].items())
            print(f"d_sae {d_sae:,}, {way}: {cells}")
    result = {
        "model": Path(arguments.model).name,
        "hook_name": hook_name,
        "d_in": d_in,
        "k": arguments.k,
        "tokens": tokens.numel(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "rows": rows,
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
