"""Test that the card of a published SAE describes what the SAE computes and what it refuses."""

from __future__ import annotations

import pytest
import torch

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import DataError
from mtsae_lens.interop.card import write_sae_card


def an_sae(**changes: object) -> MTSAE:
    sae = MTSAE(MTSAEConfig(d_in=8, d_sae=16, k=2, context_size=4, **changes))  # type: ignore[arg-type]
    torch.manual_seed(0)
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter.data)
    return sae


@pytest.mark.parametrize("gain", [1.0, 0.1, 0.025])
def test_the_gain_is_the_one_by_which_other_scales_are_multiplied(gain: float) -> None:
    sae, plain = an_sae(context_gain=gain), an_sae(context_gain=1.0)
    card = write_sae_card(sae, "me/mine", "x")
    assert "z_k  = g_k norm(conv_{r_k}(x))" in card
    (line,) = [line for line in card.splitlines() if line.strip().startswith("g =")]
    first, others = line.split("g = ")[1].removesuffix(" for the others").split(" for the first scale, ")
    x = torch.randn(1, 4, 8)
    z, ungained = sae.encode_scales(*sae.read_contexts(x)), plain.encode_scales(*plain.read_contexts(x))
    said = torch.tensor([float(first)] + [float(others)] * (z.shape[2] - 1))
    torch.testing.assert_close(z, said[:, None] * ungained)


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_the_activation_is_named(activation: str) -> None:
    assert f"e    = {activation}(" in write_sae_card(an_sae(activation=activation), "me/mine", "x")


def test_what_the_card_says_of_positions_is_so() -> None:
    sae = an_sae()
    card = write_sae_card(sae, "me/mine", "x")
    assert "concatenated rows, `4` per context" in card
    assert "Single positions, and numbers of rows that are not a multiple of the context size, are refused" in card
    for rows in (torch.randn(1, 1, 8), torch.randn(6, 8)):
        with pytest.raises(DataError):
            sae.encode(rows)
    assert "Shuffled rows are not detected and give wrong features" in card
    rows, order = torch.randn(8, 8), torch.tensor([1, 6, 3, 0, 2, 7, 4, 5])
    assert not torch.allclose(sae.encode(rows)[order], sae.encode(rows[order]))


def test_names_that_others_chose_are_no_markup() -> None:
    sae = an_sae()
    sae.cfg.metadata.hook_name = "hook|<b>"
    sae.cfg.metadata.model_name = "/home/me/<img src=x onerror=alert(1)>"
    sae.cfg.metadata.dataset_path = "elsewhere:[a](http://b)|c.txt"
    card = write_sae_card(sae, "me/mine", 'x"`\n<script>', {"l0": 1.0}, {"l0": "a|b"}, "<iframe>\n# t.txt")
    outside_code = card.split("```python")[0]
    for markup in ("<img", "<b>", "<iframe", "[a](", "\n# t.txt"):
        assert markup not in outside_code, markup
    assert "&lt;img src=x onerror=alert(1)&gt;" in card
    assert card.count("\n```\n") == 1
