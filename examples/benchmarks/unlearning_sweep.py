"""Measure how much cheaper a sweep of edits is than running the whole model for each of them.

The baseline runs the whole model with a hook (encode, gate, edit, decode) on every context for every edit, and the clean model once for each
edit or once for all. `edit_losses` runs the model to the hook once, encodes once, reruns only the later layers for each edit, and skips
contexts that an edit does not change. Repeats are interleaved in one process, and the medians of the ratios are printed.

    python examples/benchmarks/unlearning_sweep.py SAE_FOLDER [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.gating import fit_gate, thresholds_at
from mtsae_lens.unlearning.measures.effects import edit_losses, model_losses

MULTIPLIERS = (0.0, 1.0, 2.0, 4.0)
SIZES = (4, 16, 64, 256)


def hooked(lm: HookedLM, edit: FeatureEdit) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits(tokens: torch.Tensor) -> torch.Tensor:
        return lm.model.run_with_hooks(tokens, fwd_hooks=[lm.splice.hook(edit, lm.masked(tokens))], prepend_bos=False)

    return logits


def naive(lm: HookedLM, table: TokenTable, edits: list[FeatureEdit]) -> list[float]:
    """One full evaluation of clean and hooked model for each edit."""
    return [
        loss.nll_delta for edit in edits for loss in model_losses([hooked(lm, edit)], lm.model, lm.cutter, table, lm.batch_size)
    ]


def clean_once(lm: HookedLM, table: TokenTable, edits: list[FeatureEdit]) -> list[float]:
    """One full evaluation of the hooked model for each edit, and one of the clean model."""
    losses = model_losses([hooked(lm, edit) for edit in edits], lm.model, lm.cutter, table, lm.batch_size)
    return [loss.nll_delta for loss in losses]


def ours(lm: HookedLM, table: TokenTable, edits: list[FeatureEdit]) -> list[float]:
    return [loss.nll_delta for loss in edit_losses(lm, table, edits)]


def seconds(run: Callable[..., list[float]], *args: object) -> tuple[float, list[float]]:
    start = time.perf_counter()
    found = run(*args)
    return time.perf_counter() - start, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae", type=Path)
    parser.add_argument("--forget", default="kjv")
    parser.add_argument("--retain", default="milton")
    parser.add_argument("--contexts", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    lm, _ = open_sae(args.sae, model=None, device="cpu", batch_size=16)
    tables = {name: read_tokens(name, "tune", lm.cutter, args.contexts) for name in (args.forget, args.retain)}
    select = [read_tokens(name, "select", lm.cutter, args.contexts) for name in tables]
    fitted = fit_gate(lm, select[0], select[1:], seed=0)
    (gate,) = thresholds_at(lm, fitted, [tables[args.retain]], [0.01])
    for name, chosen in (("always open", AlwaysOpen()), ("gated", gate)):
        edits = [FeatureEdit(tuple(range(n)), m, chosen) for n in SIZES for m in MULTIPLIERS]
        for corpus, table in tables.items():
            ratios: dict[str, list[float]] = {"naive": [], "clean model once": []}
            for _ in range(args.repeats):
                mine, fast = seconds(ours, lm, table, edits)
                for label, way in (("naive", naive), ("clean model once", clean_once)):
                    theirs, slow = seconds(way, lm, table, edits)
                    assert all(abs(one - other) < 1e-3 for one, other in zip(slow, fast, strict=True)), "not the same numbers"
                    ratios[label].append(mine / theirs)
            shown = ", ".join(
                f"{statistics.median(r):.3f} ({min(r):.3f} to {max(r):.3f}) of {label}" for label, r in ratios.items()
            )
            print(
                f"{name}, {corpus}: a sweep of {len(edits)} edits costs {shown}; {args.repeats} repeats, {len(table)} contexts"
            )


if __name__ == "__main__":
    main()
