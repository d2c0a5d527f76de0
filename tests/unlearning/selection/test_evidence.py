"""Test what scores read: every retain corpus, each quantity only when needed, and only once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.splice.attribution import attribution
from mtsae_lens.unlearning.selection import evidence as module
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence, feature_scores
from mtsae_lens.unlearning.selection.statistics import firing_statistics


@pytest.fixture
def evidence(lm: Any, text_file: Path, sea_file: Path) -> SelectionEvidence:
    forget, near = (read_tokens(str(text_file), split, lm.cutter, 6) for split in ("select", "tune"))
    return SelectionEvidence(lm, forget, (near,), (read_tokens(str(sea_file), "select", lm.cutter, 6),))


def test_the_highest_of_each_retain_corpus_counts(lm: Any, evidence: SelectionEvidence) -> None:
    tables = (*evidence.near, *evidence.far)
    assert evidence.retain == tables
    statistics = [firing_statistics(lm, table) for table in tables]
    assert torch.equal(evidence.highest_retain_rate, torch.maximum(statistics[0].rate, statistics[1].rate))
    assert torch.equal(evidence.highest_retain_mean, torch.maximum(statistics[0].mean, statistics[1].mean))
    for change, table in zip((evidence.forget_change, *evidence.retain_changes), (evidence.forget, *tables), strict=True):
        assert torch.equal(change.first_order, attribution(lm, table))


def test_nothing_is_computed_twice_or_unasked(evidence: SelectionEvidence, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def count(lm: Any, table: Any) -> Any:
        calls.append(table)
        return firing_statistics(lm, table)

    monkeypatch.setattr(module, "firing_statistics", count)
    assert not calls
    for _ in range(2):
        assert evidence.forget_statistics.corpus == evidence.forget.corpus
    assert len(calls) == 1


def test_halves_keep_roles_and_share_no_document(evidence: SelectionEvidence) -> None:
    one, other = evidence.halves(torch.Generator().manual_seed(0))
    for whole, first, second in zip(
        (evidence.forget, *evidence.near, *evidence.far),
        (one.forget, *one.near, *one.far),
        (other.forget, *other.near, *other.far),
        strict=True,
    ):
        assert first.corpus == second.corpus == whole.corpus
        assert not set(first.documents) & set(second.documents)
        assert sorted(first.documents + second.documents) == sorted(whole.documents)


def test_effects_are_those_of_the_edits_that_features_are_chosen_for(
    evidence: SelectionEvidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies share what they know, so an effect of one kind must not stand in for the other."""
    monkeypatch.setattr(module, "loss_change", lambda lm, table, carried: (table, carried))
    carried_on = replace(evidence, carried=True)
    for known in (evidence, carried_on, *carried_on.without_near().halves(torch.Generator().manual_seed(0))):
        assert known.forget_change == (known.forget, known is not evidence)
        assert known.retain_changes == tuple((table, known is not evidence) for table in known.retain)


def test_something_to_retain_is_needed(evidence: SelectionEvidence) -> None:
    with pytest.raises(DataError, match="expected near or far text"):
        SelectionEvidence(evidence.lm, evidence.forget)


def test_what_is_known_of_a_corpus_is_not_computed_again_without_near_text(
    evidence: SelectionEvidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = []
    original = module.firing_statistics

    def firing_statistics(lm: Any, table: Any) -> Any:
        counted.append(table.corpus)
        return original(lm, table)

    monkeypatch.setattr(module, "firing_statistics", firing_statistics)
    fresh = SelectionEvidence(evidence.lm, evidence.forget, evidence.near, evidence.far)
    far_alone = fresh.without_near()
    assert far_alone.retain == fresh.far
    assert far_alone.retain_statistics == fresh.retain_statistics[len(fresh.near) :]
    assert far_alone.forget_statistics is fresh.forget_statistics
    assert len(counted) == 1 + len(fresh.retain)


@pytest.mark.parametrize(
    ("values", "came"), [(torch.zeros(10), r"a tensor of shape \(10,\)"), ([1.0, 2.0], "a list")], ids=["too few", "list"]
)
def test_a_score_gives_a_number_for_each_feature(evidence: SelectionEvidence, values: Any, came: str) -> None:
    class Short:
        name = "short"

        def __call__(self, evidence: SelectionEvidence) -> Any:
            return values

    with pytest.raises(ConfigError, match=rf"the score 'short' to return .*{evidence.lm.sae.cfg.d_sae},.* got {came}"):
        feature_scores(Short(), evidence)
