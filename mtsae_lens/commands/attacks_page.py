"""What attacks brought back, as tables and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtsae_lens.benchmark.attack_cell import FILLER_SHARE
from mtsae_lens.reporting.benchmark_figures import relearning_curves
from mtsae_lens.reporting.page import Section, Table


def attack_sections(
    name: str, attacked: Mapping[str, Mapping[str, Any]], reference: Mapping[str, Any] | None, clean: float
) -> list[Section]:
    """Attacks on every method, and on the model that never saw the text: it shows how fast the text itself teaches.

    Args:
        name: of the task.
        attacked: by method.
        reference: result of the reference's cell, if there is one.
        clean: loss on the forget text before unlearning, nats per token.
    """
    header = [
        "method",
        "after the edit",
        "4 bits",
        "8 bits",
        "diluted",
        "clean, diluted",
        "unseen template",
        "recall, unseen",
    ]
    rows, curves = [], {}
    everyone = dict(attacked) | ({"reference": reference["attacks"]} if reference and "attacks" in reference else {})
    for method, found in everyone.items():
        relearning = found["relearning"]
        first = next(iter(next(iter(relearning.values())).values()))[0]["nll"]
        unseen = found.get("unseen")
        rows.append(
            [
                method,
                *(f"{nll:.3f}" for nll in (first, found["quantisation"]["4"]["nll"], found["quantisation"]["8"]["nll"])),
                f"{found['dilution']['nll']:.3f}",
                f"{found['dilution']['nll_clean']:.3f}",
                f"{unseen['nll']:.3f}" if unseen else None,
                f"{100 * unseen['exact_recall']:.0f}%" if unseen else None,
            ]
        )
        for variant, by_size in relearning.items():
            largest = list(by_size)[-1]
            label = f"{method}, {variant}" if variant != "weights" else method
            curves[label] = by_size[largest]
    lead = (
        f"Loss on the forget text in nats per token (seed 0; before unlearning {clean:.3f}; lower means the knowledge is back). Removing the "
        f"hook gives back {clean:.3f} for every edit. Diluted: behind unrelated text that fills {FILLER_SHARE:.0%} of the context."
    )
    relearn = (
        "Finetuned on forget text by an attacker, with the hook in place or without it while learning; measured with it. The table has the "
        "lowest loss and the highest recall that the attacker reached at any step, by the number of documents learnt; the figure has the "
        "most documents."
    )
    return [
        Section(f"{name}: attacks", lead, Table(header, rows)),
        Section(f"{name}: relearning", relearn, _relearning_table(everyone), relearning_curves(curves, clean)),
    ]


def _relearning_table(attacked: Mapping[str, Mapping[str, Any]]) -> Table:
    """The least loss, over the attacker's steps, for every number of documents learnt, and the highest recall over all of them."""
    sizes = list(dict.fromkeys(size for found in attacked.values() for by in found["relearning"].values() for size in by))
    rows = []
    for method, found in attacked.items():
        for variant, by_size in found["relearning"].items():
            before = next(iter(by_size.values()))[0]["nll"]
            after = [min(point["nll"] for point in by_size[size]) if size in by_size else None for size in sizes]
            recall = max(point["exact_recall"] for points in by_size.values() for point in points)
            rows.append(
                [method, variant, *(None if nll is None else f"{nll:.3f}" for nll in (before, *after)), f"{100 * recall:.0f}%"]
            )
    learnt = (f"{size} documents" if size.isdigit() else f"half, asked the {size}" for size in sizes)
    return Table(["method", "attack", "before", *learnt, "highest exact recall"], rows)
