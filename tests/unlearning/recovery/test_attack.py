"""Test the recovery attack on a tiny model, its parts and controls, and the choice among edits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.direction_edits import DirectionEdit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.unlearning.changes import Change
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.measures.bootstrap import ratio_interval
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.recovery.attack import AttackedTexts, attack_recovery, measure_controls
from mtsae_lens.unlearning.recovery.hardening import choose_hardened
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings, Target, fit_perturbation, mean_norm
from mtsae_lens.unlearning.recovery.replay import PARTS, parts_under, replayed_states
from mtsae_lens.unlearning.recovery.results import Recovery
from mtsae_lens.unlearning.sweep import Candidate, Outcome
from mtsae_lens.unlearning.task import Corpus, Task

SETTINGS = RecoverySettings(epsilon=1.0, n_steps=8, n_context_steps=2, n_random=1)
GATE = RunningEvidenceGate(torch.arange(32), torch.ones(32), 0.9, 2.0)


@pytest.fixture(scope="module")
def texts(cutter: Any, text_file: Path, sea_file: Path) -> AttackedTexts:
    known, measured = (read_tokens(str(text_file), split, cutter, 6) for split in ("select", "test"))
    return AttackedTexts(known, measured, {"sea": read_tokens(str(sea_file), "test", cutter, 3)})


def test_a_perturbation_lowers_the_loss_within_its_budget_and_subspace(lm: Any, texts: AttackedTexts) -> None:
    edit, radius = FeatureEdit(tuple(range(32)), 6.0), mean_norm(lm, texts.known)
    basis = torch.eye(32)[:20]
    shift = fit_perturbation(Target(lm, edit), texts.known, basis, radius, SETTINGS)
    assert shift.norm() <= radius * (1 + 1e-5)
    assert shift[20:].abs().max() == 0
    settings = dataclasses.replace(SETTINGS, n_context_steps=0)
    found = attack_recovery(lm, Change(edit), texts, settings, subspaces=("any direction",)).by_subspace["any direction"]
    assert found.attacked is not None
    assert found.random is not None
    assert found.attacked.share is not None
    assert found.random.share is not None
    assert found.attacked.share.mean > found.random.share.mean
    assert found.attacked.share.low <= found.attacked.share.mean <= found.attacked.share.high


def test_a_recovery_has_every_part_and_control(lm: Any, texts: AttackedTexts) -> None:
    edit = FeatureEdit((0, 1), 40.0, GATE)
    found = attack_recovery(lm, Change(edit), texts, SETTINGS, controls=measure_controls(lm, texts, SETTINGS, lm.model))
    assert Recovery.from_json(found.to_json()) == found
    (effect,) = measure_edits(lm, texts.measured, [edit])
    assert found.nll_edited == pytest.approx(effect.mean(effect.nll_edited), abs=1e-4)
    assert found.gains["unedited"] == pytest.approx(found.gains["reference"], abs=1e-4)
    assert found.by_context is not None
    for result in found.by_subspace.values():
        if not result.n_directions:
            continue
        assert set(result.parts) == {"all features", "untouched features", "edited features", "error"}
        assert set(result.others) == {"sea"}
        assert result.gate_open is not None
        assert result.gate_open[0] == pytest.approx(effect.gate_open, abs=1e-6)
    assert found.by_subspace["any direction"].n_directions == 32


def test_an_edit_without_features_has_no_edited_and_untouched_features(lm: Any, texts: AttackedTexts) -> None:
    projection, error = DirectionEdit(torch.eye(32)[:3], torch.ones(32)), ErrorEdit(torch.eye(32)[:4], torch.ones(32))
    settings = dataclasses.replace(SETTINGS, n_context_steps=0)
    found = attack_recovery(lm, Change(projection), texts, settings).by_subspace
    assert [found[name].n_directions for name in ("blind", "nearly blind")] == [29, 29]
    for result in found.values():
        assert set(result.parts) == {"all features", "error"}
        assert result.drift is None
    assert parts_under(CombinedEdit((projection, error))) == ("all features", "error")
    assert set(parts_under(CombinedEdit((FeatureEdit((0,)), projection)))) == set(PARTS)


def test_other_weights_are_attacked_in_any_direction(lm: Any, texts: AttackedTexts) -> None:
    other = clone_model(lm.model)
    other.blocks[1].mlp.W_out.data.mul_(-2.0)
    found = attack_recovery(lm, Change(weights=other), texts, SETTINGS)
    assert list(found.by_subspace) == ["any direction"]
    result = found.by_subspace["any direction"]
    assert (result.gate_held, result.gate_open, result.drift, result.parts) == (None, None, None, {})
    assert found.nll_edited != pytest.approx(found.nll_clean)


def test_an_edit_of_the_whole_error_leaves_nothing_of_its_part(lm: Any, texts: AttackedTexts) -> None:
    features = FeatureEdit((0, 1), 40.0)
    combined = CombinedEdit((features, ErrorEdit(torch.eye(32), torch.zeros(32))))
    tokens, shift = texts.measured.tokens, torch.randn(32, generator=torch.Generator().manual_seed(0))
    nothing = torch.zeros(32)
    for edit, passes in ((features, True), (combined, False)):
        target = Target(lm, edit)
        change = (replayed_states(target, tokens, shift, (False, False, True)) - target.states(tokens, nothing))[:, 1:]
        assert bool(change.abs().max() > 1e-4) is passes


def test_all_parts_together_are_the_perturbation(lm: Any, texts: AttackedTexts) -> None:
    target = Target(lm, CombinedEdit((FeatureEdit((0, 1, 5), 3.0), ErrorEdit(torch.eye(32)[:4], torch.ones(32))), GATE))
    tokens, shift = texts.measured.tokens, torch.randn(32, generator=torch.Generator().manual_seed(0))
    h = lm.activations(tokens)
    whole = target.states(tokens, shift, h, target.gate_without(tokens, h))
    assert torch.allclose(replayed_states(target, tokens, shift, (True, True, True)), whole, atol=1e-4)
    assert not torch.allclose(replayed_states(target, tokens, shift, (True, True, False)), whole, atol=1e-2)
    nothing = replayed_states(target, tokens, shift, (False, False, False))
    assert torch.allclose(nothing, lm.splice.edited(h, target.edit, lm.masked(tokens)), atol=1e-4)


def test_among_edits_that_forget_alike_the_one_that_resists_is_chosen(
    lm: Any, text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task((Corpus(str(text_file), "forget"), Corpus(str(sea_file), "far")), 4)
    candidates = [Candidate({"error_rank": rank} if rank else {}, FeatureEdit((rank,))) for rank in (0, 1, 2, 3, 3)]
    outcomes = [Outcome({}, forget, 0.0, 0.0, 5.0) for forget in (1.0, 0.95, 0.92, 0.5, 0.6)]
    shares = {0: 0.9, 1: 0.2, 2: 0.4, 3: 0.0}
    attacked: list[int] = []

    def share(lm: Any, change: Change, texts: AttackedTexts, settings: RecoverySettings) -> float:
        assert not set(texts.known.documents) & set(texts.measured.documents)
        attacked.append(change.edit.features[0])  # type: ignore[union-attr]
        return shares[attacked[-1]]

    monkeypatch.setattr("mtsae_lens.unlearning.recovery.hardening.recovered_share", share)
    best = lambda places: max(places, key=lambda place: outcomes[place].forget)  # noqa: E731
    assert choose_hardened(lm, task, candidates, outcomes, best, range(5), SETTINGS) == 1
    assert attacked == [0, 1, 2]  # the others forget too little
    assert choose_hardened(lm, task, candidates, outcomes, best, [3, 4], SETTINGS) == 4


def test_a_ratio_has_the_interval_of_its_documents() -> None:
    forgotten = torch.full((40,), 2.0)
    undone = torch.cat([torch.zeros(20), torch.full((20,), 2.0)])
    low, high = ratio_interval(undone, forgotten, 0)
    assert 0.25 < low < 0.42
    assert 0.58 < high < 0.75
    assert ratio_interval(torch.tensor([1.0]), torch.tensor([4.0]), 0) == (0.25, 0.25)


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"tolerance": 1.0}, {"n_steps": 0}, {"lr": 0.0}, {"n_random": 0}], ids=str)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"expected .*(change them|raise it)"):
        RecoverySettings(**wrong)


def test_questions_have_no_attack_by_context(lm: Any, texts: AttackedTexts) -> None:
    answers = torch.zeros_like(texts.measured.tokens, dtype=torch.bool)
    answers[:, 9:12] = True
    asked = AttackedTexts(texts.known, dataclasses.replace(texts.measured, answers=answers))
    found = attack_recovery(lm, Change(FeatureEdit((0, 1), 40.0)), asked, SETTINGS, subspaces=("any direction",))
    assert found.by_context is None
    assert found.n_tokens == int(answers.sum())
