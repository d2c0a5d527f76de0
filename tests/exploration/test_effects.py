"""Test ablation against a forward pass with a hook, and attribution to tokens against a derivative."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mtsae_lens.exploration.ablation import measure_ablation
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.firings import compute_features_at, read_batch
from mtsae_lens.exploration.model_attribution import attribute_to_tokens
from mtsae_lens.exploration.peaks import find_strongest_peaks

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.0.attn.hook_z"]


def nll(logits: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    return -logits[0, :-1].log_softmax(-1).gather(1, row[1:, None])[:, 0]


@torch.no_grad()
def naive(lm: Any, row: torch.Tensor, feature: int, position: int) -> tuple[float, float]:
    """The whole model with a hook, one example at a time."""
    masked = row == 0
    masked[0] = True

    def hook(h: torch.Tensor, hook: Any) -> torch.Tensor:
        seen = h.clone()
        seen[0, masked] = 0
        e = lm.sae.encode(seen.reshape(1, len(row), -1))
        assert e[0, position, feature] > 0
        changed = e.clone()
        changed[0, position, feature] = 0
        return h + (lm.sae.decode(changed) - lm.sae.decode(e)).reshape(h.shape)

    edited = lm.model.run_with_hooks(row[None], fwd_hooks=[(lm.splice.hook_name, hook)], prepend_bos=False)
    change = nll(edited, row) - nll(lm.model(row[None], prepend_bos=False), row)
    counted = row[1:] != 0
    rest = torch.tensor([t for t in range(position + 1, len(row) - 1) if counted[t]], dtype=torch.long)
    has_next = position < len(row) - 1 and bool(counted[position])
    return change[position].item() if has_next else torch.nan, change[rest].mean().item()


@pytest.mark.parametrize("hook_name", HOOKS)
@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_ablation_is_that_of_a_whole_forward_pass(
    random_lm: Any, look: Any, corpora: Corpora, hook_name: str, architecture: str
) -> None:
    lm = random_lm(architecture, hook_name)
    peaks = find_strongest_peaks(look(lm, corpora), 2)
    found = measure_ablation(lm, peaks)
    assert len(peaks) > 20
    expected = [
        naive(lm, peaks.tokens[context], feature, position)
        for context, feature, position in zip(
            *(x.tolist() for x in (peaks.context, peaks.feature, peaks.position)), strict=True
        )
    ]
    assert_close(found, torch.tensor(expected), atol=2e-5, rtol=1e-3, equal_nan=True)
    assert found.nan_to_num().abs().amax() > 1e-2  # it did something
    assert found[:, 0].isnan().sum() < len(peaks) / 2


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_ablation_of_heads(random_lm: Any, look: Any, corpora: Corpora, architecture: str) -> None:
    """An SAE that takes heads as heads is the one that takes them laid end to end."""
    lm, flat = (random_lm(architecture, HOOKS[2], reshape_activations=kind) for kind in ("hook_z", "none"))
    peaks = find_strongest_peaks(look(lm, corpora), 1)
    assert_close(measure_ablation(lm, peaks), measure_ablation(flat, peaks), equal_nan=True)


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_features_at_chosen_positions(random_lm: Any, corpora: Corpora, architecture: str) -> None:
    lm = random_lm(architecture)
    batch = next(iter(corpora.batches(3)))
    whole = read_batch(lm, batch.tokens)
    contexts, positions = torch.tensor([0, 2, 2, 1]), torch.tensor([1, 31, 7, 12])
    acts, pre = compute_features_at(lm, batch.tokens, lm.activations(batch.tokens), contexts, positions)
    kept = whole.kept[contexts, positions]
    assert_close(acts[kept], whole.feature_acts[contexts, positions][kept])
    assert_close(pre[kept], whole.hidden_pre[contexts, positions][kept])


def derivative(lm: Any, row: torch.Tensor, feature: int, position: int, source: int, epsilon: float = 1e-2) -> float:
    """Central difference of the pre-activation when one token's embedding is made longer."""
    values = []
    for sign in (1, -1):

        def longer(embed: torch.Tensor, hook: Any, sign: int = sign) -> torch.Tensor:
            embed = embed.clone()
            embed[:, source] *= 1 + sign * epsilon
            return embed

        with torch.no_grad():
            with lm.model.hooks(fwd_hooks=[("hook_embed", longer)]):
                h = lm.activations(row[None])
            _, pre = compute_features_at(lm, row[None], h, torch.tensor([0]), torch.tensor([position]))
        values.append(pre[0, feature].item())
    return (values[0] - values[1]) / (2 * epsilon)


@pytest.mark.parametrize(
    ("architecture", "settings"), [("mtsae", {}), ("topk", {}), ("mtsae", {"padding": "zero"})], ids=["mtsae", "topk", "ahead"]
)
def test_attribution_is_a_derivative(
    random_lm: Any, look: Any, corpora: Corpora, architecture: str, settings: dict[str, Any]
) -> None:
    lm = random_lm(architecture, "blocks.1.hook_resid_post", **settings)
    peaks = find_strongest_peaks(look(lm, corpora), 1)
    before, after = 6, 3
    found = attribute_to_tokens(lm, peaks, before, after)
    compared = 0
    for number in range(0, len(peaks), 5):
        position, row = int(peaks.position[number]), peaks.tokens[peaks.context[number]]
        for place in range(before + 1 + after):
            source = position - before + place
            if not 0 <= source < 32:
                assert found[number, place].isnan()
                continue
            expected = derivative(lm, row, int(peaks.feature[number]), position, source)
            assert found[number, place].item() == pytest.approx(expected, abs=3e-3 + 1e-2 * abs(expected))
            compared += abs(expected) > 0.02
        ahead = found[number, before + 1 :].nan_to_num()
        assert ahead.any() == ("padding" in settings) or position > 28
    assert compared > 8
