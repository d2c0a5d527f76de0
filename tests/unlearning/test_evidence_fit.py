"""Test the fits of gates that accumulate evidence, on text with planted evidence, and as kinds of `mtsae unlearn`."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mtsae_lens.commands.unlearn_settings import UnlearnSettings
from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.unlearning import evidence_fit, gate_kinds, observed
from mtsae_lens.unlearning.candidates import fit_gates
from mtsae_lens.unlearning.evidence_fit import evidence_loss, fit_decayed_mean, fit_two_state, window_scores
from mtsae_lens.unlearning.gate_kinds import GATE_KINDS, GateChoice
from mtsae_lens.unlearning.measures.gate_quality import auroc
from mtsae_lens.unlearning.observed import MAX_POSITIONS, Observed, observe_table, reader
from mtsae_lens.unlearning.task import Corpus, Task


def planted(n: int, clusters: Tensor | None, seed: int, length: int = 12) -> Observed:
    """Noise; in forget text, one position of each context is near one of the clusters."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, length, clusters.shape[1] if clusters is not None else 6, generator=generator)
    if clusters is not None:
        which = torch.randint(len(clusters), (n,), generator=generator)
        at = torch.randint(1, length - 4, (n,), generator=generator)
        rows[torch.arange(n), at] += clusters[which]
    return Observed(rows, torch.ones(n, length, dtype=torch.bool), torch.full((n,), length - 1))


def separation(gate: Any, clusters: Tensor) -> float:
    forget, retain = planted(300, clusters, 5), planted(300, None, 6)
    return auroc(gate.score(forget.rows)[:, -1], gate.score(retain.rows)[:, -1])


ONE = torch.eye(6)[:1] * 5
OPPOSITE = torch.cat([torch.eye(6)[:3], -torch.eye(6)[:3]]) * 5


def test_a_filter_finds_a_single_piece_of_evidence_that_a_mean_blurs() -> None:
    forget, retain = planted(300, ONE, 0), [planted(300, None, 1)]
    two_state = fit_two_state(forget, retain, "activations", seed=0, n_detectors=2, n_steps=150)
    mean = fit_decayed_mean(forget, retain, "activations", seed=0)
    assert separation(two_state, ONE) > separation(mean, ONE) + 0.03
    assert separation(two_state, ONE) > 0.93


def test_several_detectors_find_what_no_direction_separates() -> None:
    forget, retain = planted(600, OPPOSITE, 0), [planted(600, None, 1)]
    one, several = (fit_two_state(forget, retain, "activations", seed=0, n_detectors=n, n_steps=250) for n in (1, 8))
    assert separation(one, OPPOSITE) < 0.7
    assert separation(several, OPPOSITE) > 0.85
    assert len(several.bias) == 8


def test_the_fit_learns_how_fast_the_state_changes() -> None:
    """Evidence that comes and goes is forgotten faster than evidence that stays."""

    def text(stays: bool, seed: int) -> Observed:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(300, 24, 2, generator=generator)
        rows[:, : 24 if stays else 3, 0] += 1.5
        return Observed(rows, torch.ones(300, 24, dtype=torch.bool), torch.full((300,), 23))

    # text to keep begins like forget text and goes on differently; forget text is forget text at its end
    begins = text(False, 1)
    forget = text(True, 0)
    steady = fit_two_state(forget, [text(False, 2)], "activations", seed=0, loss="positions", n_steps=150)
    end = begins.rows.flip(1)
    recent = fit_two_state(Observed(end, begins.is_step, begins.at), [begins], "activations", seed=0, n_steps=150)
    assert recent.opening + recent.closing > steady.opening + steady.closing


def test_windows_by_hand() -> None:
    values = torch.tensor([[0.0, 1.0, 5.0, 3.0, -1.0], [2.0, 0.0, 9.0, 0.0, 0.0]])
    is_step = torch.tensor([[True] * 5, [False, True, False, False, True]])
    mean, variance = window_scores(values, is_step, width=2, n_top=2)
    assert mean.tolist() == [(4.0 + 3.0) / 2, 0.0]  # the second has no full window: the mean of its steps
    assert variance.tolist() == [0.25, 0.0]
    alone, none = window_scores(values[:1], is_step[:1], width=9, n_top=3)
    assert (alone.item(), none.item()) == (pytest.approx(1.6), 0.0)


