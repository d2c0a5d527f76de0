"""Write the report of the benchmark: the findings first, then SAEs, cost, differences, the edit in full, attacks, stability, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtsae_lens.experiments.benchmark.arms import OURS
from mtsae_lens.experiments.benchmark.attacks_report import attack_sections
from mtsae_lens.experiments.benchmark.cost_report import cost_sections, cost_table
from mtsae_lens.experiments.benchmark.headline import headline_section, summarize_task
from mtsae_lens.experiments.benchmark.reading import most, nearest
from mtsae_lens.experiments.benchmark.reference_report import reference_section
from mtsae_lens.experiments.benchmark.results import BenchmarkResult
from mtsae_lens.experiments.benchmark.task_results import TaskResults
from mtsae_lens.experiments.parts import PartReport
from mtsae_lens.reporting.page import Section, Table
from mtsae_lens.reporting.samples import sample_table


@dataclass(frozen=True, eq=False)
class BenchmarkReport(PartReport):
    """The page and the terminal output of the benchmark, which begin with the findings in a few sentences."""

    summary: list[str]


def report_benchmark(result: BenchmarkResult, of_tasks: Sequence[TaskResults], hooks: Mapping[str, str]) -> BenchmarkReport:
    """Make the summary, the sections and the tables of the benchmark.

    Args:
        result: what was measured.
        of_tasks: the cells of every task that `result` summarizes.
        hooks: the hook, or hooks, of each SAE by its name, in the order in which they are shown.
    """
    summary, sections, tables = [], [], []
    for results in of_tasks:
        summary.append(summarize_task(results))
        headline = headline_section(results)
        sections.append(headline)
        tables += [headline.table] if headline.table else []
    sections.append(_saes(result.saes, hooks))
    for results in of_tasks:
        sections += _task_sections(results)
        tables.append(cost_table(results, most if results.reference is None else nearest))
    return BenchmarkReport(sections, tables, summary)


def _saes(trained: Mapping[str, Mapping[str, float]], hooks: Mapping[str, str]) -> Section:
    keys = ("l0", "explained_variance", "ce_loss_score", "dead_features")
    rows = []
    for architecture, at in hooks.items():
        seeds = [row for name, row in trained.items() if name.split("/")[0] == architecture]
        means = [sum(seed[key] for seed in seeds) / len(seeds) if key in seeds[0] else None for key in keys]
        rows.append([architecture, at, *means, len(seeds)])
    text = (
        "All SAEs were trained on the same text with the same width, schedule and number of tokens. Mean over seeds of SAELens's run_evals "
        "on held-out text; a transcoder is measured at the hook that it decodes. Higher is better for explained_variance and ce_loss_score, "
        "and lower for dead_features."
    )
    return Section("The SAEs", text, table=Table(["architecture", "hook", *keys, "seeds"], rows))


def _task_sections(results: TaskResults) -> list[Section]:
    sections = cost_sections(results)
    if results.mains:
        sections.append(reference_section(results))
    if results.attacks:
        sections += attack_sections(results)
    if results.stability:
        sections.append(_stability_section(results))
    if OURS in results.mains and results.mains[OURS].samples:
        lead = f"Greedy continuations of held-out text, before and after the edit with {OURS} (seed 0)."
        sections.append(Section(f"{results.name}: samples", lead, html=sample_table(results.mains[OURS].samples)))
    return sections


def _stability_section(results: TaskResults) -> Section:
    text = (
        "How reproducible is the choice of the features with the highest scores? Halves: Jaccard overlap of the choices from two random "
        "halves of the documents (seed 0, one split; 1 is best), with its value by chance. Seeds: best cosine between decoder rows of the "
        "features chosen with two seeds, as a mean over pairs of seeds (1 is best), with its value for random features."
    )
    rows = [
        [
            architecture,
            score,
            found.n_features,
            f"{found.halves:.2f}" if found.halves is not None else None,
            f"{found.chance:.3f}",
            f"{found.seeds.cosine:.2f}" if found.seeds else None,
            f"{found.seeds.chance:.2f}" if found.seeds else None,
        ]
        for architecture, scores in results.stability.items()
        for score, found in scores.items()
    ]
    header = ["SAE", "score", "features", "halves", "chance", "seeds", "random features"]
    return Section(f"{results.name}: stability of the choice", text, Table(header, rows))
