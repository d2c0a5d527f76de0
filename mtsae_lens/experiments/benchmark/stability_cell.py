"""Measure whether other text, or an SAE from another seed, would have led to the same features."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch

from mtsae_lens.errors import DataError
from mtsae_lens.experiments.benchmark.cells import ScoreStability, SeedOverlap, StabilityCell
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.unlearning.candidates import gather_evidence
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.selection.stability import chance_jaccard, decoder_match, half_overlap

SCORES = ("frequency_difference", "fisher_attribution")
N_FEATURES = 8


def stability_cell(setups: Sequence[BenchmarkSetup]) -> StabilityCell:
    """Measure how reproducible the choice of features is with one architecture.

    Args:
        setups: one setup per seed; the halves of documents are those of the first.
    """
    opened = [setup.opened() for setup in setups]
    evidence = [gather_evidence(setup.lm, setup.task) for setup in opened]
    generator = torch.Generator().manual_seed(0)
    found: dict[str, ScoreStability] = {}
    for name in SCORES:
        score = make_score(name)
        chosen = [ranking(score(of_seed))[:N_FEATURES] for of_seed in evidence]
        try:
            halves = half_overlap(score, evidence[0], N_FEATURES, generator)
        except DataError:
            halves = None
        d_sae = evidence[0].lm.sae.cfg.d_sae
        found[name] = ScoreStability(
            n_features=N_FEATURES,
            halves=halves,
            chance=chance_jaccard(N_FEATURES, d_sae),
            seeds=_across_seeds(evidence, chosen, generator),
        )
    return StabilityCell(stability=found)


def _across_seeds(
    evidence: Sequence[SelectionEvidence], chosen: Sequence[tuple[int, ...]], generator: torch.Generator
) -> SeedOverlap | None:
    pairs = [(one, other) for one, other in combinations(range(len(evidence)), 2) if chosen[one] and chosen[other]]
    if not pairs:
        return None
    decoders = [of_seed.lm.sae.W_dec for of_seed in evidence]
    matches = [decoder_match(decoders[one], chosen[one], decoders[other], chosen[other], generator) for one, other in pairs]
    return SeedOverlap(
        cosine=sum(match.cosine for match in matches) / len(matches),
        chance=sum(match.chance for match in matches) / len(matches),
        n_pairs=len(pairs),
    )
