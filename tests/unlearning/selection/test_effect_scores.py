"""Test scores from effects of edits: the weighting by hand, and the exact score against single edits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.selection.effect_scores import Attribution, FisherAttribution, SingleEffect, net_effect
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import FrequencyRatio
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.statistics import first_contexts


@pytest.fixture(scope="module")
def evidence(lm: Any, text_file: Path, sea_file: Path) -> SelectionEvidence:
    tables = [read_tokens(str(path), "select", lm.cutter, 6) for path in (text_file, sea_file)]
    return SelectionEvidence(lm, tables[0], far=(tables[1], read_tokens("kjv", "select", lm.cutter, 4)))


def test_harm_to_retain_text_costs_and_a_gain_there_earns_nothing() -> None:
    forget, retain = torch.tensor([1.0, 1.0, 1.0, -1.0, 0.0]), torch.tensor([0.2, -5.0, 2.0, -1.0, 0.0])
    expected = torch.tensor([0.4, 1.0, -5.0, -torch.inf, -torch.inf])
    torch.testing.assert_close(net_effect(forget, retain, 3.0), expected)


@pytest.mark.parametrize(("score_class", "order"), [(Attribution, "first_order"), (FisherAttribution, "second_order")])
def test_attribution_weighs_the_worst_retain_corpus(score_class: Any, order: str, evidence: SelectionEvidence) -> None:
    forget = getattr(evidence.forget_change, order).tolist()
    retain = torch.stack([getattr(change, order) for change in evidence.retain_changes]).tolist()
    assert all(any(one > other for one, other in zip(*pair, strict=True)) for pair in (retain, retain[::-1]))
    for weight in (0.0, 3.0):
        score = score_class(retain_weight=weight)(evidence)
        for feature, harm in enumerate(forget):
            expected = harm - weight * max(0.0, *(row[feature] for row in retain)) if harm > 0 else -torch.inf
            assert score[feature].item() == pytest.approx(expected, abs=1e-6)
    assert ranking(score_class(0.0)(evidence)) != ranking(score_class(3.0)(evidence))


def test_the_exact_score_is_that_of_edits_one_by_one(lm: Any, evidence: SelectionEvidence) -> None:
    base = FrequencyRatio(min_ratio=0.5)
    score = SingleEffect(base, n_candidates=5, multiplier=1.0, n_contexts=3, retain_weight=2.0)(evidence)
    tried = ranking(base(evidence))[:5]
    assert len(tried) == 5
    for feature in range(len(score)):
        if feature not in tried:
            assert score[feature] == -torch.inf
            continue
        edit = [FeatureEdit((feature,), 1.0)]
        forget, *retain = (
            measure_edits(lm, first_contexts(table, 3), edit)[0].nll_delta for table in (evidence.forget, *evidence.far)
        )
        expected = forget - 2 * max(0.0, *retain) if forget > 0 else -torch.inf
        assert score[feature].item() == pytest.approx(expected, abs=1e-6)