def test_only_text_to_keep_pays_for_variance() -> None:
    observed = Observed(torch.ones(1, 8, 1), torch.ones(1, 8, dtype=torch.bool))
    even, uneven = torch.zeros(1, 8), torch.tensor([[4.0] * 4 + [-4.0 / 3] * 4])
    scores, variance = window_scores(uneven, observed.is_step)
    assert variance.item() > 0.5
    plain = torch.nn.functional.softplus(scores).item()
    assert evidence_loss(uneven, observed, 0.0, "windows").item() == pytest.approx(plain + 0.1 * variance.item())
    assert evidence_loss(uneven, observed, 1.0, "windows").item() == pytest.approx(torch.nn.functional.softplus(-scores).item())
    assert evidence_loss(even, observed, 0.0, "windows") == evidence_loss(even, observed, 0.0, "positions")


def test_weights_belong_to_the_rows_as_they_are() -> None:
    """The fit standardizes; a gate of shifted and scaled rows is the same gate."""
    forget, retain = planted(200, ONE, 0), planted(200, None, 1)
    moved = [Observed(o.rows * 7 + 30, o.is_step, o.at) for o in (forget, retain)]
    gate = fit_two_state(forget, [retain], "activations", seed=0, n_steps=30)
    other = fit_two_state(moved[0], [moved[1]], "activations", seed=0, n_steps=30)
    torch.testing.assert_close(other.score(moved[0].rows), gate.score(forget.rows), atol=1e-2, rtol=1e-3)


def test_a_fit_is_that_of_its_seed() -> None:
    forget, retain = planted(50, ONE, 0), [planted(50, None, 1)]
    one, same, other = (fit_two_state(forget, retain, "activations", seed=s, n_steps=5, n_detectors=2) for s in (1, 1, 2))
    assert one == same
    assert one != other


def test_features_are_chosen_by_how_much_they_differ() -> None:
    forget, retain = planted(200, ONE, 0), [planted(200, None, 1)]
    gate = fit_two_state(forget, retain, "features", seed=0, n_steps=5)
    assert gate.reads == "features"
    assert 0 in gate.features.tolist()
    assert gate.weights.shape == (1, len(gate.features))


def test_what_cannot_be_fitted_is_refused() -> None:
    forget = planted(5, ONE, 0)
    for fit in (fit_two_state, fit_decayed_mean):
        with pytest.raises(DataError, match="stay closed on, got none"):
            fit(forget, [], "activations", seed=0)
    with pytest.raises(ConfigError, match="at least one detector, got 0"):
        fit_two_state(forget, [forget], "activations", seed=0, n_detectors=0)
    with pytest.raises(ConfigError, match=r"expected a known gate, got 'two_state'"):
        GateChoice("two_state")


def test_what_is_observed(lm: Any, text_file: Path) -> None:
    table, questions = (
        read_tokens(str(text_file), "select", lm.cutter, 6),
        read_questions("facts:forget:known", "select", lm.cutter, 5),
    )
    features = observe_table(lm, table, reader(lm, "features"))
    assert torch.equal(features.rows, lm.feature_acts(table.tokens)[:, :MAX_POSITIONS])
    assert torch.equal(features.is_step, ~lm.masked(table.tokens))
    assert features.at is None
    raw = observe_table(lm, questions, reader(lm, "activations"))
    assert torch.equal(raw.rows, lm.sae_input(questions.tokens))
    assert raw.at is not None
    assert questions.answers is not None
    assert all(row[at + 1] and not row[at] for row, at in zip(questions.answers, raw.at.tolist(), strict=True))


