"""Test the protocol: what decides on TUNE, which text is read when, and what is refused."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens.errors import DataError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning import candidates, protocol
from mtsae_lens.unlearning.candidates import FeatureCandidate, Grid
from mtsae_lens.unlearning.measures.effects import measure_edits
from mtsae_lens.unlearning.protocol import UnlearningSettings, check_identity, choose, matched_random_edits, measure_on_test
from mtsae_lens.unlearning.recovery.perturbation import RecoverySettings
from mtsae_lens.unlearning.results import FurtherMeasures
from mtsae_lens.unlearning.sweep import Outcome
from mtsae_lens.unlearning.task import Corpus, Task

RANKED = (3, 1, 2, 0)
ROWS = {  # (n_features, multiplier) -> (forget, near, far)
    (1, 1.0): (0.1, 0.0, 0.00),
    (1, 2.0): (9.0, 0.0, 0.00),  # worse than guessing
    (2, 1.0): (0.5, 0.09, 0.04),
    (2, 2.0): (0.3, 0.10, 0.05),  # on the line
    (3, 1.0): (0.9, 0.09, 0.06),  # too dear far away
    (3, 2.0): (0.8, 0.11, 0.01),  # too dear nearby
}
Rows = dict[tuple[int, float], tuple[float, float, float]]


def candidate_of(edit: FeatureEdit) -> FeatureCandidate:
    return FeatureCandidate({}, edit, edit.features, lambda features: replace(edit, features=tuple(features)))


@pytest.fixture
def decide(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`choose` on given outcomes: everything before them is made up."""

    def call(rows: Rows, gap: float | None = None, **settings: Any) -> Any:
        grid = Grid(n_features=(1, 2, 3), multipliers=(1.0, 2.0), false_positive_rates=(None,))
        monkeypatch.setattr(Task, "table", lambda self, source, split, cutter: None)
        monkeypatch.setattr(protocol, "fit_gates", lambda lm, task, rates, choice: {None: AlwaysOpen()})
        monkeypatch.setattr(candidates, "rankings", lambda *args, **kwargs: {"frequency_ratio": RANKED})
        monkeypatch.setattr(protocol, "model_losses", lambda *args: [SimpleNamespace(nll_delta=gap)])

        def outcome(setting: dict[str, Any]) -> Outcome:
            dear = rows.get((setting["n_features"], setting["multiplier"]), (0.0, 99.0, 99.0))
            return Outcome(setting, *dear, 4.0 + dear[0])

        monkeypatch.setattr(protocol, "sweep", lambda lm, task, candidates: [outcome(c.setting) for c in candidates])
        lm: Any = SimpleNamespace(model=SimpleNamespace(cfg=SimpleNamespace(d_vocab=4096)), cutter=None, batch_size=1)
        task = Task((Corpus("a", "forget"), Corpus("b", "far")))
        return choose(lm, task, UnlearningSettings(grid, **settings), None if gap is None else "reference")  # type: ignore[arg-type]

    return call


def test_the_most_forgetting_within_both_budgets_wins(decide: Any) -> None:
    chosen = decide(ROWS)
    assert (chosen.edit.features, chosen.edit.multiplier) == ((3, 1), 1.0)
    assert chosen.setting == {
        "score": "frequency_ratio",
        "n_features": 2,
        "edit": "scale",
        "multiplier": 1.0,
        "false_positive_rate": None,
    }
    assert {(o.setting["n_features"], o.setting["multiplier"]): (o.forget, o.near, o.far) for o in chosen.sweep} == ROWS


@pytest.mark.parametrize(
    ("gap", "expected"), [(0.0, (1, 1.0)), (0.28, (2, 2.0)), (0.45, (2, 1.0)), (4.0, (2, 1.0)), (8, (1, 2.0))]
)
def test_with_a_reference_the_nearest_to_it_wins(decide: Any, gap: float, expected: tuple[int, float]) -> None:
    chosen = decide(ROWS, gap)
    assert (len(chosen.edit.features), chosen.edit.multiplier) == expected


def test_the_budgets_are_those_of_the_settings(decide: Any) -> None:
    assert decide(ROWS, far_budget=0.06).edit.features == (3, 1, 2)
    assert decide(ROWS, near_budget=0.11).edit.multiplier == 2.0
    assert len(decide(ROWS, near_budget=0.0, far_budget=0.0).edit.features) == 1


