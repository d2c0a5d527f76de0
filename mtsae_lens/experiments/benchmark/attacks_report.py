"""Write the report's sections on what attacks brought back."""

from __future__ import annotations

from collections.abc import Mapping

from mtsae_lens.commands.recovery_report import recovery_section
from mtsae_lens.data.questions import is_question_source
from mtsae_lens.experiments.benchmark.attack_cell import FILLER_SHARE, RELEARNING
from mtsae_lens.experiments.benchmark.cells import Attacks
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.reporting.benchmark_figures import relearning_curves
from mtsae_lens.reporting.page import Section, Table

MAX_LOST = 0.5
"""If filler adds more nats than this to the clean model's loss, dilution does not test unlearning and is left out."""


def attack_sections(results: TaskResults) -> list[Section]:
    """Make the sections on attacks, for every method and for the reference, which shows how fast the text itself teaches.

    Args:
        results: results of one task.
    """
    name, reference, clean = results.name, results.reference, results.clean_nll
    unit = "people" if is_question_source(results.task.forget) else "documents"
    everyone = results.attacks | ({"reference": reference.attacks} if reference and reference.attacks else {})
    curves = {
        method: list(by_size.values())[-1]
        for method, found in everyone.items()
        for variant, by_size in found.relearning.items()
        if variant in ("hook in place", "weights")
    }
    n_steps = max(point.step for points in curves.values() for point in points)
    n = f"n: seed 0, {results.test_tokens[results.task.forget]:,} forget tokens."
    lead = (
        f"Loss on the forget text in nats per token, seed 0; {clean:.3f} before unlearning. A lower loss means that the attack brings the "
        f"knowledge back. Removing the hook gives {clean:.3f} for every edit. Diluted: after unrelated text that fills {FILLER_SHARE:.0%} "
        f"of the context, or less if a question needs more; not shown if that text raises the loss of the clean model by {MAX_LOST:g} nats "
        f"or more. {n}"
    )
    relearn = (
        f"An attacker finetunes the model on forget text for {n_steps} steps of {RELEARNING.batch_size} contexts at a learning rate of "
        f"{RELEARNING.lr:g}. The hook is in place or removed during finetuning, and in place for the measurement. The table has the lowest "
        f"loss and the highest recall at any step, by the number of {unit} in the finetuning text. The figure shows the largest number, "
        f"with the hook in place. {n}"
    )
    perturbed = {method: found.recovery for method, found in everyone.items() if found.recovery is not None}
    recovery = [recovery_section(f"{name}: perturbations at the hook, seed 0", perturbed)] if perturbed else []
    return [
        Section(f"{name}: attacks", lead, _attack_table(everyone, clean)),
        Section(f"{name}: relearning", relearn, _relearning_table(everyone, unit), relearning_curves(curves, clean)),
        *recovery,
    ]


_ATTACK_HEADER = "method|after the edit|4 bits|8 bits|diluted|clean, diluted|unseen template|recall, unseen".split("|")


def _attack_table(attacked: Mapping[str, Attacks], clean: float) -> Table:
    """Make the table of the loss after every attack but relearning; `clean` is the loss before unlearning, without an attack."""
    rows = []
    for method, found in attacked.items():
        first = next(iter(next(iter(found.relearning.values())).values()))[0].nll
        bits, dilution, unseen = found.quantization, found.dilution, found.unseen
        diluted = (dilution.nll, dilution.nll_clean) if dilution.nll_clean < clean + MAX_LOST else (None, None)
        losses = (first, bits["4"].nll, bits["8"].nll, *diluted)
        asked = (f"{unseen.nll:.3f}", f"{100 * unseen.exact_recall:.0f}%") if unseen else (None, None)
        rows.append([method, *(None if nll is None else f"{nll:.3f}" for nll in losses), *asked])
    return Table(_ATTACK_HEADER, rows)


def _relearning_table(attacked: Mapping[str, Attacks], unit: str) -> Table:
    """Make the table of the lowest loss over the attacker's steps, by number of documents, and of the highest recall."""
    sizes = list(dict.fromkeys(size for found in attacked.values() for by in found.relearning.values() for size in by))
    rows = []
    for method, found in attacked.items():
        for variant, by_size in found.relearning.items():
            before = next(iter(by_size.values()))[0].nll
            after = [min(point.nll for point in by_size[size]) if size in by_size else None for size in sizes]
            recall = max(point.exact_recall for points in by_size.values() for point in points)
            rows.append(
                [method, variant, *(None if nll is None else f"{nll:.3f}" for nll in (before, *after)), f"{100 * recall:.0f}%"]
            )
    learned = (f"{size} {unit}" if size.isdigit() else f"one half, asked about the {size}" for size in sizes)
    return Table(["method", "attack", "before", *learned, "highest exact recall"], rows)
