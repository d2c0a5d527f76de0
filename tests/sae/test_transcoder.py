"""Test the temporal transcoder: what it computes, its gradients, its folder, and its place among SAELens's transcoders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, Transcoder
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtsae_lens import MTSAETranscoder, MTSAETranscoderConfig, MTTrainingTranscoder, MTTrainingTranscoderConfig
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.export.reduction import reduce_encoder
from mtsae_lens.interop.card import write_sae_card
from mtsae_lens.interop.saebench import SAEBenchAdapter
from mtsae_lens.opening import load_sae
from mtsae_lens.sae.contributions import offset_contributions, scale_contributions
from mtsae_lens.training.fit import gather_pairs
from mtsae_lens.upstream import TrainStepInput

D_IN, D_OUT, D_SAE, CONTEXT, K = 6, 4, 24, 8, 3


def make(**changes: Any) -> MTTrainingTranscoder:
    torch.manual_seed(0)
    values: dict[str, Any] = {"dilations": (0, 1), "kernel_size": 2, "context_size": CONTEXT, "k": K, "dtype": "float64"}
    sae = MTTrainingTranscoder(MTTrainingTranscoderConfig(d_in=D_IN, d_out=D_OUT, d_sae=D_SAE, **(values | changes)))
    for name, parameter in sae.named_parameters():  # away from the start, so that every part matters
        if name != "W_dec":
            parameter.data += 0.3 * torch.randn_like(parameter)
    return sae


def contexts(n: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(n, CONTEXT, d, generator=generator, dtype=torch.float64) for d in (D_IN, D_OUT))
    for masked in ((slice(None), 0), (1, 4)):
        x[masked] = 0.0
        y[masked] = 0.0
    return x, y


def decode_by_hand(sae: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Follow the equations with plain loops: features and output of contexts with walls at zero rows."""
    n, walls = x.shape[0], (x == 0).all(dim=-1)
    centered = torch.where(walls.unsqueeze(-1), 0.0, x - sae.b_in)
    e = torch.zeros(n, CONTEXT, D_SAE, dtype=x.dtype)
    for context in range(n):
        for t in range(CONTEXT):
            if walls[context, t]:
                continue
            own = centered[context, t]
            past = centered[context, t - 1] if t and not walls[context, t - 1] else torch.zeros_like(own)
            scales = []
            for scale, read in enumerate((own, past)):  # with dilation 0 both taps read the token
                c = sae.taps[scale, 0] * own + sae.taps[scale, 1] * read
                z = (c - c.mean()) / (c.var(correction=0) + 1e-5).sqrt() * own.std(correction=0) + own.mean()
                scales.append(z * (sae.cfg.context_gain if scale else 1.0))
            hidden_pre = torch.cat(scales) @ sae.W_enc + sae.b_enc
            chosen = hidden_pre.topk(K).indices
            e[context, t, chosen] = hidden_pre[chosen].relu()
    return e, e @ sae.W_dec + sae.b_dec


def to_inference(sae: MTTrainingTranscoder, folder: Path) -> MTSAETranscoder:
    sae.save_inference_model(folder)
    loaded = load_sae(folder)
    assert isinstance(loaded, MTSAETranscoder)
    return loaded


def step_input(batch: Tensor, dead: Tensor | None = None) -> TrainStepInput:
    return TrainStepInput(
        sae_in=batch, coefficients={"separation": 0.0}, dead_neuron_mask=dead, n_training_steps=1, is_logging_step=False
    )


def test_it_decodes_the_other_width_from_the_features_of_an_mtsae(tmp_path: Path) -> None:
    sae, (x, _) = make(), contexts()
    transcoder = to_inference(sae, tmp_path)
    e, out = decode_by_hand(sae, x)
    torch.testing.assert_close(transcoder.encode(x), e)
    torch.testing.assert_close(transcoder(x), out)
    assert transcoder(x).shape[-1] == D_OUT != D_IN


def test_contributions_of_scales_and_offsets_add_up_to_the_pre_activations(tmp_path: Path) -> None:
    transcoder, (x, _) = to_inference(make(), tmp_path), contexts()
    read, walls = transcoder.read_contexts(x)
    hidden_pre = transcoder.features_from_scales(transcoder.encode_scales(read, walls), walls)[1]
    features = torch.tensor([0, 7, 23])
    for parts in (scale_contributions(transcoder, x, features), offset_contributions(transcoder, x, features)):
        total = parts.sum(dim=2) + transcoder.b_enc[features]
        torch.testing.assert_close(total[~walls], hidden_pre[..., features][~walls])