@pytest.mark.parametrize(("n_features", "multiplier"), [(3, 1.0), (3, 2.0)])
def test_no_setting_within_the_budgets_is_an_error_that_names_the_nearest(
    decide: Any, n_features: int, multiplier: float
) -> None:
    dear = ROWS[n_features, multiplier]
    with pytest.raises(DataError, match=rf"nearest: far {dear[2]:.3f}, near {dear[1]:.3f}.*--far-budget or --near-budget"):
        decide({(n_features, multiplier): dear})


def test_the_nearest_setting_is_the_one_that_exceeds_its_worse_budget_least(decide: Any) -> None:
    for one, other in (((0.9, 0.09, 0.06), (0.8, 0.5, 0.051)), ((0.9, 0.11, 0.01), (0.8, 0.0, 0.3))):
        with pytest.raises(DataError, match=rf"nearest: far {one[2]:.3f}, near {one[1]:.3f}"):
            decide({(3, 1.0): one, (3, 2.0): other})


def test_a_budget_of_zero_that_nothing_meets_is_the_same_error(decide: Any) -> None:
    with pytest.raises(DataError, match="expected a setting within the budgets"):
        decide({(3, 1.0): ROWS[3, 1.0]}, far_budget=0.0)


def test_where_all_is_worse_than_guessing_the_least_bad_wins(decide: Any) -> None:
    chosen = decide({(1, 1.0): (9.0, 0.0, 0.0), (2, 1.0): (7.0, 0.0, 0.0), (3, 1.0): (8.0, 0.0, 0.0)})
    assert chosen.edit.features == (3, 1)
    assert all(o.forget_nll > math.log(4096) for o in chosen.sweep if o.far == 0)


GRID = Grid(("frequency_difference",), n_features=(1, 2, 1000), multipliers=(1.0, 2.0), false_positive_rates=(0.05, None))
SETTINGS = UnlearningSettings(GRID, far_budget=9, near_budget=9, min_ratio=1.0, n_random_draws=2)


