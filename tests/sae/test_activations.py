"""Test parity with SAELens for an MTSAE of one scale that reads the token alone, and the parts that SAELens does not have."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.activation_interface import ACTIVATIONS, Activation, register_activation

D_IN, D_SAE, CONTEXT, N_ROWS = 8, 24, 10, 40
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6}
COEFFICIENTS = {"l1": 0.3, "l0": 0.2, "separation": 0.0}
TOKEN_ALONE = {"dilations": (0,), "kernel_size": 1, "scale_norm": "none", "skip_first_position": False}
TOPK = {"k": 4, "aux_loss_coefficient": 0.5}
UNSCALED = {"rescale_acts_by_decoder_norm": False}

CASES: dict[str, tuple[str, type[Any], type[Any], dict[str, Any], dict[str, Any]]] = {
    "standard": ("relu", StandardTrainingSAE, StandardTrainingSAEConfig, {}, {}),
    "topk": ("topk", TopKTrainingSAE, TopKTrainingSAEConfig, TOPK, UNSCALED),
    "batchtopk": ("batchtopk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, TOPK | {"topk_threshold_lr": 0.3}, UNSCALED),
    "jumprelu": ("jumprelu", JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {}, {}),
    "jumprelu-anthropic": (
        "jumprelu",
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True, "pre_act_loss_coefficient": 0.1},
        {},
    ),
    "jumprelu-quadratic": (
        "jumprelu",
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 3.0, "jumprelu_bandwidth": 0.5},
        {},
    ),
}


def pair(case: str, *, unit_norm: bool = False, **changes: Any) -> tuple[MTTrainingSAE, Any]:
    """The same SAE twice, as an MTSAE and as SAELens's own, in float64, at random weights."""
    activation, kind, config, shared, only_theirs = CASES[case]
    shared = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float64"} | shared
    theirs = kind(config(**shared, **(only_theirs | changes)))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = (0.3 * values).abs().to(parameter.dtype) if name == "threshold" else 0.5 * values
    if unit_norm:
        theirs.W_dec.data /= theirs.W_dec.norm(dim=-1, keepdim=True)
    ours = MTTrainingSAE(MTTrainingSAEConfig(activation=activation, context_size=CONTEXT, **TOKEN_ALONE, **shared))
    ours.load_state_dict({"taps": torch.ones(1, 1, D_IN, dtype=torch.float64)} | theirs.state_dict())
    return ours, theirs


def train_step(sae: Any, batch: Tensor) -> TrainStepOutput:
    dead = torch.arange(D_SAE) < 5
    coefficients = {name: COEFFICIENTS[name] for name in sae.get_coefficients()}
    sae.zero_grad()
    output = sae.training_forward_pass(
        step_input=TrainStepInput(batch, coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=False)
    )
    output.loss.backward()
    return output


