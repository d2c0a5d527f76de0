"""Test that each switch changes one thing, and that its trials are saved."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mtsae_lens.experiments.paper import switches as switches_module
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.switch_arms import BASE, SwitchSettings, build_arms, list_switches
from mtsae_lens.experiments.paper.switches import (
    CachedActivations,
    build_sae,
    collect_values,
    make_switch_trials,
    record_settings,
)
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.trials import run_trials

TINY = SwitchSettings(n_steps=4, context_size=32, n_train_contexts=12, n_test_contexts=4, n_model_contexts=4)


@pytest.fixture(scope="module")
def cached(setup: PaperSetup) -> CachedActivations:
    return CachedActivations.read(setup, TINY)


def test_every_arm_of_a_switch_exists_and_the_base_is_in_each() -> None:
    known = build_arms(TINY)
    for switch in list_switches(TINY):
        assert BASE in switch.arms
        assert set(switch.arms) <= set(known)
    assert {name for switch in list_switches(TINY) for name in switch.arms} == set(known)


def test_the_base_is_the_papers_sae() -> None:
    sae = build_sae(build_arms(TINY)[BASE], TINY, 16, 0, "cpu")
    assert asdict(sae.cfg) == asdict(MTTrainingSAEConfig.paper(16, 32, context_size=32))


@pytest.mark.parametrize("name", [n for n, arm in build_arms(TINY).items() if arm.sae and not arm.defaults])
def test_an_arm_changes_what_it_says_and_nothing_else(name: str) -> None:
    base, changed = (asdict(build_sae(build_arms(TINY)[arm], TINY, 16, 0, "cpu").cfg) for arm in (BASE, name))
    differ = {key for key in base if base[key] != changed[key]} - {"metadata"}  # which has a unique identifier
    assert differ == set(build_arms(TINY)[name].sae)


def test_taps_that_start_alike_are_one_scale(cached: CachedActivations) -> None:
    alike = cached.run_arm(build_arms(TINY)["taps_alike"], 0)
    conv = cached.run_arm(build_arms(TINY)[BASE], 0)
    assert alike["scale_cosine_untrained"] == pytest.approx(1, abs=1e-4)
    assert conv["scale_cosine_untrained"] < 0.5


def test_the_paper_leaks_and_a_causal_sae_does_not(cached: CachedActivations) -> None:
    circular, causal = (cached.run_arm(build_arms(TINY)[name], 0) for name in (BASE, "causal"))
    assert circular["future_leak"] > 0
    assert causal["future_leak"] == 0
    assert {"ce_loss_score_withhold", "ce_loss_score_replace"} <= set(circular)
    assert "ce_loss_score_withhold" not in causal


def test_more_steps_explain_more(cached: CachedActivations) -> None:
    arm = build_arms(TINY)["taps_offsets"]
    few, many = (cached.run_arm(replace(arm, n_steps=n, lr=3e-3), 0)["explained_variance"] for n in (1, 60))
    assert many > few + 0.05


def test_one_seed_gives_one_result_and_another_seed_another(cached: CachedActivations) -> None:
    arm = build_arms(TINY)["causal"]
    first, again, other = (cached.run_arm(arm, seed) for seed in (0, 0, 1))
    assert first == again
    assert first["explained_variance"] != other["explained_variance"]


def test_trials_that_are_done_are_kept(setup: PaperSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switches_module, "build_arms", lambda settings: {BASE: build_arms(settings)["norm_none"]})
    settings = record_settings(TINY)
    first = run_trials(tmp_path, settings, dict(make_switch_trials(setup, TINY, 2)), "test")
    monkeypatch.setattr(CachedActivations, "read", lambda *_: pytest.fail("read the model again"))
    second = run_trials(tmp_path, settings, dict(make_switch_trials(setup, TINY, 2)), "test")
    assert first == second
    values = collect_values(second)
    assert list(values) == [BASE]
    assert len(values[BASE]["explained_variance"]) == 2
