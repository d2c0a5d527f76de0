"""Would other text, or an SAE from another seed, have led to the same features?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import torch

from mtsae_lens.errors import DataError
from mtsae_lens.experiments.benchmark.setup import Subject
from mtsae_lens.unlearning.candidates import gather_evidence
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.selection.stability import chance_jaccard, decoder_match, half_overlap

SCORES = ("frequency_difference", "fisher_attribution")
N_FEATURES = 8


def stability_cell(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Of one architecture, one subject for each seed.

    For each score: `halves` (Jaccard of the top features from two halves of the documents, first seed; None where a half has too few) with
    its `chance`, and `seeds` (mean over pairs of seeds of `decoder_match`, None with one seed).
    """
    opened = [subject.opened() for subject in subjects]
    evidence = [gather_evidence(subject.lm, subject.task) for subject in opened]
    generator = torch.Generator().manual_seed(0)
    found: dict[str, Any] = {}
    for name in SCORES:
        score = make_score(name)
        chosen = [ranking(score(of_seed))[:N_FEATURES] for of_seed in evidence]
        try:
            halves = half_overlap(score, evidence[0], N_FEATURES, generator)
        except DataError:
            halves = None
        d_sae = evidence[0].lm.sae.cfg.d_sae
        found[name] = {
            "n_features": N_FEATURES,
            "halves": halves,
            "chance": chance_jaccard(N_FEATURES, d_sae),
            "seeds": _across_seeds(evidence, chosen, generator),
        }
    return {"stability": found}


def _across_seeds(
    evidence: Sequence[SelectionEvidence], chosen: Sequence[tuple[int, ...]], generator: torch.Generator
) -> dict[str, float] | None:
    pairs = [(one, other) for one, other in combinations(range(len(evidence)), 2) if chosen[one] and chosen[other]]
    if not pairs:
        return None
    decoders = [of_seed.lm.sae.W_dec for of_seed in evidence]
    matches = [
        asdict(decoder_match(decoders[one], chosen[one], decoders[other], chosen[other], generator)) for one, other in pairs
    ]
    return {key: sum(match[key] for match in matches) / len(matches) for key in ("cosine", "chance")} | {"n_pairs": len(pairs)}
