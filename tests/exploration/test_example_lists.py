"""Test that the lists hold what sorting all firings would give, for any batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.example_lists import SHOWN, ExampleList
from mtsae_lens.exploration.firings import Firings, find_firings
from mtsae_lens.exploration.plan import Plan


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_the_strongest_firing_of_the_strongest_contexts(look: Any, lm: Any, corpora: Corpora, batch_size: int) -> None:
    survey = look(lm, corpora, batch_size=batch_size)
    tokens = torch.tensor([ids for corpus in range(2) for _, ids in corpora.contexts(corpus)])
    acts = lm.feature_acts(tokens)
    examples, order = survey.lists["top"], survey.lists["top"].order(survey.plan.before)
    compared = 0
    for feature in range(32):
        peaks = acts[..., feature].amax(dim=1)
        expected = [peak for peak in peaks.sort(descending=True).values.tolist() if peak > 0][:3]
        found = [slot for slot in order[feature].tolist() if examples.context[feature, slot] >= 0]
        contexts = examples.context[feature, found].tolist()
        assert peaks[contexts].tolist() == pytest.approx(expected, rel=1e-4)
        assert len(set(contexts)) == len(contexts)
        for slot, context in zip(found, contexts, strict=True):
            position = int(acts[context, :, feature].argmax())
            assert examples.position[feature, slot] == position
            torch.testing.assert_close(examples.key[feature, slot], peaks[context])
            assert examples.corpus[feature, slot] == context // 10
            assert survey.held[context][1].tolist() == tokens[context].tolist()
            for place, where in enumerate(range(position - 5, position + 3)):
                value = examples.activations[examples.row[feature, slot], place]
                assert value.isnan() if not 0 <= where < 32 else (value - acts[context, where, feature]).abs() < 1e-5
            compared += 1
    assert compared > 40


def test_contexts_whose_examples_were_dropped_are_forgotten(look: Any, lm: Any, corpora: Corpora) -> None:
    survey = look(lm, corpora, n_examples=1, n_sampled=0, n_ablated=0)
    survey._forget()
    used = set(survey.lists["top"].context.flatten().tolist()) - {-1}
    assert set(survey.held) == used
    assert 0 < len(used) <= 20


def sample(keys: torch.Tensor, acts: torch.Tensor) -> torch.Tensor:
    """Return the context of each feature's one example."""
    examples = ExampleList.empty(acts.shape[-1], 1, Plan(before=0, after=0), 0, 0)
    firings = find_firings(acts)
    entries = examples.admit(firings, keys, len(acts), 0, 0)
    return entries.context[entries.feature.argsort()]


def test_the_sample_is_uniform_over_firings() -> None:
    """Four firings in three contexts, of very different strength: each context is drawn as often as it has firings."""
    acts = torch.zeros(3, 4, 4_000)
    acts[0, 1], acts[1, 2], acts[1, 3], acts[2, 0] = 1.0, 50.0, 2.0, 0.1
    n_firings = 4 * 4_000
    keys = torch.rand(n_firings, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(sample(keys, acts), minlength=3) / 4_000
    assert share.tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    by_strength = torch.bincount(sample(find_firings(acts).value, acts), minlength=3)
    assert by_strength.tolist() == [0, 4_000, 0]  # other keys, another list


def peaks_of(examples: ExampleList) -> torch.Tensor:
    """Activation at the peak of every slot; infinite where it is empty."""
    peaks, filled = torch.full(examples.row.shape, torch.inf), examples.row >= 0
    peaks[filled] = examples.activations[examples.row[filled].long(), 5]
    return peaks


def test_a_list_of_features_that_seldom_fire_is_small(look: Any, random_lm: Any, corpora: Corpora) -> None:
    """Rows are allocated only for existing examples, and the saved state has no unused row."""
    survey = look(random_lm("mtsae", d_sae=4_000), corpora)
    for examples in survey.lists.values():
        n_filled = int((examples.context >= 0).sum())
        assert 0 < n_filled < examples.row.numel() / 2
        assert len(examples.hidden_pre) <= 1.5 * n_filled
        assert {len(examples.tensors()[name]) for name in SHOWN} == {n_filled}
        assert sorted(examples.row[examples.row >= 0].tolist()) == list(range(n_filled))


def test_sampled_examples_are_firings_of_distinct_contexts(look: Any, lm: Any, corpora: Corpora) -> None:
    survey = look(lm, corpora, n_sampled=4)
    examples, tops = survey.lists["sampled"], survey.lists["top"]
    filled = examples.context >= 0
    peaks, top_peaks = peaks_of(examples), peaks_of(tops)
    assert (peaks[filled] > 0).all()
    for row in examples.context:
        assert len(set(row[row >= 0].tolist())) == int((row >= 0).sum())
    weaker = peaks.amin(dim=1) < top_peaks.amin(dim=1)
    assert weaker.sum() > 5  # not the strongest ones


def test_nothing_fires() -> None:
    examples = ExampleList.empty(3, 2, Plan(before=1, after=1), 0, 0)
    empty = torch.empty(0, dtype=torch.long)
    entries = examples.admit(Firings(empty, empty, empty, empty, torch.empty(0)), torch.empty(0), 4, 0, 0)
    assert len(entries.feature) == 0
    assert (examples.key == -torch.inf).all()
