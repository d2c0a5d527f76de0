"""An SAE with memory that reads a context in pieces gives what it gives for the whole context."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.sae.memory_streaming import decode_from, encode_from


@torch.no_grad()
@pytest.mark.parametrize("skip_first_position", [True, False])
@pytest.mark.parametrize("ends", [(20,), (1, 2, 3, 20), (7, 8, 15, 20)], ids=str)
def test_pieces_are_the_whole_context(ends: tuple[int, ...], skip_first_position: bool) -> None:
    sae = MTSAE(
        MTSAEConfig(
            d_in=8, d_sae=24, k=4, context_size=10, dilations=(0,), memory="predictive", skip_first_position=skip_first_position
        )
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    sae.W_memory_in.data *= 0.3
    h = torch.randn(3, 20, 8, generator=generator)
    h[:, 0] = 0  # as generation begins, so that `skip_first_position` makes no difference
    h[1, 9] = 0
    acts, outs, encoded, decoded = [], [], None, None
    for start, end in zip((0, *ends), ends, strict=False):
        before = encoded
        found, encoded = encode_from(sae, h[:, start:end], before)
        again, _ = encode_from(sae, h[:, start:end], before)
        assert_close(again, found, rtol=0, atol=0)  # the past that was given has not moved on
        out, decoded = decode_from(sae, found, decoded)
        acts.append(found)
        outs.append(out)
    whole = sae.encode(h)
    assert_close(torch.cat(acts, dim=1), whole, rtol=1e-4, atol=1e-5)
    assert_close(torch.cat(outs, dim=1), sae.decode(whole), rtol=1e-4, atol=1e-5)
    assert (whole[:, 1:] != 0).any(dim=-1).sum() == 3 * 19 - 1
