"""Test the loss, the initialization, and the logged metrics."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata, TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from torch import Tensor
from torch.testing import assert_close

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.sae.separation import SEPARATIONS, Scales, register_separation, separation_loss

CONTEXT, D_IN, D_SAE = 10, 6, 20


def training_sae(perturbed: bool = True, **settings: Any) -> MTTrainingSAE:
    defaults = {"d_in": D_IN, "d_sae": D_SAE, "k": 4, "dilations": (1, 2), "context_size": CONTEXT, "dtype": "float64"}
    torch.manual_seed(0)
    sae = MTTrainingSAE(MTTrainingSAEConfig(**(defaults | settings)))
    for parameter in sae.parameters() if perturbed else ():
        parameter.data += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    return sae


def step(
    sae: MTTrainingSAE, rows: Tensor, *, dead: Tensor | None = None, logged: bool = False, **coefficients: float
) -> TrainStepOutput:
    coefficients = {"l1": 0.0, "separation": 0.0} | coefficients
    return sae.training_forward_pass(
        step_input=TrainStepInput(rows, coefficients, dead_neuron_mask=dead, n_training_steps=0, is_logging_step=logged)
    )


@pytest.fixture
def rows() -> Tensor:
    return torch.randn(3 * CONTEXT, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def kept() -> Tensor:
    """All but position 0 of each context and one wall."""
    kept = torch.ones(3 * CONTEXT, dtype=torch.bool)
    kept[::CONTEXT] = False
    kept[CONTEXT + 4] = False
    return kept


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("training_step", ["dense", "sparse"])
@pytest.mark.parametrize("memory", ["none", "predictive"])
@pytest.mark.parametrize("activation", ["relu", "topk", "batchtopk", "jumprelu"])
def test_a_batch_of_walls_alone_teaches_nothing(activation: str, memory: str, training_step: str, logged: bool) -> None:
    dilations = (0,) if memory == "predictive" else (1, 2)
    sae = training_sae(activation=activation, memory=memory, training_step=training_step, dilations=dilations)
    sae.activation.before_training_step(sae)
    state = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    dead = torch.arange(D_SAE) < 5
    output = step(
        sae, torch.zeros(2 * CONTEXT, D_IN, dtype=torch.float64), dead=dead, logged=logged, l1=1.0, l0=1.0, separation=1.0
    )
    assert float(output.loss.detach()) == 0.0
    assert all(float(loss.detach()) == 0.0 for loss in output.losses.values())
    assert not output.feature_acts.any()
    output.loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in sae.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in sae.state_dict().items())


# loss -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reconstruction_loss", ["mse", "l2"])
def test_reconstruction_is_averaged_over_what_is_no_wall(reconstruction_loss: str, rows: Tensor, kept: Tensor) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(reconstruction_loss=reconstruction_loss)
    output = step(sae, rows)
    squared = (sae(rows) - rows)[kept].pow(2).sum(dim=-1)
    expected = squared.mean() if reconstruction_loss == "mse" else squared.sqrt().mean()
    assert set(output.losses) == {f"{reconstruction_loss}_loss"}
    assert_close(output.loss, expected)
    assert output.feature_acts.shape == (3 * CONTEXT, D_SAE)
    assert not output.feature_acts[~kept].any()


@pytest.mark.parametrize("activation", ["topk", "relu"])
def test_first_positions_change_no_loss(activation: str, rows: Tensor) -> None:
    sae = training_sae(activation=activation)
    dead = torch.arange(D_SAE) < 3
    changed = rows.clone()
    changed[::CONTEXT] *= 100
    before, after = (step(sae, given, dead=dead, l1=0.5, separation=0.5).losses for given in (rows, changed))
    assert before == after
    sae.cfg.skip_first_position = False
    assert step(sae, rows).loss != step(sae, changed).loss


def test_every_loss_is_in_the_sum(rows: Tensor) -> None:
    for sae in (training_sae(activation="relu"), training_sae()):
        output = step(sae, rows, dead=torch.arange(D_SAE) < 3, l1=0.5, separation=0.5)
        assert len(output.losses) == 3
        assert_close(output.loss, sum(output.losses.values()))


def test_l1_weighs_features_by_their_decoder_norm(rows: Tensor, kept: Tensor) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(activation="relu")
    expected = (sae.encode(rows)[kept] @ sae.W_dec.norm(dim=-1)).mean()
    assert expected > 0
    assert_close(step(sae, rows, l1=0.5).losses["l1_loss"], 0.5 * expected)
    assert "l1_loss" not in step(training_sae(), rows, l1=0.5).losses


@pytest.mark.parametrize("separation", SEPARATIONS)
def test_separation_is_a_loss_only_with_a_coefficient(separation: str, rows: Tensor) -> None:
    sae = training_sae(separation=separation)
    x, walls = sae.read_contexts(rows)
    keep = torch.ones(3, CONTEXT, dtype=torch.bool)
    keep[:, 0] = False
    expected = separation_loss(separation, sae.encode_scales(x, walls), sae.filters, keep)
    assert expected > 0
    assert_close(step(sae, rows, separation=0.3).losses["separation_loss"], 0.3 * expected)
    without = step(sae, rows)
    assert "separation_loss" not in without.losses
    assert_close(step(sae, rows, logged=True).metrics["separation"], expected.detach())


def test_a_separation_loss_of_ones_own_is_trained_on(rows: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(SEPARATIONS, "size of the second scale", raising=False)  # and so after the test

    @register_separation("size of the second scale")
    def size(scales: Scales) -> Tensor:
        return scales.z[:, 1].pow(2).mean()

    sae = training_sae(separation="size of the second scale", separation_coefficient=0.7, scale_norm="none")
    output = step(sae, rows, separation=0.7)
    z = sae.encode_scales(*sae.read_contexts(rows))[:, 1:, 1]
    assert_close(output.losses["separation_loss"], 0.7 * z.pow(2).mean())
    output.losses["separation_loss"].backward()
    assert sae.taps.grad is not None
    assert sae.taps.grad[1].all()
    assert not sae.taps.grad[0].any()
    del SEPARATIONS["size of the second scale"]
    with pytest.raises(ConfigError, match="size of the second scale"):
        training_sae(separation="size of the second scale")


@pytest.mark.parametrize("reconstruction_loss", ["mse", "l2"])
def test_reconstruction_of_nested_features_is_averaged_over_prefixes(
    reconstruction_loss: str, rows: Tensor, kept: Tensor
) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(hierarchy="nested", reconstruction_loss=reconstruction_loss, dilations=(0, 1, 2))
    output = step(sae, rows)
    errors = []
    for n_features in (7, 14, 20):  # of 20 features in 3 groups
        first = output.feature_acts.clone()
        first[:, n_features:] = 0
        squared = (sae.decode(first) - rows)[kept].pow(2).sum(dim=-1)
        errors.append(squared.mean() if reconstruction_loss == "mse" else squared.sqrt().mean())
    assert len({round(error.item(), 6) for error in errors}) == 3
    assert_close(output.loss, sum(errors) / 3)
    assert_close(output.sae_out, sae(rows))


@pytest.mark.parametrize("widths", [[3, 11], [3, 11, 20]], ids=["without all", "with all"])
def test_reconstruction_is_averaged_over_matryoshka_widths(widths: list[int], rows: Tensor, kept: Tensor) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(matryoshka_widths=widths)
    output = step(sae, rows)
    errors = []
    for n_features in (3, 11, 20):
        first = output.feature_acts.clone()
        first[:, n_features:] = 0
        errors.append((sae.decode(first) - rows)[kept].pow(2).sum(dim=-1).mean())
    assert len({round(error.item(), 6) for error in errors}) == 3
    assert_close(output.losses["mse_loss"], sum(errors) / 3)
    assert_close(output.sae_out, sae(rows))


def test_matryoshka_widths_with_memory_reconstruct_what_the_prediction_leaves(rows: Tensor, kept: Tensor) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(memory="predictive", dilations=(0,), matryoshka_widths=[4])
    sae.W_memory_in.data.normal_(std=0.3)
    sae.W_memory_out.data.normal_(std=0.3)
    output = step(sae, rows)
    predicted = output.sae_out - (output.feature_acts @ sae.W_dec + sae.b_dec)
    assert predicted[kept].abs().max() > 0.01
    first = output.feature_acts.clone()
    first[:, 4:] = 0
    of_prefix = (first @ sae.W_dec + sae.b_dec + predicted - rows)[kept].pow(2).sum(dim=-1).mean()
    of_all = (output.sae_out - rows)[kept].pow(2).sum(dim=-1).mean()
    assert_close(output.losses["mse_loss"], (of_prefix + of_all) / 2)


def test_dead_features_learn_the_residual(rows: Tensor, kept: Tensor) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(aux_loss_coefficient=0.5)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[2, 7]] = True
    output = step(sae, rows, dead=dead)
    residual = (rows - output.sae_out)[kept]
    error = (output.hidden_pre[kept][:, dead] @ sae.W_dec[dead] - residual).pow(2).sum(dim=-1).mean()
    # fewer dead features than d_in / 2: all of them, weighed by their share
    assert_close(output.losses["auxiliary_reconstruction_loss"], 0.5 * error * 2 / (D_IN // 2))
    output.losses["auxiliary_reconstruction_loss"].backward()
    assert sae.W_dec.grad is not None
    assert sae.W_dec.grad[dead].any(dim=-1).all()
    assert not sae.W_dec.grad[~dead].any()  # the residual is a constant to the auxiliary loss
    assert sae.b_dec.grad is None or sae.b_dec.grad.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "dead"),
    [
        ({}, None),
        ({}, torch.zeros(D_SAE, dtype=torch.bool)),
        ({"aux_loss_coefficient": 0.0}, torch.ones(D_SAE, dtype=torch.bool)),
        ({"activation": "relu"}, torch.ones(D_SAE, dtype=torch.bool)),
    ],
    ids=["no-mask", "none-dead", "switched-off", "relu"],
)
def test_no_auxiliary_loss(settings: dict[str, Any], dead: Tensor | None, rows: Tensor) -> None:
    assert "auxiliary_reconstruction_loss" not in step(training_sae(**settings), rows, dead=dead).losses


def test_l2_loss_has_a_gradient_at_zero(rows: Tensor) -> None:
    sae = training_sae(reconstruction_loss="l2", apply_b_dec_to_input=False)
    sae.W_dec.data.zero_()
    sae.b_dec.data.copy_(rows[0])
    output = step(sae, rows[0].repeat(CONTEXT, 1))
    assert torch.equal(output.sae_out, output.sae_in)
    output.loss.backward()
    assert sae.W_dec.grad is not None
    assert sae.W_dec.grad.isfinite().all()


# start ----------------------------------------------------------------------------------------------------------------


def test_decoder_rows_have_unit_norm() -> None:
    sae = training_sae(perturbed=False)
    assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE, dtype=torch.float64))
    sae.W_dec.data *= torch.linspace(0.1, 5, D_SAE)[:, None]
    directions = sae.W_dec / sae.W_dec.norm(dim=-1, keepdim=True)
    sae.normalize_decoder_()
    assert_close(sae.W_dec, directions)
    assert_close(
        training_sae(perturbed=False, decoder_init_norm=0.1).W_dec.norm(dim=-1), torch.full((D_SAE,), 0.1, dtype=torch.float64)
    )


START = {  # offset that each scale of dilations 0, 2, 4 reads at the start
    ("near", "causal"): (0, -2, -4),
    ("near", "circular"): (0, -2, -4),
    ("near", "zero"): (0, -2, -4),
    ("far", "causal"): (0, -4, -8),
    ("far", "circular"): (0, -2, -4),
    ("far", "zero"): (0, -2, -4),
    ("alike", "causal"): (0, 0, 0),
    ("alike", "circular"): (0, 0, 0),
    ("alike", "zero"): (0, 0, 0),
}


@pytest.mark.parametrize(("tap_init", "padding"), START, ids="-".join)
@pytest.mark.parametrize("first", [0, 1])
def test_scales_start_as_offsets(tap_init: str, padding: str, first: int) -> None:
    settings = {"padding": padding, "dilations": (first, 2, 4), "scale_norm": "none", "context_gain": 0.5, "context_size": 24}
    sae = training_sae(perturbed=False, skip_first_position=False, tap_init=tap_init, **settings)
    x = torch.randn(1, 24, D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = sae.encode_scales(x, torch.zeros(1, 24, dtype=torch.bool))
    assert_close(z[:, :, 0], x)
    for scale, offset in enumerate(START[tap_init, padding]):
        gain = 0.5 if scale else 1.0
        assert_close(z[:, 10:14, scale], gain * x[:, 10 + offset : 14 + offset])
    assert_close(sae.W_enc[:D_IN], sae.W_dec.T)
    assert not sae.W_enc[D_IN:].any()


def test_near_is_the_default_start() -> None:
    assert torch.equal(training_sae(perturbed=False).taps, training_sae(perturbed=False, tap_init="near").taps)
    far = training_sae(perturbed=False, tap_init="far").taps
    assert not torch.equal(training_sae(perturbed=False).taps, far)


@pytest.mark.parametrize("tap_init", ["near", "far", "alike"])
def test_a_kernel_of_one_starts_as_the_token(tap_init: str) -> None:
    sae = training_sae(perturbed=False, tap_init=tap_init, kernel_size=1, dilations=(1,))
    assert torch.equal(sae.taps, torch.ones(1, 1, D_IN, dtype=torch.float64))


def test_learned_rates_start_as_configured() -> None:
    sae = training_sae(perturbed=False, learn_dilations=True, dilations=(0, 1, 3, 4))
    assert sae.dilations == pytest.approx([0, 1, 3, 4])
    assert torch.equal(sae.log2_dilations[[0, 1, 3]], torch.tensor([0, 0, 2], dtype=torch.float64))


def test_scales_start_as_a_convolution() -> None:
    taps = training_sae(perturbed=False, tap_init="conv", dilations=(1, 2, 4, 8)).taps
    bound = 3**-0.5
    assert taps.abs().max() <= bound
    assert taps.max() > 0.8 * bound
    assert taps.min() < -0.8 * bound


# coefficients and log -------------------------------------------------------------------------------------------------


def test_coefficients() -> None:
    assert training_sae(separation_coefficient=0.2).get_coefficients() == {"separation": 0.2}
    relu = training_sae(activation="relu", l1_coefficient=0.7, l1_warm_up_steps=9).get_coefficients()
    assert relu == {"separation": 0.0, "l1": TrainCoefficientConfig(0.7, 9)}


def test_learned_dilations_are_logged(rows: Tensor) -> None:
    sae = training_sae(learn_dilations=True, dilations=(0, 1, 2))
    metrics = step(sae, rows, logged=True).metrics
    logged = {name: value for name, value in metrics.items() if "learned" in name}
    assert logged == dict(zip((f"scale_{d}_learned_dilation" for d in (0, 1, 2)), sae.dilations, strict=True))
    assert logged["scale_1_learned_dilation"] not in (0, 1)


def test_scale_statistics_on_logging_steps(rows: Tensor, kept: Tensor) -> None:
    rows[CONTEXT + 4] = 0
    sae = training_sae(scale_norm="none", context_gain=1.0)
    assert step(sae, rows).metrics == {}
    metrics = step(sae, rows, logged=True).metrics
    statistics = {f"scale_{dilation}_{name}" for dilation in (1, 2) for name in ("mean", "std", "encoder_norm")}
    assert set(metrics) == {"separation"} | statistics
    convolved = sae.encode_scales(*sae.read_contexts(rows)).flatten(0, 1)[kept].detach()
    for scale, dilation in enumerate((1, 2)):
        assert_close(metrics[f"scale_{dilation}_mean"], convolved[:, scale].mean())
        assert_close(metrics[f"scale_{dilation}_std"], convolved[:, scale].std())
        assert_close(metrics[f"scale_{dilation}_encoder_norm"], sae.W_enc[scale * D_IN : (scale + 1) * D_IN].detach().norm())


# whole contexts -------------------------------------------------------------------------------------------------------


def bos_rows(rows: Tensor) -> Tensor:
    """As contexts that begin with BOS give them: position 0 is the same in each."""
    rows = rows.clone()
    rows[::CONTEXT] = rows[0]
    return rows


def test_mixed_positions_are_refused(rows: Tensor) -> None:
    whole = bos_rows(rows)
    mixed = whole[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    sae = training_sae(metadata=SAEMetadata(prepend_bos=True, context_size=CONTEXT))
    assert step(sae, whole).loss.isfinite()
    with pytest.raises(DataError, match="activations_mixing_fraction=0"):
        step(sae, mixed)
    assert step(sae, mixed.view(3, CONTEXT, D_IN)).loss.isfinite()  # said to be contexts
    for metadata in (SAEMetadata(prepend_bos=False), SAEMetadata()):
        assert step(training_sae(metadata=metadata), mixed).loss.isfinite()


def test_contexts_of_another_length_are_refused(rows: Tensor) -> None:
    sae = training_sae(metadata=SAEMetadata(prepend_bos=True, context_size=CONTEXT // 2))
    with pytest.raises(DataError, match="contexts of 5"):
        step(sae, bos_rows(rows))


@pytest.mark.filterwarnings("ignore:std\\(\\)")
@pytest.mark.parametrize("padding", ["causal", "circular", "zero"])
@pytest.mark.parametrize("shape", [(2, 0, D_IN), (0, CONTEXT, D_IN), (0, D_IN)], ids=str)
def test_no_position_gives_no_feature(shape: tuple[int, ...], padding: str) -> None:
    sae = training_sae(padding=padding)
    assert sae.encode(torch.zeros(shape, dtype=torch.float64)).shape == (*shape[:-1], D_SAE)
    assert sae(torch.zeros(shape, dtype=torch.float64)).shape == shape


def test_complex_activations_are_refused() -> None:
    with pytest.raises(DataError, match=r"expected real activations, got torch\.complex128; give their real part \(h\.real\)"):
        training_sae().encode(torch.zeros(2, CONTEXT, D_IN, dtype=torch.complex128))


@pytest.mark.parametrize("scale_norm", ["rescaled_layer_norm", "layer_norm", "none"])
def test_a_constant_context_is_encoded_as_encode_constant_says(scale_norm: str) -> None:
    sae = training_sae(scale_norm=scale_norm, activation="relu", apply_b_dec_to_input=False, skip_first_position=False)
    h = torch.randn(D_IN, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    hidden_pre = sae.encode_with_hidden_pre(h.expand(1, CONTEXT, D_IN))[1][0, -1]  # reads as far back as the taps go
    assert_close(sae.encode_constant(h) + sae.b_enc, hidden_pre)