@pytest.mark.parametrize("training_step", ["sparse", "dense"])
@pytest.mark.parametrize("gathered", [True, False])
def test_losses_and_gradients_are_those_of_the_other_hook(training_step: Any, gathered: bool) -> None:
    sae, (x, y) = make(training_step=training_step), contexts()
    sae.output_scale.fill_(2.0)
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[:5] = True
    kept = (x != 0).any(dim=-1)
    h = torch.cat([x, y], dim=-1)
    batch = gather_pairs(sae, h, ~kept)(kept.flatten().nonzero().squeeze(1)) if gathered else h
    output = sae.training_forward_pass(step_input(batch, dead))
    output.loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in sae.named_parameters() if parameter.grad is not None}

    reference = make(training_step=training_step)
    _, out = decode_by_hand(reference, x)
    error = (out - 2.0 * y)[kept]
    expected = error.pow(2).sum(dim=-1).mean()
    torch.testing.assert_close(output.losses["mse_loss"], expected)
    # AuxK: the dead features with the largest pre-activations learn what is left of y
    read, walls = reference.read_contexts(x)
    hidden_pre = reference.features_from_scales(reference.encode_scales(read, walls), walls)[1][kept]
    n_aux = D_OUT // 2
    values, places = hidden_pre[:, dead].topk(n_aux, dim=-1)
    aux = torch.zeros(len(hidden_pre), 5, dtype=torch.float64).scatter(-1, places, values) @ reference.W_dec[dead]
    auxiliary = reference.cfg.aux_loss_coefficient * (aux + error.detach()).pow(2).sum(dim=-1).mean()
    torch.testing.assert_close(output.losses["auxiliary_reconstruction_loss"], auxiliary)
    (expected + auxiliary).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=lambda text, name=name: f"{name}: {text}")
    target = output.sae_in if gathered else output.sae_in[kept.flatten()]
    torch.testing.assert_close(target, 2.0 * y[kept])


def test_the_scales_of_both_hooks_fold_into_the_weights(tmp_path: Path) -> None:
    sae, (x, _) = make(), contexts()
    sae.output_scale.fill_(5.0)
    before = decode_by_hand(sae, 3.0 * x)[1] / (3.0 * 5.0)
    sae.fold_activation_norm_scaling_factor(3.0)
    torch.testing.assert_close(
        to_inference(sae, tmp_path)(x), before, rtol=1e-4, atol=1e-5
    )  # the epsilon of the norm is not scaled
    assert sae.output_scale == 1


def test_saelens_knows_it_as_a_transcoder(tmp_path: Path) -> None:
    sae = make(dtype="float32")
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = "blocks.0.hook_resid_pre", "blocks.1.hook_attn_out"
    sae.save_inference_model(tmp_path)
    loaded = SAE.load_from_disk(tmp_path)
    assert isinstance(loaded, Transcoder)
    assert isinstance(loaded, MTSAETranscoder)
    assert loaded.d_out == D_OUT
    assert loaded.cfg.to_dict()["d_out"] == D_OUT
    assert loaded.cfg.metadata.hook_name_out == "blocks.1.hook_attn_out"
    assert load_file(tmp_path / "sae_weights.safetensors")["W_dec"].shape == (D_SAE, D_OUT)
    x = torch.randn(2, CONTEXT, D_IN)
    out, features = loaded.forward_with_activations(x)
    torch.testing.assert_close(out, loaded(x))
    torch.testing.assert_close(features, loaded.encode(x))
    assert isinstance(MTSAETranscoder.from_dict(loaded.cfg.to_dict()).cfg, MTSAETranscoderConfig)


def test_a_damaged_folder_is_refused(tmp_path: Path) -> None:
    make(dtype="float32").save_inference_model(tmp_path)
    weights = load_file(tmp_path / "sae_weights.safetensors")
    save_file(weights | {"b_in": weights["b_in"] + 1}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(ModelError, match="damaged"):
        load_sae(tmp_path)


@pytest.mark.parametrize(
    "changes", [{"memory": "predictive"}, {"reshape_activations": "hook_z"}, {"apply_b_dec_to_input": True}], ids=str
)
@pytest.mark.parametrize("config", [MTSAETranscoderConfig, MTTrainingTranscoderConfig])
def test_settings_of_an_sae_alone_are_refused(config: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"expected {next(iter(changes))}=.* for a transcoder"):
        config(d_in=D_IN, d_out=D_OUT, d_sae=D_SAE, k=K, **changes)


def test_a_width_is_needed_for_the_output() -> None:
    with pytest.raises(TypeError, match="d_out"):
        MTSAETranscoderConfig(d_in=D_IN, d_sae=D_SAE, k=K)  # type: ignore[call-arg]


@pytest.mark.wrong_shapes
def test_a_batch_without_the_other_hook_is_refused() -> None:
    x, _ = contexts()
    with pytest.raises(DataError, match="beside it"):
        make().training_forward_pass(step_input(x))
    with pytest.raises(DataError, match="two hooks side by side"):
        gather_pairs(make(), x, (x == 0).all(dim=-1))


def test_the_card_of_a_published_one_says_what_it_computes(tmp_path: Path) -> None:
    sae = make(dtype="float32")
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = "blocks.0.hook_resid_pre", "blocks.1.hook_attn_out"
    card = write_sae_card(to_inference(sae, tmp_path), "me/mine", "x")
    assert "# Multi-Scale Temporal Transcoder on" in card
    assert "x    = h - b_in, zero at walls" in card
    assert "y'   = e @ W_dec + b_dec" in card
    assert "blocks.1.hook" in card


def test_what_needs_one_hook_refuses_it(tmp_path: Path) -> None:
    sae = make(dtype="float32")
    sae.cfg.metadata.hook_name, sae.cfg.metadata.hook_name_out = "blocks.0.hook_resid_pre", "blocks.1.hook_attn_out"
    transcoder = to_inference(sae, tmp_path)
    for needs_one in (reduce_encoder, SAEBenchAdapter):
        with pytest.raises(ConfigError, match="read and decoded at one hook"):
            needs_one(transcoder)
