"""Test that the stability cell has the numbers of its parts, from SELECT text only."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch

from mtsae_lens.experiments.benchmark import stability_cell as module
from mtsae_lens.experiments.benchmark.stability_cell import N_FEATURES, SCORES, stability_cell
from mtsae_lens.unlearning import task as task_module
from mtsae_lens.unlearning.candidates import gather_evidence
from mtsae_lens.unlearning.selection.ranking import ranking
from mtsae_lens.unlearning.selection.scores import make_score
from mtsae_lens.unlearning.selection.stability import DecoderMatch, chance_jaccard


def test_one_seed_has_halves_and_no_seeds(make_setup: Any, text_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[str] = []
    original = task_module.read_tokens
    monkeypatch.setattr(task_module, "read_tokens", lambda source, split, *rest, **how: splits.append(split) or original(
        source, split, *rest, **how
    ))  # fmt: skip
    found = stability_cell([make_setup(text_task)]).to_json()["stability"]
    assert set(splits) == {"select"}
    assert list(found) == list(SCORES)
    for of_score in found.values():
        assert of_score["seeds"] is None
        assert of_score["halves"] is None or 0 <= of_score["halves"] <= 1
        assert (of_score["n_features"], of_score["chance"]) == (8, chance_jaccard(8, 32))


def test_seeds_are_compared_pair_by_pair(make_setup: Any, text_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(text_task)
    pairs: list[tuple[Any, Any]] = []

    def decoder_match(W_dec: Any, chosen: Any, other_W_dec: Any, other: Any, generator: torch.Generator) -> DecoderMatch:
        pairs.append((chosen, other))
        return DecoderMatch(float(len(pairs)), 0.25, 1)

    monkeypatch.setattr(module, "decoder_match", decoder_match)
    found = stability_cell([setup, setup, setup]).to_json()["stability"]
    score = make_score(SCORES[0])(gather_evidence(setup.lm, setup.task))
    chosen = ranking(score)[:N_FEATURES]
    assert len(chosen) > 1
    n_pairs = len(list(combinations(range(3), 2)))
    assert pairs[:n_pairs] == [(chosen, chosen)] * n_pairs
    assert found[SCORES[0]]["seeds"] == {"cosine": 2.0, "chance": 0.25, "n_pairs": 3}


def test_a_seed_without_a_choice_is_in_no_pair(make_setup: Any, text_task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ranking", lambda score: ())
    found = stability_cell([make_setup(text_task)] * 2).to_json()["stability"]
    assert all(of_score["seeds"] is None for of_score in found.values())
