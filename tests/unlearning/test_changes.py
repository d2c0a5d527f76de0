"""Test changes of a model: numbers of an effect by hand, an edit measured in two ways, and all further measures on a tiny task."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate, SequenceRateGate
from mtsae_lens.unlearning.changes import Change, measure_further, pool_draws, summarize_documents, summarize_effect
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.measures.bootstrap import delta_interval
from mtsae_lens.unlearning.measures.calibration import calibrated_loss
from mtsae_lens.unlearning.measures.effects import as_logits, measure_edits
from mtsae_lens.unlearning.measures.results import EditEffect, EditLoss
from mtsae_lens.unlearning.task import Corpus, Task


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


EFFECT = EditEffect(
    corpus="c",
    documents=("b", "a", "b", "empty"),
    gate_open=0.25,
    n_tokens=column(2, 4, 3, 0),
    nll_clean=column(2, 8, 8, 0),
    nll_edited=column(6, 10, 11, 0),
    kl=column(1, 2, 1.5, 0),
    agreements=column(1, 4, 1, 0),
    hits=column(2, 1, 0, 0),
    suffix=column(2, 1, 0, 0),
)


def test_the_numbers_of_an_effect_by_hand() -> None:
    row = summarize_effect(EFFECT, seed=3).to_json()
    low, high = delta_interval(column(7, 2), column(5, 4), 3)
    assert row == pytest.approx(
        {
            "nll_clean": 2.0,
            "nll_edited": 3.0,
            "perplexity_clean": math.exp(2),
            "perplexity_edited": math.exp(3),
            "nll_delta": 1.0,
            "nll_delta_low": low,
            "nll_delta_high": high,
            "kl": 0.5,
            "top1_agreement": 6 / 9,
            "exact_memorisation": 3 / 9,
            "extraction_strength": (1 + 0.25 + 0) / 3,
            "exact_recall": 1 / 3,
            "gate_open": 0.25,
            "n_tokens": 9,
            "n_contexts": 4,
            "n_documents": 2,
        }
    )
    assert row["nll_delta_low"] < row["nll_delta"] < row["nll_delta_high"]


def test_a_loss_beyond_all_numbers_still_has_a_perplexity() -> None:
    row = summarize_effect(replace(EFFECT, nll_edited=EFFECT.n_tokens * 1e4), seed=0).to_json()
    json.dumps(row, allow_nan=False)
    assert row["perplexity_edited"] == math.exp(700)


def test_documents_are_added_up_in_order_and_those_without_a_token_left_out() -> None:
    keys = ("document", "n_tokens", "nll_clean", "nll_edited", "kl", "top1_agreement", "exact_memorisation", "n_contexts")
    expected = [("b", 5, 10 / 5, 17 / 5, 2.5 / 5, 2 / 5, 2 / 5, 2), ("a", 4, 8 / 4, 10 / 4, 2 / 4, 1.0, 1 / 4, 1)]
    recalled = {"b": 1 / 2, "a": 0.0}
    rows = [document.to_json() for document in summarize_documents(EFFECT)]
    assert [row["document"] for row in rows] == ["b", "a"]
    for row, values in zip(rows, expected, strict=True):
        assert row == pytest.approx(dict(zip(keys, values, strict=True)) | {"exact_recall": recalled[row["document"]]})


def test_draws_are_pooled_by_hand() -> None:
    n_tokens, clean = column(2, 6), column(8, 8)
    draws = [EditLoss("c", ("a", "b"), 1.0, n_tokens, clean, clean + column(*added)) for added in ((0, 4), (8, 8), (-4, 0))]
    expected = {"nll_clean": 2.0, "nll_edited": 2.0 + 2 / 3, "nll_delta": 2 / 3, "nll_delta_min": -0.5, "nll_delta_max": 2.0}
    assert pool_draws(draws).to_json() == pytest.approx(expected | {"n_draws": 3, "n_tokens": 8})


@pytest.fixture
def task(text_file: Path, sea_file: Path) -> Task:
    return Task((Corpus(str(text_file), "far"), Corpus(str(sea_file), "forget"), Corpus("kjv", "near")), 6)


def gated(lm: Any) -> FeatureEdit:
    gate = RunningEvidenceGate(torch.arange(16), torch.ones(16), 0.9, 8.0)
    return FeatureEdit(tuple(range(lm.sae.cfg.d_sae)), 4.0, gate)


def test_an_edit_is_the_same_change_with_other_weights_that_are_the_same(lm: Any, task: Task) -> None:
    tables = task.tables("tune", lm.cutter)
    edit = gated(lm)
    alone = Change(edit).effects(lm, tables)
    on_a_copy = Change(edit, clone_model(lm.model)).effects(lm, tables)
    assert list(alone) == list(on_a_copy) == list(tables)
    for source, effect in alone.items():
        assert 0 < effect.gate_open < 1
        assert on_a_copy[source].gate_open == 1.0
        for name in ("n_tokens", "nll_clean", "nll_edited", "kl", "agreements", "hits", "suffix"):
            torch.testing.assert_close(getattr(on_a_copy[source], name), getattr(effect, name), atol=1e-3, rtol=1e-4)
        assert abs(effect.nll_delta) > 1e-2


def test_weights_change_and_nothing_changes_nothing(lm: Any, task: Task) -> None:
    tables = task.tables("tune", lm.cutter, ("forget",))
    other = clone_model(lm.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    (nothing,) = Change().effects(lm, tables).values()
    assert nothing.nll_delta == 0.0
    (effect,) = Change(weights=other).effects(lm, tables).values()
    tokens = tables[task.forget].tokens
    log_probs = other(tokens, prepend_bos=False)[:, :-1].log_softmax(dim=-1)
    nll = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
    torch.testing.assert_close(effect.nll_edited.float(), (nll * (tokens[:, 1:] != 0)).sum(dim=1), atol=1e-3, rtol=1e-4)
    assert effect.nll_delta != 0.0


def test_further_measures_of_an_edit_read_the_forget_text_of_tune_and_the_rest_of_test(
    lm: Any, task: Task, tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = set()
    original = Task.table
    monkeypatch.setattr(Task, "table", lambda self, s, split, c: read.add((s, split)) or original(self, s, split, c))
    found = measure_further(lm, task, Change(gated(lm)), tiny_model, seed=1).to_json()
    assert set(found) == {"calibrated_nll_delta", "gate", "reference", "generation", "samples"}
    json.dumps(found, allow_nan=False)
    assert read == {(task.forget, "tune"), *((source, "test") for source in task.sources("forget", "near", "far"))}
    assert set(found["gate"]["others"]) == set(task.sources("near", "far"))
    assert set(found["generation"]) == set(found["samples"]) == set(task.sources("forget", "near", "far"))
    (effect,) = Change(gated(lm)).effects(lm, {"f": original(task, task.forget, "test", lm.cutter)}).values()
    tune, test = (original(task, task.forget, split, lm.cutter) for split in ("tune", "test"))
    calibrated = calibrated_loss(Change(gated(lm)).logits(lm), as_logits(lm.model), lm.cutter, tune, test)
    assert found["calibrated_nll_delta"] == pytest.approx(calibrated.nll_delta, abs=1e-3)
    assert found["reference"]["nll_gap"] == pytest.approx(effect.nll_delta, abs=1e-5)  # the clean model is the reference
    assert found["reference"]["kl_untouched"] == pytest.approx(0.0, abs=1e-6)
    assert found["reference"]["kl"] > 1e-4


def test_what_further_measures_there_are_depends_on_the_change(lm: Any, task: Task) -> None:
    of_weights = measure_further(lm, task, Change(weights=lm.model), None, seed=0).to_json()
    assert set(of_weights) == {"calibrated_nll_delta", "generation", "samples"}
    assert of_weights["calibrated_nll_delta"] == pytest.approx(0.0, abs=1e-3)
    for health in of_weights["generation"].values():
        assert health["clean"] == health["edited"]
    other = clone_model(lm.model)
    with torch.no_grad():
        other.unembed.W_U.neg_()
    changed = measure_further(lm, task, Change(weights=other), None, seed=0).to_json()["samples"][task.forget]
    assert all(sample["edited"] != sample["clean"] for sample in changed)  # it is the changed model that writes
    not_causal = FeatureEdit((1, 2), 1.0, SequenceRateGate(torch.arange(4), 0.5))
    without_text = measure_further(lm, task, Change(not_causal), None, seed=0).to_json()
    assert without_text["generation"] == without_text["samples"] == {}


def test_of_questions_truth_ratios_are_compared_with_the_reference(lm: Any, text_file: Path, tiny_model: Any) -> None:
    task = Task((Corpus("facts:forget:known", "forget"), Corpus(str(text_file), "far")), 1)
    found = measure_further(lm, task, Change(gated(lm)), tiny_model, seed=0).to_json()
    json.dumps(found, allow_nan=False)
    assert "truth_ratio" in found
    assert "truth_ratio" not in measure_further(lm, task, Change(gated(lm)), None, seed=0).to_json()


def test_texts_are_continued_from_so_many_contexts_of_test(lm: Any, task: Task) -> None:
    shown = measure_further(lm, task, Change(weights=lm.model), None, seed=0).to_json()["samples"]
    table = read_tokens(task.forget, "test", lm.cutter, 6)
    texts = [lm.cutter.tokenizer.decode(row[1:].tolist()) for row in table.tokens]
    for sample in shown[task.forget]:
        assert any(text.startswith(sample["prompt"]) for text in texts)


def test_prompts_of_packed_notes_end_before_their_separators(lm: Any, text_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps({"text": f"Note {i}: the mast."}) + "\n" for i in range(400)))
    task = Task((Corpus(str(path), "forget"), Corpus(str(text_file), "far")), 6)
    found = measure_further(lm, task, Change(gated(lm)), None, seed=0).to_json()
    assert found["generation"][str(path)]["clean"]["n_texts"] >= 3
    (effect,) = measure_edits(lm, task.table(str(path), "test", lm.cutter), [gated(lm)])
    row = summarize_effect(effect, seed=0).to_json()
    assert row["n_documents"] > row["n_tokens"] / 12  # notes of at most 12 tokens, each a separate document
    assert len(summarize_documents(effect)) == row["n_documents"]
