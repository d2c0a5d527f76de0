"""Test the output score against one forward pass per feature and prompt, and for a feature that writes a token."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig

from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import FrequencyRatio
from mtsae_lens.unlearning.selection.output_score import OutputScore, lens_tokens, output_scores

LAST = "blocks.1.hook_resid_post"
WORDS = [100, 200, 300, 400]


def test_scores_are_those_of_one_feature_at_a_time(lm: Any) -> None:
    amounts = torch.linspace(0.5, 30, 32)
    prompts = ("the old king sat", "under it")
    scores = output_scores(lm, amounts, prompts=prompts, n_lens_tokens=7)
    promised = lens_tokens(lm, 7)
    for feature in (0, 5, 31):
        expected = 0.0
        for prompt in prompts:
            tokens = torch.tensor([[0, *lm.cutter.tokenizer(prompt, add_special_tokens=False)["input_ids"]]])

            def hook(h: torch.Tensor, hook: Any, feature: int = feature) -> torch.Tensor:
                h = h.clone()
                h[0, -1] += amounts[feature] * lm.sae.W_dec[feature]
                return h

            logits = lm.model.run_with_hooks(tokens, fwd_hooks=[(lm.splice.hook_name, hook)], prepend_bos=False)[0, -1]
            order = logits.argsort(descending=True).tolist()
            rank = min(order.index(token) for token in promised[feature].tolist())
            expected += (1 - rank / len(order)) * logits.softmax(-1)[promised[feature]].max().item() / len(prompts)
        assert scores[feature].item() == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(scores, output_scores(lm, amounts, prompts=prompts, n_lens_tokens=7, features_at_once=5))


def writing_lm(lm: Any) -> HookedLM:
    """Make a model in which features 0 to 3 each write a token after the last layer, and feature 4 writes nothing past the final norm."""
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=5, k=2, metadata=SAEMetadata(hook_name=LAST)))
    rows = lm.model.W_U.T[WORDS] / lm.model.ln_final.w
    sae.W_dec.data = torch.nn.functional.normalize(torch.cat([rows - rows.mean(dim=1, keepdim=True), torch.ones(1, 32)]), dim=1)
    return HookedLM(lm.model, Splice(sae), lm.cutter)


def test_a_feature_that_writes_a_token_promises_and_delivers_it(lm: Any) -> None:
    writing = writing_lm(lm)
    assert lens_tokens(writing, 1)[:4, 0].tolist() == WORDS
    strong, weak = (output_scores(writing, torch.full((5,), amount), n_lens_tokens=1) for amount in (200.0, 0.0))
    assert (strong[:4] > 10 * weak[:4]).all()
    assert strong[4] == pytest.approx(weak[4].item(), rel=1e-2)
    assert (strong[:4] > 0.01).all()
    assert (strong <= 1).all()


def test_only_eligible_features_are_scored(lm: Any, text_file: Path, sea_file: Path) -> None:
    tables = [read_tokens(str(path), "select", lm.cutter, 4) for path in (text_file, sea_file)]
    evidence = SelectionEvidence(lm, tables[0], far=(tables[1],))
    eligible = FrequencyRatio(min_ratio=2.0)
    score = OutputScore(eligible, factor=4.0, prompts=("It is",))(evidence)
    allowed = eligible(evidence) > -torch.inf
    assert 0 < allowed.sum() < 32
    assert ((score > -torch.inf) == allowed).all()
    amounts = 4.0 * evidence.forget_statistics.mean_activation
    torch.testing.assert_close(score[allowed], output_scores(lm, amounts, prompts=("It is",))[allowed])


@pytest.mark.parametrize("hook_name", ["blocks.0.attn.hook_z", "blocks.0.mlp.hook_pre", "ln_final.hook_normalized"])
def test_decoder_rows_that_are_no_residual_directions_are_refused(lm: Any, hook_name: str) -> None:
    sae = TopKSAE(TopKSAEConfig(d_in=32, d_sae=5, k=2, metadata=SAEMetadata(hook_name=hook_name)))
    with pytest.raises(ConfigError, match="residual stream"):
        lens_tokens(dataclasses.replace(lm, splice=Splice(sae)))
