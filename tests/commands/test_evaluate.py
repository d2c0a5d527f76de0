"""Test which text `mtsae evaluate` reads for which measurement."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens import opening
from mtsae_lens.commands import evaluate as module
from mtsae_lens.commands.evaluate import EvaluateSettings, run_evaluate
from mtsae_lens.commands.evaluate_results import EvaluateResult
from mtsae_lens.errors import TrainingInterrupted
from mtsae_lens.evaluation.bits import BITS_MEANINGS
from mtsae_lens.opening import load_sae


def test_scales_are_fitted_on_select_and_scored_on_test(
    tiny_sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    original = {name: getattr(module, name) for name in ("read_tokens", "scale_predictivity", "temporal_profiles")}

    def read_tokens(source: str, split: Any, *rest: Any, **how: Any) -> Any:
        table = original["read_tokens"](source, split, *rest, **how)
        given.setdefault("splits", []).append(split)
        return table

    def scale_predictivity(sae: Any, fitting: Any, scoring: Any, features: Any) -> Any:
        given["fitting"], given["scoring"] = fitting, scoring
        return original["scale_predictivity"](sae, fitting, scoring, features)

    def temporal_profiles(sae: Any, sae_in: Any, features: Any) -> Any:
        given["profiles"] = sae_in
        return original["temporal_profiles"](sae, sae_in, features)

    for function in (read_tokens, scale_predictivity, temporal_profiles):
        monkeypatch.setattr(module, function.__name__, function)
    run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path, n_contexts=20, n_scale_contexts=20))
    assert sorted(given["splits"]) == ["select", "test"]  # TEST once, for fidelity and for the scales
    lm, _ = module.open_sae(tiny_sae_dir, model=None, device="cpu", batch_size=16)
    dataset = lm.sae.cfg.metadata.dataset_path
    for split, parts in (("select", given["fitting"]), ("test", given["scoring"]), ("test", given["profiles"])):
        table = original["read_tokens"](dataset, split, lm.cutter, 20, seed=0)
        assert all(part.equal(lm.sae_input(tokens)) for part, tokens in zip(parts, lm.batches(table), strict=True))


def test_too_few_positions_for_the_regressions_are_named(tiny_sae_dir: Path, tmp_path: Path) -> None:
    run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path, n_contexts=2))
    assert "scales" not in json.loads((tmp_path / "metrics.json").read_text())
    assert "raise --n-contexts and --n-scale-contexts" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("command", ["evaluate", "explore"])
def test_text_that_is_not_there_is_reported_before_the_model_is_loaded(
    command: str, tiny_sae_dir: Path, tmp_path: Path, mtsae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the language model was loaded")

    monkeypatch.setattr(opening, "load_language_model", load)
    outcome = mtsae(command, tiny_sae_dir, "--dataset", tmp_path / "none.txt", "--out", tmp_path / "out")
    assert outcome.code != 0
    assert "none.txt" in outcome.error


@pytest.mark.parametrize("collapsed", [False, True])
def test_a_collapsed_sae_is_called_so(collapsed: bool, tiny_sae_dir: Path, tmp_path: Path) -> None:
    sae, folder = load_sae(tiny_sae_dir), tmp_path / "sae"
    with torch.no_grad():
        sae.b_enc[:4] += 1e6 * collapsed  # k of 32
    sae.save_model(folder)
    measured = run_evaluate(EvaluateSettings(sae=folder, out=tmp_path / "out", n_contexts=8, n_scale_contexts=0))
    metrics = measured.metrics
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    report = (tmp_path / "out" / "report.html").read_text()
    assert ("warning" in written) is collapsed
    assert ("looks collapsed" in report) is collapsed
    assert EvaluateResult.from_json(written).to_json() == measured.to_json()  # NaN is not equal to itself
    assert set(written) == {*metrics, "firing", "provenance"} | ({"warning"} if collapsed else set())
    assert (
        f"{metrics['dead_features']} of 32 features never fired, and {metrics['always_on_features']} fired on over half"
        in report
    )
    if collapsed:
        assert (metrics["always_on_features"], metrics["dead_features"]) == (4, 28)


def test_no_more_text_is_read_than_was_asked_for(tiny_sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--n-contexts` also bounds what the scale analysis reads, even if its own setting is larger."""
    asked: list[int] = []
    original = module.read_tokens

    def read_tokens(source: str, split: Any, cutter: Any, max_contexts: int, **how: Any) -> Any:
        asked.append(max_contexts)
        return original(source, split, cutter, max_contexts, **how)

    monkeypatch.setattr(module, "read_tokens", read_tokens)
    run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path, n_contexts=4))
    assert asked == [4, 4]  # TEST for fidelity and the scales, SELECT for the scales
    asked.clear()
    run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path, n_contexts=4, n_scale_contexts=2))
    assert sorted(asked) == [2, 2, 4]


