"""An encoder of low context rank is the full one whose context part is the product."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.export.reduction import reduce_encoder
from mtsae_lens.sae.lift import encoder_by_scale

CONTEXT, D_IN, D_SAE, RANK = 12, 8, 40, 5
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def make(*, random: bool = True, **settings: Any) -> MTTrainingSAE:
    defaults: dict[str, Any] = {
        "d_in": D_IN, "d_sae": D_SAE, "k": 4, "context_size": CONTEXT, "dilations": (0, 1, 3), "dtype": "float64", "context_rank": RANK
    }  # fmt: skip
    torch.manual_seed(0)
    sae = MTTrainingSAE(MTTrainingSAEConfig(**(defaults | settings)))
    for parameter in sae.parameters() if random else ():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return sae


def written_out(sae: MTTrainingSAE) -> MTTrainingSAE:
    """The same SAE with a full encoder."""
    full = MTTrainingSAE(dataclasses.replace(sae.cfg, context_rank=None))
    weights = {name: value for name, value in sae.state_dict().items() if name != "W_context"}
    weights["W_enc"] = torch.cat([sae.W_enc[:D_IN], sae.W_context @ sae.W_enc[D_IN:]])
    full.load_state_dict(weights)
    return full


def step(sae: MTTrainingSAE, rows: Tensor) -> TrainStepOutput:
    sae.zero_grad()
    dead = torch.arange(D_SAE) < 3
    coefficients = {"l1": 0.3, "l0": 0.2, "separation": 0.1}
    output = sae.training_forward_pass(TrainStepInput(rows, coefficients, dead, n_training_steps=0, is_logging_step=True))
    output.loss.backward()
    return output


@pytest.fixture
def rows() -> Tensor:
    rows = torch.randn(4 * CONTEXT, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows[CONTEXT + 5] = 0
    return rows


@pytest.mark.parametrize("training_step", ["sparse", "dense"])
def test_a_step_is_that_of_the_product_written_out(training_step: str, rows: Tensor) -> None:
    sae = make(training_step=training_step)
    full = written_out(sae)
    found, expected = step(sae, rows), step(full, rows)
    assert_close(found.feature_acts, expected.feature_acts, **EXACT)
    assert_close(found.hidden_pre, expected.hidden_pre, **EXACT)
    assert_close(found.losses, expected.losses, **EXACT)
    assert_close(found.metrics, expected.metrics, **EXACT)  # norms of the encoder weights of each scale among them
    for name in ("taps", "b_enc", "W_dec", "b_dec"):
        assert_close(getattr(sae, name).grad, getattr(full, name).grad, **EXACT)
    assert full.W_enc.grad is not None
    own, context = full.W_enc.grad[:D_IN], full.W_enc.grad[D_IN:]
    assert_close(sae.W_enc.grad, torch.cat([own, sae.W_context.T @ context]), **EXACT)
    assert_close(sae.W_context.grad, context @ sae.W_enc[D_IN:].T, **EXACT)


def test_it_encodes_as_the_product_written_out(rows: Tensor) -> None:
    sae = make()
    full = written_out(sae)
    assert sae.W_enc.shape == (D_IN + RANK, D_SAE)
    assert_close(sae(rows), full(rows), **EXACT)
    assert_close(encoder_by_scale(sae), encoder_by_scale(full), **EXACT)
    constant = torch.randn(D_IN, dtype=torch.float64)
    assert_close(sae.encode_constant(constant), full.encode_constant(constant), **EXACT)


def test_training_starts_as_a_standard_sae_and_leaves_it(rows: Tensor) -> None:
    sae = make(random=False)
    assert_close(sae.W_enc[:D_IN], sae.W_dec.T)
    assert not sae.encoder_by_scale()[1:].any()
    optimizer = torch.optim.AdamW(sae.parameters(), lr=1e-2)
    before = sae.W_context.detach().clone()
    step(sae, rows)
    assert sae.W_enc.grad is not None
    assert sae.W_enc.grad[D_IN:].any(dim=-1).all()  # zero weights, but a gradient
    for _ in range(3):
        step(sae, rows)
        optimizer.step()
    assert sae.encoder_by_scale()[1:].any()
    assert not torch.equal(sae.W_context, before)


def test_the_start_without_a_rank_draws_what_it_did() -> None:
    assert torch.equal(make(random=False).W_dec, make(random=False, context_rank=None).W_dec)


def test_in_half_precision_too(rows: Tensor) -> None:
    sae = make(random=False, dtype="bfloat16")
    assert sae.W_context.dtype == torch.bfloat16
    assert sae.W_context.any()


def test_saved_loaded_and_folded(rows: Tensor, tmp_path: Path) -> None:
    sae = make(normalize_activations="expected_average_only_in")
    sae.normalize_decoder_()
    sae.save_model(tmp_path / "training")
    assert_close(MTTrainingSAE.load_from_disk(tmp_path / "training").state_dict(), sae.state_dict(), rtol=0, atol=0)
    expected = sae.encode(2.5 * rows)
    sae.fold_activation_norm_scaling_factor(2.5)
    assert_close(sae.encode(rows), expected, rtol=1e-4, atol=1e-4)  # the epsilon of the layer norm
    sae.save_inference_model(tmp_path / "inference")
    inference = SAE.load_from_disk(tmp_path / "inference")
    assert isinstance(inference, MTSAE)
    assert inference.cfg.context_rank == RANK
    assert_close(inference(rows), sae(rows), **EXACT)


def test_folding_norms_of_the_decoder(rows: Tensor) -> None:
    sae = make(activation="jumprelu", random=True)
    folded = copy.deepcopy(sae)
    folded.fold_W_dec_norm()
    assert_close(folded.encode(rows), sae.encode(rows) * sae.W_dec.norm(dim=-1), **EXACT)
    assert_close(folded(rows), sae(rows), **EXACT)


def test_the_export_keeps_the_factors(tmp_path: Path) -> None:
    make().save_inference_model(tmp_path)
    tensors, _ = reduce_encoder(MTSAE.load_from_disk(tmp_path))
    assert tensors["W_context"].shape == (2 * D_IN, RANK)
    assert tensors["W_enc"].shape == (D_IN + RANK, D_SAE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context_rank": 0}, "expected context_rank from 1 to 15"),
        (
            {"context_rank": 2 * D_IN},
            r"below the width of the context \(2 scales of d_in=8\), got 16; leave it out for full rank",
        ),
        ({"dilations": (0,)}, r"expected at least two dilations with context_rank=5, got \(0,\)"),
        (
            {"hierarchy": "nested"},
            "expected hierarchy='none' with context_rank=5, which mixes the scales of the context, got 'nested'",
        ),
        ({"context_rank": 2.5}, "expected context_rank to be a whole number or null, got 2.5"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_rank_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**settings)
