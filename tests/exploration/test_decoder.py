"""What features write, against the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mtsae_lens.exploration.decoder import directions_in_residual, extreme_tokens, neighbours


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.0.attn.hook_z"])
def test_promoted_and_suppressed_tokens(random_lm: Any, hook_name: str) -> None:
    lm = random_lm(hook_name=hook_name)
    written = lm.sae.W_dec.detach()
    if hook_name.endswith("hook_z"):  # heads one after another, as the SAE sees them
        written = torch.einsum("fhd,hdm->fm", written.view(24, 2, 16), lm.model.blocks[0].attn.W_O)
    logits = (written * lm.model.ln_final.w) @ lm.model.W_U
    logits = logits - logits.mean(dim=1, keepdim=True)
    found = extreme_tokens(lm, 5)
    for name, extreme in (("promoted", logits.topk(5, dim=1)), ("suppressed", logits.topk(5, dim=1, largest=False))):
        assert_close(found[f"{name}_logits"], extreme.values)
        assert torch.equal(found[name], extreme.indices)


def test_a_hook_that_is_not_written_to_the_residual_stream(random_lm: Any) -> None:
    lm = random_lm(hook_name="ln_final.hook_normalized")
    assert directions_in_residual(lm) is None
    assert extreme_tokens(lm, 5) == {}


def test_neighbours(random_lm: Any) -> None:
    sae = random_lm().sae
    cosines, features = neighbours(sae, 3)
    for feature in range(24):
        others = [other for other in range(24) if other != feature]
        expected = torch.cosine_similarity(sae.W_dec[feature], sae.W_dec[others], dim=1)
        assert_close(cosines[feature], expected.topk(3).values.detach())
        assert features[feature].tolist() == [others[place] for place in expected.topk(3).indices]