def test_features_that_no_gate_reads_are_not_held(
    lm: Any, text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate is that of all features, of which only one batch is dense at a time."""
    forget, *retain = (
        read_tokens(str(source), split, lm.cutter, 12)
        for source, split in ((sea_file, "select"), (text_file, "select"), (text_file, "tune"))
    )
    for module in (observed, evidence_fit):
        monkeypatch.setattr(module, "MAX_FEATURES", 8)
    dense = [observe_table(lm, table, reader(lm, "features")) for table in (forget, *retain)]
    expected = fit_two_state(dense[0], dense[1:], "features", seed=0, n_steps=20)
    given, held, alive = list[int](), list[Any](), list[int]()
    fit, read = gate_kinds.fit_two_state, lm.splice.sae.encode

    def fit_and_note(first: Observed, others: Any, *args: Any, **options: Any) -> TwoStateGate:
        given.extend(each.rows.shape[-1] for each in (first, *others))
        return fit(first, others, *args, **options, n_steps=20)

    def read_and_note(h: Tensor) -> Tensor:
        alive.append(sum(reference() is not None for reference in held))
        held.append(weakref.ref(acts := read(h)))
        return acts

    monkeypatch.setattr(gate_kinds, "fit_two_state", fit_and_note)
    monkeypatch.setattr(lm.splice.sae, "encode", read_and_note)
    gate = GateChoice("two_state_features").fit(lm, forget, retain, seed=0)
    assert given == [8, 8, 8]
    assert len(alive) == 9
    assert max(alive) <= 1
    assert isinstance(gate, TwoStateGate)
    assert torch.equal(gate.features, expected.features)
    assert 0 < len(gate.features) <= 8
    torch.testing.assert_close(gate.weights, expected.weights, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", sorted(set(GATE_KINDS) - {"known_groups_activations"}))
def test_every_kind_is_fitted_and_separates(kind: str, lm: Any, text_file: Path, sea_file: Path) -> None:
    task = Task((Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far")), 12)
    gates = fit_gates(lm, task, (0.1, None), GateChoice(kind, threshold="quantile"))
    gate = gates[0.1]
    assert type(gate).__name__ in ("RunningEvidenceGate", TwoStateGate.__name__, DecayedMeanGate.__name__)
    opened = [
        gate.open_from(gate.observe(lm.sae_input(t.tokens), lm.feature_acts(t.tokens)), None)[0][:, 8:].float().mean().item()
        for t in (task.table(source, "test", lm.cutter) for source in (task.forget, str(text_file)))
    ]
    assert opened[0] > opened[1] + 0.2


def test_a_conformal_threshold_is_set_on_near_text(lm: Any, text_file: Path, sea_file: Path) -> None:
    task = Task((Corpus(str(sea_file), "forget"), Corpus("kjv", "far"), Corpus(str(text_file), "near")), 12)
    choice = GateChoice("decayed_mean_activations", threshold="conformal")
    with pytest.raises(DataError, match=r"documents of near text for a false-positive rate of 0\.001"):
        fit_gates(lm, task, (0.001,), choice)
    strict, loose = (fit_gates(lm, task, (0.6, 0.9), choice)[rate].threshold for rate in (0.6, 0.9))  # type: ignore[attr-defined]
    assert strict >= loose


def test_the_command_passes_its_gate_on() -> None:
    given = {"sae": "sae", "forget": "kjv", "retain": ["sotu"], "gate": "two_state_activations", "n_detectors": 3}
    settings = UnlearnSettings.build(None, given | {"gate_threshold": "conformal"})
    assert settings.protocol().gate == GateChoice("two_state_activations", 3, "conformal")
    assert UnlearnSettings.build(None, {"sae": "sae", "forget": "kjv", "retain": ["sotu"]}).protocol().gate == GateChoice()
    with pytest.raises(ConfigError, match=r"expected a known gate, got 'two_state_activation'"):
        UnlearnSettings.build(None, given | {"gate": "two_state_activation"})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"gate": "known_groups_activations", "n_detectors": 40},
            "expected n_detectors with a two-state gate, got 40 with gate=known_groups",
        ),
        ({"n_detectors": 2}, "got 2 with gate=running_evidence"),
        (
            {"gate": "running_evidence", "false_positive_rates": [None]},
            "expected a false-positive rate for the gate, got gate and no rate",
        ),
        ({"gate_threshold": "conformal", "false_positive_rates": [None]}, "got gate_threshold and no rate"),
        ({"n_features": [-3]}, "n_features"),
        ({"n_features": [0]}, "n_features"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UnlearnSettings.build(None, {"sae": "sae", "forget": "kjv", "retain": ["sotu"]} | given)
    UnlearnSettings.build(None, {"sae": "sae", "forget": "kjv", "retain": ["sotu"], "false_positive_rates": [None]})