@pytest.fixture
def task(text_file: Path, sea_file: Path) -> Task:
    corpora = (Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far"), Corpus("kjv", "near"), Corpus("sotu", "neutral"))
    return Task(corpora, 6)


def test_each_split_is_read_when_its_turn_comes(lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Task.table
    monkeypatch.setattr(Task, "table", lambda self, s, split, c: read.append((s, split)) or original(self, s, split, c))
    chosen = choose(lm, task, SETTINGS, lm.model)
    splits = [split for _, split in read]
    assert set(splits) == {"select", "tune"}
    assert "sotu" not in {source for source, _ in read}  # nothing is chosen by neutral text
    read.clear()
    measure_on_test(lm, task, SETTINGS, chosen)
    assert {source for source, split in read if split == "test"} == {corpus.source for corpus in task.corpora}
    assert {source for source, split in read if split == "tune"} <= {task.forget}  # where output biases are refitted


def test_near_text_is_spared_by_the_choice_only_where_some_edit_has_no_gate(
    lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = candidates.rankings

    def rankings(evidence: Any, grid: Grid, *, min_ratio: float) -> Any:
        asked.append((bool(evidence.near), min_ratio))
        return original(evidence, grid, min_ratio=min_ratio)

    monkeypatch.setattr(candidates, "rankings", rankings)
    for rates in ((0.05,), (0.05, None)):
        choose(lm, task, replace(SETTINGS, grid=replace(GRID, false_positive_rates=rates)))
    assert asked == [(False, 1.0), (True, 1.0)]


N_TELLING = 8


@pytest.fixture
def telling_lm(lm: HookedLM, task: Task) -> HookedLM:
    """The model with an SAE whose first features fire on the commonest words of the forget text; the others are random directions."""
    tokens = {source: task.table(source, "select", lm.cutter).tokens for source in (task.forget, *task.sources("far"), "kjv")}
    elsewhere = torch.cat([tokens[source].flatten() for source in tokens if source != task.forget])
    counts = tokens[task.forget].flatten().bincount(minlength=lm.model.cfg.d_vocab)
    counts[elsewhere] = 0
    h, mean = lm.activations(tokens[task.forget]), lm.activations(tokens["kjv"]).flatten(0, 1).mean(dim=0)
    words = torch.stack([h[tokens[task.forget] == token].mean(dim=0) - mean for token in counts.topk(N_TELLING).indices])
    others = torch.randn(32 - N_TELLING, h.shape[-1], generator=torch.Generator().manual_seed(0))
    sae = TopKSAE(TopKSAEConfig(d_in=h.shape[-1], d_sae=32, k=1, metadata=SAEMetadata(hook_name=lm.splice.hook_name)))
    directions = torch.cat([words, others])
    directions = directions / directions.norm(dim=1, keepdim=True)
    for parameter, value in ((sae.W_dec, directions), (sae.W_enc, directions.T), (sae.b_dec, mean)):
        parameter.data.copy_(value)
    return replace(lm, splice=Splice(sae))


def test_what_tells_forget_text_apart_is_chosen(telling_lm: HookedLM, task: Task) -> None:
    chosen = choose(telling_lm, task, SETTINGS)
    assert {1, 2} <= {outcome.setting["n_features"] for outcome in chosen.sweep}
    assert set(chosen.edit.features) & set(range(N_TELLING))
    (outcome,) = (outcome for outcome in chosen.sweep if outcome.setting == chosen.setting)
    # what an edit does to a random model's loss may have either sign
    assert abs(outcome.forget) > 10 * max(abs(outcome.near), abs(outcome.far))


@pytest.mark.parametrize(("kind", "carried"), [("scale", False), ("scale_carried", True)])
def test_the_features_are_set_to_zero_as_the_edit_changes_them(kind: str, carried: bool) -> None:
    candidate = replace(candidate_of(FeatureEdit((1, 2), 2.0, carried=carried)), kind=kind)
    baselines = protocol._make_baselines(candidate)
    assert baselines["zero"] == FeatureEdit((1, 2), carried=carried)
    assert baselines["clamp"] == baselines["gated_clamp"] == candidate.edit


def test_choose_and_measure(lm: Any, telling_lm: HookedLM, task: Task, tiny_model: Any) -> None:
    chosen = choose(telling_lm, task, SETTINGS, tiny_model)
    sizes = {o.setting["n_features"] for o in chosen.sweep}
    assert {1, 2} <= sizes
    assert max(sizes) <= 32  # no more than there are
    gate = RunningEvidenceGate(torch.arange(16), torch.ones(16), 0.9, 8.0)
    chosen = replace(chosen, candidate=candidate_of(FeatureEdit(tuple(range(12)), 2.0, gate)))
    result = measure_on_test(lm, task, SETTINGS, chosen, tiny_model)
    measured = result.to_json()
    assert type(result).from_json(json.loads(json.dumps(measured))) == result
    json.dumps(measured, allow_nan=False)
    sources = [corpus.source for corpus in task.corpora]
    assert list(measured["corpora"]) == list(measured["random_control"]) == list(measured["documents"]) == sources
    assert list(measured["ladder"]) == ["zero", "clamp", "gated_clamp"]
    baselines = {
        "zero": replace(chosen.edit, multiplier=0.0, gate=AlwaysOpen()),
        "clamp": replace(chosen.edit, gate=AlwaysOpen()),
        "gated_clamp": chosen.edit,
    }
    for source, role in zip(sources, ("forget", "far", "near", "neutral"), strict=True):
        edit = measured["corpora"][source]
        assert edit["role"] == role
        assert edit["nll_delta"] == pytest.approx(edit["nll_edited"] - edit["nll_clean"], abs=1e-6)
        assert edit["nll_delta_low"] <= edit["nll_delta"] <= edit["nll_delta_high"]
        assert edit["nll_reference"] == pytest.approx(edit["nll_clean"], abs=1e-5)  # it is its own reference
        of_baselines = {name: rows[source] for name, rows in measured["ladder"].items()}
        assert of_baselines["gated_clamp"] == {key: edit[key] for key in of_baselines["gated_clamp"]}
        for name, effect in zip(
            baselines,
            measure_edits(lm, task.table(source, "test", lm.cutter), list(baselines.values())),
            strict=True,
        ):
            assert of_baselines[name]["nll_delta"] == pytest.approx(effect.nll_delta, abs=1e-6)
            assert of_baselines[name]["gate_open"] == pytest.approx(1.0 if name != "gated_clamp" else effect.gate_open)
        assert 0 < edit["gate_open"] < 1
        documents = measured["documents"][source]
        assert sum(d["n_tokens"] for d in documents) == edit["n_tokens"]
        assert sum(d["n_tokens"] * d["nll_edited"] for d in documents) / edit["n_tokens"] == pytest.approx(edit["nll_edited"])
        control = measured["random_control"][source]
        assert control["n_draws"] == 2
        assert control["nll_delta_min"] <= control["nll_delta"] <= control["nll_delta_max"]
        assert control["nll_delta"] != edit["nll_delta"]
    assert 0 <= measured["identity_error"] <= 1e-4
    assert {"gate", "generation", "samples", "reference", "calibrated_nll_delta"} <= set(measured)


def test_further_measures_are_those_of_the_chosen_edit(lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    further = FurtherMeasures(calibrated_nll_delta=0.5, generation={}, samples={})
    monkeypatch.setattr(protocol, "measure_further", lambda *args: given.append(args) or further)
    chosen = choose(lm, task, SETTINGS)
    measured = measure_on_test(lm, task, replace(SETTINGS, seed=5), chosen)
    assert (measured.calibrated_nll_delta, measured.gate, measured.samples) == (0.5, None, {})
    ((*models, change, reference, seed),) = given
    assert (models, change.edit, change.weights, reference, seed) == ([lm, task], chosen.edit, None, None, 5)


def test_an_attacked_edit_has_its_recovery(lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    recovery = RecoverySettings(n_steps=1, n_context_steps=0, n_random=1)
    chosen = protocol.Chosen(candidate_of(FeatureEdit((0, 1), 5.0)), ())
    further = FurtherMeasures(calibrated_nll_delta=0.0, generation={}, samples={})
    monkeypatch.setattr(protocol, "measure_further", lambda *args: further)
    assert measure_on_test(lm, task, SETTINGS, chosen).recovery is None
    measured = measure_on_test(lm, task, replace(SETTINGS, recovery=recovery), chosen)
    assert measured.recovery is not None
    others = measured.recovery.by_subspace["any direction"].others
    assert set(others) == {*task.sources("near"), task.sources("far")[0]}
    assert measured.recovery.nll_edited == pytest.approx(measured.corpora[task.forget].nll_edited, abs=1e-4)


def test_matched_random_edits_are_the_same_edit_of_other_features(lm: Any, task: Task) -> None:
    chosen = choose(lm, task, SETTINGS)
    edit = replace(chosen.edit, features=tuple(range(5)))
    candidate = candidate_of(edit)
    random_edits = matched_random_edits(lm, task, candidate, 6, seed=0)
    assert len(random_edits) == 6
    for random_edit in random_edits:
        assert (random_edit.multiplier, random_edit.gate) == (edit.multiplier, edit.gate)
        assert len(set(random_edit.features)) == 5
        assert not set(random_edit.features) & set(edit.features)
    assert len({random_edit.features for random_edit in random_edits}) > 1
    assert [t.features for t in matched_random_edits(lm, task, candidate, 6, seed=0)] == [t.features for t in random_edits]
    assert [t.features for t in matched_random_edits(lm, task, candidate, 6, seed=1)] != [t.features for t in random_edits]


def test_no_feature_that_prefers_the_forget_text_is_an_error(lm: Any, task: Task) -> None:
    strict = UnlearningSettings(replace(GRID, scores=("frequency_ratio",)), min_ratio=1e9)
    with pytest.raises(DataError, match=r"expected features that prefer .* frequency_ratio; .* lower --min-ratio"):
        choose(lm, task, strict)


def test_a_collapsed_sae_is_named_as_the_reason(lm: Any, task: Task) -> None:
    """Its few active features fire everywhere, so none prefers any text."""
    sae = copy.deepcopy(lm.sae)
    sae.b_enc.data[: sae.cfg.k] = 1e6
    collapsed = HookedLM(lm.model, Splice(sae), lm.cutter, lm.batch_size)
    settings = UnlearningSettings(replace(GRID, scores=("frequency_ratio",)), min_ratio=2.0)
    with pytest.raises(
        DataError, match=r"expected features that prefer .*: the SAE looks collapsed: 4 features fire on over half .*b_dec_init"
    ):
        choose(collapsed, task, settings)


def test_a_splice_that_is_not_the_identity_stops_everything(lm: Any, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = choose(lm, task, SETTINGS)
    monkeypatch.setattr(protocol, "max_identity_error", lambda lm, table: 0.1 if table.corpus == "kjv" else 0.0)
    with pytest.raises(RuntimeError, match=r"without an edit changes the logits by 0\.1 on kjv"):
        measure_on_test(lm, task, SETTINGS, chosen)


def test_the_identity_error_is_that_of_the_worst_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "max_identity_error", lambda lm, table: table)
    tables: dict[str, Any] = {"a": 1e-6, "b": 9e-5, "c": 0.0}
    assert check_identity(None, tables) == 9e-5  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="on d"):
        check_identity(None, tables | {"d": 2e-4})  # type: ignore[arg-type]
    for broken in ({"d": math.nan} | tables, tables | {"d": math.nan}):
        with pytest.raises(RuntimeError, match="by nan on d"):
            check_identity(None, broken)  # type: ignore[arg-type]