def shared_gradients(ours: nn.Module, theirs: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    found = {name: parameter.grad for name, parameter in ours.named_parameters() if name != "taps"}
    return found, {name: parameter.grad for name, parameter in theirs.named_parameters()}


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(N_ROWS, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# parity ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_training_step_is_that_of_saelens(case: str, rows: Tensor) -> None:
    ours, theirs = pair(case)
    for _ in range(3):  # thresholds and their moving average change from step to step
        found, expected = train_step(ours, rows), train_step(theirs, rows)
        assert_close(found.feature_acts, expected.feature_acts, **TOLERANCE)
        assert_close(found.hidden_pre, expected.hidden_pre, **TOLERANCE)
        assert_close(found.sae_out, expected.sae_out, **TOLERANCE)
        assert_close(found.losses, expected.losses, **TOLERANCE)
        assert_close(found.loss, expected.loss, **TOLERANCE)
        gradients, expected_gradients = shared_gradients(ours, theirs)
        assert_close(gradients, expected_gradients, **TOLERANCE)
        assert all(gradient is not None and gradient.any() for gradient in gradients.values())
        assert found.metrics.keys() == expected.metrics.keys()
        for sae in (ours, theirs):
            torch.optim.SGD(sae.parameters(), lr=1e-3).step()
        ours.taps.data.fill_(1.0)  # SAELens's SAE has none
    assert_close({name: value for name, value in ours.state_dict().items() if name != "taps"}, theirs.state_dict(), **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_the_coefficients_are_those_of_saelens(case: str) -> None:
    ours, theirs = pair(case)
    assert {name: value for name, value in ours.get_coefficients().items() if name != "separation"} == theirs.get_coefficients()


@pytest.mark.parametrize("case", CASES)
def test_the_trained_sae_is_that_of_saelens(case: str, rows: Tensor, tmp_path: Path) -> None:
    loaded = []
    for sae in pair(case):
        train_step(sae, rows)
        folder = tmp_path / type(sae).__name__
        sae.save_inference_model(folder)
        loaded.append(SAE.load_from_disk(folder))
    ours, theirs = loaded
    assert type(ours) is MTSAE
    assert_close(ours.encode(rows), theirs.encode(rows), **TOLERANCE)
    assert_close(ours(rows), theirs(rows), **TOLERANCE)
    assert ours.encode(rows).any()
    for sae in (ours, theirs):
        (sae(rows) - rows).pow(2).sum().backward()
    assert_close(*shared_gradients(ours, theirs), **TOLERANCE)
    for sae in (ours, theirs):  # into the taps here and into `W_enc` there, so that the gradients are no longer comparable
        sae.fold_activation_norm_scaling_factor(1.7)
    assert_close(ours.encode(rows), theirs.encode(rows), **TOLERANCE)
    assert_close(ours(rows), theirs(rows), **TOLERANCE)
    if ours.cfg.activation != "topk":  # SAELens refuses the fold for every TopK SAE, an MTSAE where the norms differ
        for sae in (ours, theirs):
            sae.fold_W_dec_norm()
        assert_close(ours.encode(rows), theirs.encode(rows), **TOLERANCE)
        assert_close(ours(rows), theirs(rows), **TOLERANCE)


@pytest.mark.parametrize("case", ["topk", "batchtopk"])
def test_with_a_decoder_of_unit_norm_saelens_may_scale_by_its_norms(case: str, rows: Tensor) -> None:
    """SAELens's default multiplies pre-activations by the decoder's norms; an MTSAE keeps them at 1, where outputs and losses are equal.

    Only the gradient of `W_dec` differs, along each row, which `normalize_decoder` takes back.
    """
    ours, theirs = pair(case, unit_norm=True, rescale_acts_by_decoder_norm=True)
    found, expected = train_step(ours, rows), train_step(theirs, rows)
    assert_close(found.feature_acts, expected.feature_acts, **TOLERANCE)
    assert_close(found.losses, expected.losses, **TOLERANCE)
    gradients, expected_gradients = shared_gradients(ours, theirs)
    directions = ours.W_dec.detach()
    for each in (gradients, expected_gradients):
        gradient = each["W_dec"]
        assert gradient is not None
        each["W_dec"] = gradient - (gradient * directions).sum(dim=-1, keepdim=True) * directions
    assert_close(gradients, expected_gradients, **TOLERANCE)


@pytest.mark.parametrize("case", CASES)
def test_the_default_norm_gives_the_token_back(case: str, rows: Tensor) -> None:
    """`rescaled_layer_norm` is the identity for a scale that reads the token alone, up to the epsilon of the layer norm."""
    ours, theirs = pair(case)
    ours.cfg.scale_norm, ours.cfg.context_gain = "rescaled_layer_norm", 0.3
    close = {"rtol": 1e-3, "atol": 1e-3}
    assert_close(ours.encode_with_hidden_pre(rows)[1], theirs.encode_with_hidden_pre(rows)[1], **close)


# BatchTopK ------------------------------------------------------------------------------------------------------------


def batchtopk(**settings: Any) -> MTTrainingSAE:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_in": D_IN, "d_sae": D_SAE, "k": 3, "context_size": CONTEXT}
    return MTTrainingSAE(MTTrainingSAEConfig(activation="batchtopk", **(sizes | settings)))


def test_walls_take_no_part_in_the_choice_among_the_batch(rows: Tensor) -> None:
    sae = batchtopk()
    sae.b_enc.data += 5.0  # so that a wall's pre-activations would win
    rows[CONTEXT + 3] = 0
    output = train_step(sae, rows.float())
    assert int((output.feature_acts > 0).sum()) == 3 * (N_ROWS - 1 - N_ROWS // CONTEXT)
    assert not output.feature_acts[CONTEXT + 3].any()


def test_the_threshold_follows_the_smallest_activation(rows: Tensor) -> None:
    sae = batchtopk(topk_threshold_lr=0.25)
    smallest = []
    for _ in range(2):
        output = train_step(sae, rows.float())
        smallest.append(output.feature_acts[output.feature_acts > 0].min().double())
    assert_close(sae.topk_threshold, 0.75 * 0.25 * smallest[0] + 0.25 * smallest[1])
    assert_close(output.metrics["topk_threshold"], sae.topk_threshold)


def test_an_sae_for_inference_cannot_choose_among_a_batch() -> None:
    with pytest.raises(ConfigError, match="'batchtopk', which is for training; give 'jumprelu'"):
        MTSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, activation="batchtopk")


def test_folding_norms_follows_the_threshold(rows: Tensor) -> None:
    sae = batchtopk(decoder_init_norm=2.0, skip_first_position=False)
    sae.topk_threshold.fill_(0.3)
    folded = copy.deepcopy(sae)
    folded.fold_W_dec_norm()
    assert_close(folded.topk_threshold.item(), 0.6)
    assert_close(folded(rows.float()), sae(rows.float()))


# JumpReLU -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("activation", "name", "dtype"), [("jumprelu", "threshold", "float32"), ("batchtopk", "topk_threshold", "float64")]
)
def test_thresholds_in_training_keep_their_precision(activation: str, name: str, dtype: str) -> None:
    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=3, activation=activation)).to(torch.bfloat16)
    assert (sae.W_enc.dtype, str(getattr(sae, name).dtype)) == (torch.bfloat16, f"torch.{dtype}")


