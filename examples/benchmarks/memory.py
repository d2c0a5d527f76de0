"""How much memory do evaluation, the effects of edits and attribution take, and does it grow with the vocabulary?

Each piece of work runs in a fresh process on a small random language model: the peak of its resident memory less what stood in memory before
the work began (libraries, model, SAE). With `--whole` the same work computes all logits of a batch at once.

    python examples/benchmarks/memory.py [--vocabularies 8192 65536 262144] [--whole] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens import HookedSAETransformer
from transformer_lens import HookedTransformerConfig
from transformers import AutoTokenizer

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.assets import embedded_model_dir
from mtsae_lens.data import lazy_logits
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.evaluation.fidelity import evaluate_fidelity
from mtsae_lens.splice.attribution import loss_change
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM, fit_batch
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.finetuning.batches import Batch
from mtsae_lens.unlearning.finetuning.losses import mean_nll
from mtsae_lens.unlearning.measures.effects import measure_edits

CONTEXT_SIZE, BATCH_SIZE = 128, 8
WORK = ("evaluate", "effects", "attribution", "finetuning")


def resident_bytes(field: str) -> int:
    """Return the resident memory of this process in bytes: `VmRSS` now, `VmHWM` at its peak (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")))


def forget_peak() -> None:
    """Let the peak begin anew, so that loading a model does not count."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def open_random(d_vocab: int, n_contexts: int) -> tuple[HookedLM, TokenTable]:
    """Make a random language model of this vocabulary with a random MTSAE, and a table of random tokens."""
    cfg = HookedTransformerConfig(
        n_layers=4, d_model=128, d_head=32, n_ctx=CONTEXT_SIZE, d_vocab=d_vocab, act_fn="gelu", model_name="random", seed=0
    )
    model = HookedSAETransformer(cfg).eval().requires_grad_(False)
    sae = MTSAE(MTSAEConfig(d_in=128, d_sae=1024, k=32, context_size=CONTEXT_SIZE))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(sae.W_enc.shape, generator=generator))
        sae.W_dec.copy_(torch.randn(sae.W_dec.shape, generator=generator))
    sae.cfg.metadata.hook_name = "blocks.1.hook_resid_post"
    cutter = ContextCutter(AutoTokenizer.from_pretrained(embedded_model_dir("embedded")), CONTEXT_SIZE)
    tokens = torch.randint(5, d_vocab, (n_contexts, CONTEXT_SIZE), generator=generator)
    table = TokenTable("random", tokens, tuple(f"document {row}" for row in range(n_contexts)))
    return fit_batch(HookedLM(model, Splice(sae), cutter, BATCH_SIZE)), table


def prepare(work: str, lm: HookedLM, table: TokenTable) -> Callable[[], Any]:
    """Return a piece of work, ready to run."""
    if work == "evaluate":
        return lambda: evaluate_fidelity(lm.sae, lm.model, lm.cutter, table, batch_size=BATCH_SIZE)
    if work == "effects":
        return lambda: measure_edits(lm, table, [FeatureEdit((1, 2, 3), 2.0), FeatureEdit((4, 5), 0.0)])
    if work == "attribution":
        return lambda: loss_change(lm, table)
    lm.model.requires_grad_(True)
    lm.model.embed.requires_grad_(False)  # the gradient of the weights is as large as they are, whatever the logits take
    lm.model.unembed.requires_grad_(False)
    return lambda: mean_nll(lm.model, Batch(table.tokens, table.counted(lm.cutter))).backward()


def run_work(work: str, d_vocab: int, n_contexts: int, *, whole: bool) -> dict[str, float]:
    """Do a piece of work in this process, and return what it took."""
    torch.set_num_threads(1)
    if whole:
        lazy_logits.CHUNK_BYTES = lazy_logits.REMEMBERED_BYTES = 2**62
    lm, table = open_random(d_vocab, n_contexts)
    ready = prepare(work, lm, table)
    forget_peak()
    before, start = resident_bytes("VmRSS"), time.perf_counter()
    ready()
    return {"before": before, "beyond": resident_bytes("VmHWM") - before, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[8_192, 65_536, 262_144])
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK)
    parser.add_argument("--contexts", type=int, default=8, help="of 128 tokens each")
    parser.add_argument("--whole", action="store_true", help="compute all logits of a batch at once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(run_work(arguments.work[0], arguments.vocabularies[0], arguments.contexts, whole=arguments.whole)))
        return
    rows = []
    for d_vocab in arguments.vocabularies:
        for work in arguments.work:
            command = [sys.executable, __file__, "--child", "--work", work, "--vocabularies", str(d_vocab)]
            command += ["--contexts", str(arguments.contexts)]
            done = subprocess.run(command + ["--whole"] * arguments.whole, check=True, capture_output=True, text=True)
            row = {
                "work": work,
                "d_vocab": d_vocab,
                "tokens": CONTEXT_SIZE * arguments.contexts,
                "whole": arguments.whole,
            } | json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print(
                f"{work}, vocabulary {d_vocab:,}: {row['beyond'] / 1e6:,.0f} MB beyond {row['before'] / 1e6:,.0f} MB",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
