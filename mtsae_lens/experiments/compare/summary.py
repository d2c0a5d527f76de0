"""Say in sentences what the comparison found: who is ahead, for how many bits, and what makes its figures uncertain."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from mtsae_lens.experiments.compare.arms import ARMS
from mtsae_lens.experiments.compare.results import (
    COMPARED,
    Cell,
    Searched,
    Verdict,
    ablation_cost,
    compute_range,
    group_cells,
)

_SMALL_COST = 0.2
"""Rise of the loss by zero ablation, in nats, below which `ce_loss_score` differs between seeds by more than most architectures do."""
_OUTCOMES = {
    "ahead": "ahead",
    "behind": "behind",
    "within the spread": "within the spread of the seeds",
    "no comparison": "nothing to compare with",
}
"""Words for the outcomes of a comparison, in the order in which they are said."""
_EXPLAINED, _BITS = "explained_variance_without_massive", "bits_per_token"


def summarize(verdicts: Sequence[Verdict], cells: Sequence[Cell], n_seeds: int) -> list[str]:
    """Say for each architecture of this package where it is ahead of the best SAE of SAELens, and for how many bits.

    Args:
        verdicts: the comparisons, with those of one architecture at one hook and L0 next to each other.
        cells: the cells of the grid.
        n_seeds: number of seeds.
    """
    lines = []
    for name in dict.fromkeys(v.name for v in verdicts):
        own = [v for v in verdicts if v.name == name]
        said = [_say_at(list(at), cells) for _, at in groupby(own, lambda v: (v.hook_name, v.target_l0))]
        lines.append(f"{name} ({ARMS[name].meaning}) beside the best SAE of SAELens. {' '.join(said)}")
    if lines and n_seeds == 1:
        lines.append("There is one seed, so the differences have no spread.")
    return lines


def _say_at(verdicts: Sequence[Verdict], cells: Sequence[Cell]) -> str:
    """Say in one sentence what is found at one hook and L0."""
    metrics = {outcome: [COMPARED[v.metric] for v in verdicts if v.outcome == outcome] for outcome in _OUTCOMES}
    places = [
        f"{words} in {'every metric' if len(found) == len(COMPARED) else ' and '.join(found)}"
        for outcome, words in _OUTCOMES.items()
        if (found := metrics[outcome])
    ]
    said = f"{verdicts[0].hook_name}, L0 {verdicts[0].target_l0}: {', '.join(places)}"
    explained = next((v for v in verdicts if v.metric == _EXPLAINED), None)
    if explained is None or explained.difference is None or explained.best is None:
        return f"{said}."
    return f"{said}; explained variance {100 * explained.difference.mean:+.1f} points{_say_bits(explained, cells)}."


def _say_bits(verdict: Verdict, cells: Sequence[Cell]) -> str:
    groups = group_cells(cells)
    ours, theirs = (
        compute_range([cell.value(_BITS) for cell in groups[verdict.hook_name, verdict.target_l0, name]])
        for name in (verdict.name, str(verdict.best))
    )
    if ours is None or theirs is None:
        return f" over {verdict.best}"
    return f" over {verdict.best}, for {ours.mean:.1f} bits per token instead of {theirs.mean:.1f}"


def warn_of_noise(cells: Sequence[Cell]) -> list[str]:
    """Say at which hooks `ce_loss_score` is a share of so small a rise of the loss that differences in it are noise.

    Args:
        cells: the cells of the grid.
    """
    costs = {cell.hook_name: ablation_cost(cell) for cell in cells}
    small = {hook_name: cost for hook_name, cost in costs.items() if cost is not None and cost < _SMALL_COST}
    return [
        f"At {hook_name} the loss rises by only {cost:.3f} nats if the activations are set to zero, and ce_loss_score is a share of that: "
        f"a difference of 0.05 there is {0.05 * cost:.4f} nats, mostly noise. kl_div_score is steadier."
        for hook_name, cost in small.items()
    ]


def warn_of_rates_at_an_end(search: Sequence[Searched], rates: Sequence[float]) -> list[str]:
    """Say for which SAEs the lowest or the highest learning rate that was tried is the best, so that one beyond may be better.

    Args:
        search: the search of every arm, at each hook and L0.
        rates: the learning rates that were tried.
    """
    if len(rates) < 2:
        return []
    sentences = []
    for word, rate, beyond in (("lowest", min(rates), "lower"), ("highest", max(rates), "higher")):
        found = [of_arm for of_arm in search if of_arm.finals[0].lr == rate]
        if found:
            which = "every SAE" if len(found) == len(search) else f"{len(found)} of {len(search)} SAEs"
            sentences.append(
                f"For {which} the {word} learning rate that was tried, {rate:g}, is the best. A {beyond} one may be better still; "
                "the search on TUNE below has them all."
            )
    return sentences
