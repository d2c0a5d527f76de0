"""Test that every kind of edit follows its formula, with values from SELECT text, for the given features only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate
from mtsae_lens.splice.sae_state import SAEState
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.candidates import Grid, feature_candidates, gather_evidence
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.sweep import sweep
from mtsae_lens.unlearning.task import Corpus, Task


@pytest.fixture
def task(text_file: Path, sea_file: Path) -> Task:
    return Task((Corpus(str(sea_file), "forget"), Corpus(str(text_file), "near"), Corpus("kjv", "far")), 6)


@pytest.fixture
def evidence(lm: Any, task: Task) -> SelectionEvidence:
    return gather_evidence(lm, task)


@pytest.fixture
def features(evidence: SelectionEvidence) -> list[int]:
    """Three that fire on the forget text."""
    return evidence.forget_statistics.rate.topk(3).indices.tolist()


def firings(lm: Any, table: Any) -> Tensor:
    """Unmasked rows, one context after the other."""
    kept = [lm.feature_acts(row[None])[0][~lm.masked(row[None])[0]] for row in table.tokens]
    return torch.cat(kept).double()


@pytest.mark.parametrize(("kind", "where"), [("clamp", "fires"), ("clamp_all", "any_fires")])
def test_a_clamp_is_in_units_of_each_features_mean(
    kind: str, where: str, lm: Any, evidence: SelectionEvidence, features: list[int]
) -> None:
    edit = EDIT_KINDS[kind].prepare(evidence)(features, multiplier=2.0, gate=AlwaysOpen())
    assert isinstance(edit, FeatureClamp)
    rows = firings(lm, evidence.forget)[:, features]
    typical = [column[column > 0].mean().item() for column in rows.T]
    assert edit.values == pytest.approx([-2.0 * value for value in typical], rel=1e-5)
    assert (edit.features, edit.where) == (tuple(features), where)


def test_a_mean_is_that_of_retain_text_each_corpus_alike(lm: Any, evidence: SelectionEvidence, features: list[int]) -> None:
    edit = EDIT_KINDS["mean"].prepare(evidence)(features, multiplier=3.0, gate=AlwaysOpen())
    assert isinstance(edit, FeatureClamp)
    means = [firings(lm, table)[:, features].mean(dim=0) for table in evidence.retain]
    assert edit.values == pytest.approx(((means[0] + means[1]) / 2).tolist(), rel=1e-5)
    assert edit.where == "everywhere"


def test_a_projection_leaves_nothing_of_the_features_directions(
    lm: Any, evidence: SelectionEvidence, features: list[int]
) -> None:
    make = EDIT_KINDS["project"].prepare(evidence)
    sae_in = lm.sae_input(evidence.forget.tokens[:2])
    state = SAEState(lm.sae, sae_in, lm.feature_acts(evidence.forget.tokens[:2]))
    rows = lm.sae.W_dec[features].detach()
    edit = make(features, multiplier=0.0, gate=AlwaysOpen())
    assert isinstance(edit, DirectionEdit)
    torch.testing.assert_close((sae_in + edit.delta(state) - edit.center) @ rows.T, torch.zeros(2, 32, 3), atol=1e-4, rtol=0)
    beyond = make(features, multiplier=1.0, gate=AlwaysOpen())
    torch.testing.assert_close(beyond.delta(state), 2 * edit.delta(state))


@pytest.mark.parametrize("kind", [kind for kind in EDIT_KINDS if kind != "scale_carried"])  # for an SAE with memory
def test_a_twin_is_the_same_edit_with_values_of_its_own_features(
    kind: str, lm: Any, task: Task, evidence: SelectionEvidence, features: list[int], tmp_path: Path
) -> None:
    gate = FeatureActiveGate(torch.tensor(features))
    grid = Grid(n_features=(2,), multipliers=(1.5, 3.0), edits=(kind,))
    made = feature_candidates({"a": features}, grid, {0.01: gate}, evidence)
    assert [c.setting["multiplier"] for c in made] == ([1.5, 3.0] if EDIT_KINDS[kind].has_strength else [None])
    candidate = made[0]
    assert candidate.setting["edit"] == kind
    assert candidate.edit.gate is gate
    others = features[1:]
    expected = EDIT_KINDS[kind].prepare(evidence)(others, multiplier=1.5, gate=gate)
    save_edit(tmp_path / "expected.json", expected, lm.splice)
    save_edit(tmp_path / "of_others.json", candidate.of(others), lm.splice)
    assert (tmp_path / "of_others.json").read_text() == (tmp_path / "expected.json").read_text()
    outcomes = sweep(lm, task, made)
    replayed = load_edit(tmp_path / "of_others.json", lm.splice)
    assert type(replayed) is type(candidate.edit)
    assert all(outcome.forget != 0 for outcome in outcomes)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 'clamp-all'\. Did you mean 'clamp_all'"):
        Grid(edits=("clamp-all",))


def test_only_an_sae_with_memory_carries_an_edit_on(evidence: SelectionEvidence, lm: Any) -> None:
    with pytest.raises(ModelError, match=r"expected an SAE with memory .*, got architecture 'mtsae' without it"):
        EDIT_KINDS["scale_carried"].prepare(evidence)
    sae = MTSAE(MTSAEConfig(d_in=lm.sae.cfg.d_in, d_sae=8, k=2, context_size=32, dilations=(0,), memory="predictive"))
    sae.cfg.metadata.hook_name = lm.splice.hook_name
    remembering = replace(evidence, lm=replace(lm, splice=Splice(sae)))
    edit = EDIT_KINDS["scale_carried"].prepare(remembering)([1, 2], multiplier=2.0, gate=AlwaysOpen())
    assert edit == FeatureEdit((1, 2), 2.0, carried=True)