def test_a_threshold_below_zero_is_brought_back_before_a_step(rows: Tensor) -> None:
    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, activation="jumprelu", context_size=CONTEXT))
    sae.threshold.data[3] = -1.0
    output = train_step(sae, rows.float())
    assert sae.threshold.min() == 0
    assert output.feature_acts.min() == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"jumprelu_sparsity_loss_mode": "quadratic"}, "target_l0"),
        ({"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": D_SAE + 1.0}, "target_l0"),
        ({"jumprelu_sparsity_loss_mode": "steps"}, "'step', 'tanh', 'quadratic'"),
        ({"jumprelu_bandwidth": 0.0}, "expected jumprelu_bandwidth above 0, got 0.0"),
        ({"jumprelu_init_threshold": -0.1}, "expected jumprelu_init_threshold of at least 0, got -0.1"),
        ({"l0_coefficient": -1.0}, "expected l0_coefficient of at least 0, got -1.0"),
        ({"pre_act_loss_coefficient": -1.0}, "expected pre_act_loss_coefficient of at least 0, got -1.0"),
        ({"activation": "batchtopk", "k": 3, "topk_threshold_lr": 0.0}, "expected topk_threshold_lr above 0"),
        ({"activation": "batchtopk", "k": D_SAE + 1}, "expected k from 1 to d_sae"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_with_the_activation_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MTTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, **({"activation": "jumprelu"} | settings))


# one's own ------------------------------------------------------------------------------------------------------------


def test_an_activation_of_ones_own(rows: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(ACTIVATIONS, "absolute value", raising=False)  # and so after the test

    @register_activation("absolute value")
    class AbsoluteValue(Activation):
        def function(self, cfg: Any) -> Any:
            return torch.abs

        def describe(self, cfg: Any) -> str:
            return "all"

    sae = MTTrainingSAE(MTTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, activation="absolute value", context_size=CONTEXT))
    assert list(train_step(sae, rows.float()).losses) == ["mse_loss"]
    sae.save_inference_model(tmp_path / "sae")
    assert torch.equal(SAE.load_from_disk(tmp_path / "sae").encode(rows.float()), sae.encode(rows.float()))
    with pytest.raises(ConfigError, match="expected a new name, got 'absolute value'"):
        register_activation("absolute value")(type("Other", (AbsoluteValue,), {}))
    del ACTIVATIONS["absolute value"]


def test_an_activation_that_returns_a_view_leaves_the_pre_activations_as_they_are(
    rows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walls are set to zero in place only where features do not share memory with another tensor."""
    monkeypatch.delitem(ACTIVATIONS, "later half", raising=False)

    @register_activation("later half")
    class LaterHalf(Activation):
        def function(self, cfg: Any) -> Any:
            return lambda hidden_pre: hidden_pre.flatten(0, 1)[len(hidden_pre.flatten(0, 1)) // 2 :].expand(2, -1, -1)

        def describe(self, cfg: Any) -> str:
            return "views of rows"

    sae = MTSAE(MTSAEConfig(d_in=D_IN, d_sae=D_SAE, activation="later half", context_size=CONTEXT))
    seen: list[Tensor] = []
    sae.hook_sae_acts_pre.add_hook(lambda acts, hook: seen.append(acts))
    before: list[Tensor] = []
    sae.hook_sae_acts_pre.add_hook(lambda acts, hook: before.append(acts.clone()))
    x = torch.ones(2, 4, D_IN)
    x[:, 3] = 0.0
    with torch.no_grad():
        sae.encode(x)
    assert torch.equal(seen[0], before[0])
    del ACTIVATIONS["later half"]