def test_a_signal_ends_it_in_one_line(tiny_sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "evaluate_fidelity", lambda *arguments, **options: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match="run the same command to start again") as stop:
        run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path, n_contexts=4))
    assert stop.value.signal_number == signal.SIGTERM
    assert not (tmp_path / "metrics.json").exists()


def test_the_report_opens_with_what_was_found(tiny_sae_dir: Path, tmp_path: Path) -> None:
    measured = run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path, n_contexts=4, n_scale_contexts=0)).metrics
    page = (tmp_path / "report.html").read_text()
    assert f"The SAE explains {measured['explained_variance']:.1%} of the variance" in page
    assert "explains an unknown share of the variance" in module.fidelity_summary({**measured, "explained_variance": None})


def test_bits_per_token_are_an_option(tiny_sae_dir: Path, tmp_path: Path) -> None:
    plain = run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path / "plain", n_contexts=4, n_scale_contexts=0)).metrics
    assert not set(BITS_MEANINGS) & set(plain)
    found = {
        bits: run_evaluate(
            EvaluateSettings(sae=tiny_sae_dir, out=tmp_path / str(bits), n_contexts=4, n_scale_contexts=0, value_bits=bits)
        ).metrics
        for bits in (2, 8)
    }
    assert found[2]["support_bits"] == pytest.approx(found[8]["support_bits"])
    assert found[2]["value_bits"] < found[8]["value_bits"]
    closest = found[8]["explained_variance_without_massive"]
    assert found[8]["explained_variance_coded"] == pytest.approx(closest, abs=0.02)
    assert "bits_per_token" in (tmp_path / "8" / "report.html").read_text()


def test_when_features_fire_is_measured_on_test_unless_it_is_switched_off(tiny_sae_dir: Path, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"sae": tiny_sae_dir, "n_contexts": 8, "n_scale_contexts": 0}
    measured = run_evaluate(EvaluateSettings(out=tmp_path / "all", **sizes))
    written = json.loads((tmp_path / "all" / "metrics.json").read_text())
    firing = measured.firing
    assert firing is not None
    assert EvaluateResult.from_json(written) == measured
    lm, _ = module.open_sae(tiny_sae_dir, model=None, device="cpu", batch_size=16)
    table = module.read_tokens(lm.sae.cfg.metadata.dataset_path, "test", lm.cutter, 8, seed=0)
    active = (lm.feature_acts(table.tokens) > 0) & ~lm.masked(table.tokens).unsqueeze(-1)
    paired = ~lm.masked(table.tokens)[:, 1:].unsqueeze(-1)
    assert firing.n_features == lm.sae.cfg.d_sae
    expected = (active[:, 1:] & active[:, :-1]).sum() / (active[:, :-1] & paired).sum()
    assert written["firing"]["persistence"] == pytest.approx(
        float(expected), abs=0.02
    )  # a mean over features, weighted by their firings
    assert "autocorrelation at lag 16" in (tmp_path / "all" / "report.html").read_text()
    some = run_evaluate(EvaluateSettings(out=tmp_path / "some", n_firing_features=5, **sizes)).firing
    assert some is not None
    assert some.n_features == 5
    assert run_evaluate(EvaluateSettings(out=tmp_path / "none", n_firing_features=0, **sizes)).firing is None
    assert "When features fire" not in (tmp_path / "none" / "report.html").read_text()
