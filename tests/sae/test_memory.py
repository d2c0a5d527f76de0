"""Memory in the decoder: the recursion, its start, its training, and what ends the past."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import stored
from torch.testing import assert_close

from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.evaluation.memory import measure_memory
from mtsae_lens.export.reduction import reduce_encoder
from mtsae_lens.opening import load_sae
from mtsae_lens.sae.contributions import offset_contributions
from mtsae_lens.sae.memory import Past, gather_past, impulse_norms, impulse_response, read_past
from mtsae_lens.sae.memory_training import draw_errors, predict_batch, read_memory_batch, remember_errors
from mtsae_lens.sae.temporal import find_walls
from mtsae_lens.splice.sae_state import SAEState
from mtsae_lens.training.fit import fit
from mtsae_lens.training.optimizer import group_parameters
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.training.start import start_memory_
from mtsae_lens.upstream import TrainStepInput

BATCH, POS, D_IN, D_SAE = 3, 12, 8, 24
LAGS, DECAYS = (1, 2, 5), (0.5, 0.9)


def make_sae(kind: Any = MTSAE, config: Any = MTSAEConfig, **settings: Any) -> Any:
    values: dict[str, Any] = {"k": 4, "memory": "predictive", "memory_lags": LAGS, "memory_decays": DECAYS, "context_size": POS}
    torch.manual_seed(0)
    return kind(config(d_in=D_IN, d_sae=D_SAE, **(values | settings)))


def random_sae(**settings: Any) -> MTSAE:
    sae = make_sae(**settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in sae.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return sae


def contexts(n: int = BATCH, *, seed: int = 2) -> torch.Tensor:
    return torch.randn(n, POS, D_IN, generator=torch.Generator().manual_seed(seed))


def autoregressive(n: int, seed: int = 3, noise: float = 0.5) -> torch.Tensor:
    """Contexts in which a third of the variance is said by the position before; position 0 is masked."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.linalg.qr(torch.randn(D_IN, D_IN, generator=torch.Generator().manual_seed(9))).Q * 0.9
    h = [torch.randn(n, D_IN, generator=generator)]
    for _ in range(POS - 1):
        h.append(h[-1] @ A + noise * torch.randn(n, D_IN, generator=generator))
    x = torch.stack(h, dim=1)
    x[:, 0] = 0
    return x


def test_the_past_position_by_position_is_that_of_the_whole_context() -> None:
    generator = torch.Generator().manual_seed(0)
    r, active = torch.randn(BATCH, POS, D_IN, generator=generator), torch.rand(BATCH, POS, generator=generator) > 0.3
    past, reads = Past.empty(LAGS, DECAYS, r[:, 0]), []
    for t in range(POS):
        reads.append(past.read())
        past.add(r[:, t], active[:, t])
    assert_close(torch.stack(reads, dim=1), read_past(r, active, LAGS, DECAYS))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_rows_that_can_be_mixed_hold_the_past_of_their_contexts(scale: float) -> None:
    sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig)
    sae.b_dec.data = torch.randn(D_IN, generator=torch.Generator().manual_seed(5))
    h = contexts()
    h[:, 0] = h[1, 5] = 0
    rows = gather_past(h, find_walls(h), LAGS, DECAYS)(torch.arange(BATCH * POS).flip(0)) * scale
    whole, mixed = read_memory_batch(sae, (h * scale).flatten(0, 1)), read_memory_batch(sae, rows)
    kept = ~whole.walls
    for name in ("h", "x", "walls", "past", "weights"):
        assert_close(getattr(mixed, name).flip(0)[kept], getattr(whole, name)[kept], rtol=1e-4, atol=1e-5)


def test_decode_is_the_recursion_of_the_formula() -> None:
    sae = random_sae()
    e = sae.encode(contexts())
    assert (e[:, 0] == 0).all()  # a wall
    expected = torch.zeros(BATCH, POS, D_IN)
    average = [torch.zeros(BATCH, D_IN) for _ in DECAYS]
    for t in range(1, POS):
        lagged = [expected[:, t - lag] if t >= lag else torch.zeros(BATCH, D_IN) for lag in LAGS]
        predicted = torch.cat([*lagged, *average], dim=-1) @ sae.W_memory_in @ sae.W_memory_out
        expected[:, t] = predicted + e[:, t] @ sae.W_dec
        average = [b * m + (1 - b) * expected[:, t] for b, m in zip(DECAYS, average, strict=True)]
    assert_close(sae.decode(e), expected + sae.b_dec, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
def test_forward_is_decode_of_encode_for_contexts_and_for_rows(activation: str) -> None:
    sae, x = random_sae(activation=activation), contexts()
    assert_close(sae(x), sae.decode(sae.encode(x)))
    rows = sae.encode(x.flatten(0, 1))
    assert_close(rows, sae.encode(x).flatten(0, 1))
    assert_close(sae.decode(rows), sae(x).flatten(0, 1))


def test_the_features_code_what_the_decoder_adds() -> None:
    """`encode` and `decode` run the same recursion: what is left to code shrinks to nothing if the features can say everything."""
    sae = make_sae(activation="relu")
    eye = torch.cat([torch.eye(D_IN), -torch.eye(D_IN), torch.zeros(D_SAE - 2 * D_IN, D_IN)])
    sae.W_dec.data, sae.W_enc.data, sae.taps.data[0, 0] = eye, eye.T.clone(), torch.ones(D_IN)
    sae.W_memory_in.data.normal_(std=0.2)
    sae.W_memory_out.data.normal_(std=0.2)
    x = contexts()
    assert_close(sae(x)[:, 1:], x[:, 1:], rtol=1e-4, atol=1e-5)
    difference = sae.code_difference(*sae.read_contexts(x))
    assert not torch.allclose(difference[:, 2:], x[:, 2:], atol=0.05)


def test_a_wall_ends_the_past_and_the_future_does_not_matter() -> None:
    sae, x = random_sae(), contexts()
    x[:, 5] = 0
    alone = x.clone()
    alone[:, 1:5] = contexts(seed=7)[:, 1:5]
    assert_close(sae.encode(x)[:, 6:], sae.encode(alone)[:, 6:])
    assert_close(sae(x)[:, 6:], sae(alone)[:, 6:])
    later = x.clone()
    later[:, 9:] += 1
    assert_close(sae.encode(later)[:, :9], sae.encode(x)[:, :9])
    assert not torch.allclose(sae(later)[:, 9:], sae(x)[:, 9:])


def test_the_scale_of_activations_folds() -> None:
    sae, x = random_sae(), contexts()
    before = sae.encode(2.5 * x), sae.decode(sae.encode(2.5 * x)) / 2.5
    sae.fold_activation_norm_scaling_factor(2.5)
    assert_close(sae.encode(x), before[0], rtol=1e-4, atol=1e-4)
    assert_close(sae(x), before[1], rtol=1e-4, atol=1e-4)


def test_save_and_load(tmp_path: Path) -> None:
    sae, x = random_sae(), contexts()
    sae.save_model(tmp_path)
    assert_close(load_sae(tmp_path)(x), sae(x), rtol=0, atol=0)


def test_the_prediction_starts_at_the_best_linear_one() -> None:
    sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig)
    h = autoregressive(400)
    start_memory_(sae, [h.flatten(0, 1)])
    x = h[:, 1:]
    kept = torch.ones(x.shape[:2], dtype=torch.bool)
    left = x - sae.predict(read_past(x, kept, LAGS, DECAYS)).detach()
    share = 1 - left[:, 1:].pow(2).sum() / x[:, 1:].pow(2).sum()
    truth = 1 - 0.25 / x[:, 1:].pow(2).mean()  # the noise is what cannot be predicted
    assert share > truth - 0.03
    start = sae.W_memory_in.data.clone()
    start_memory_(sae, [contexts().flatten(0, 1)])
    assert torch.equal(sae.W_memory_in.data, start)


def test_training_explains_more_than_without_memory() -> None:
    """On held-out contexts, by the true recursion, at the same L0 and the same number of steps."""

    def unexplained(**settings: Any) -> float:
        sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig, k=2, **settings)
        stream = stored(autoregressive(200), batch_size_sequences=8)
        fit(sae, stream, n_steps=250, batch_size_tokens=8 * POS, lr=5e-3, options=TrainerOptions(log_every_n_steps=1000))
        x = autoregressive(60, seed=4)
        inference = MTSAE(MTSAEConfig.from_dict(sae.cfg.get_inference_sae_cfg_dict()))
        state = sae.state_dict()
        sae.process_state_dict_for_saving_inference(state)
        inference.load_state_dict(state)
        return float((inference(x) - x)[:, 1:].detach().pow(2).sum() / x[:, 1:].pow(2).sum())

    assert unexplained() < 0.8 * unexplained(memory="none", dilations=(0,))


_KERNEL = {"jumprelu_bandwidth": 0.5, "jumprelu_init_threshold": 0.2}


@pytest.mark.parametrize(
    ("activation", "own", "without", "largest_l0"),
    [
        ("batchtopk", {"k": 2, "topk_threshold_lr": 0.05}, {"k": 2, "topk_threshold_lr": 0.05}, 1.05),
        ("jumprelu", {"l0_coefficient": 0.15, **_KERNEL}, {"l0_coefficient": 0.5, **_KERNEL}, 1.05),
        ("relu", {"l1_coefficient": 1.0}, {"l1_coefficient": 1.0}, 1.0),
    ],
)
def test_every_activation_may_have_memory(
    activation: str, own: dict[str, Any], without: dict[str, Any], largest_l0: float, tmp_path: Path
) -> None:
    """Memory explains more at an L0 that is hardly higher, on held-out contexts, as saved and loaded, and no feature is dead."""
    train, test = autoregressive(512), autoregressive(64, seed=4)
    kept = (test != 0).any(dim=-1)

    def trained(name: str, **settings: Any) -> tuple[float, float]:
        sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig, activation=activation, **settings)
        stream = stored(train, batch_size_sequences=8, block_size_batches=16)
        fit(sae, stream, n_steps=200, batch_size_tokens=8 * POS, lr=1e-2, options=TrainerOptions(log_every_n_steps=300))
        sae.save_inference_model(tmp_path / name)
        loaded = load_sae(tmp_path / name)
        with torch.no_grad():
            feature_acts = loaded.encode(test)
            sae_out = loaded.decode(feature_acts)
            assert_close(loaded(test), sae_out)
        fires = feature_acts[kept] != 0
        assert fires.any(dim=0).all()
        return float((sae_out - test)[kept].pow(2).sum() / test[kept].pow(2).sum()), float(fires.sum(dim=-1).float().mean())

    error, l0 = trained("memory", **own)
    other_error, other_l0 = trained("none", memory="none", dilations=(0,), **without)
    assert error < 0.92 * other_error  # the L0 of batchtopk is 1.96 with memory and 1.99 without
    assert l0 < largest_l0 * other_l0


def test_a_sparse_step_is_the_dense_one() -> None:
    gradients = {}
    for way in ("sparse", "dense"):
        sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig, training_step=way)
        sae.W_memory_in.data.normal_(generator=torch.Generator().manual_seed(1))
        sae.W_memory_out.data.normal_(generator=torch.Generator().manual_seed(2), std=0.1)
        coefficients = {name: 0.0 if isinstance(c, float) else c.value for name, c in sae.get_coefficients().items()}
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=autoregressive(4).flatten(0, 1),
                coefficients=coefficients,
                dead_neuron_mask=torch.arange(D_SAE) > 20,
                n_training_steps=1,
                is_logging_step=True,
            )
        )
        output.loss.backward()
        gradients[way] = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
        gradients[way]["sae_out"] = output.sae_out.detach()
    assert gradients["sparse"].keys() == gradients["dense"].keys()
    assert {"W_memory_in", "W_memory_out"} <= gradients["dense"].keys()
    for name, gradient in gradients["dense"].items():
        assert_close(gradients["sparse"][name], gradient, rtol=1e-3, atol=1e-5)


def test_the_prediction_learns_at_its_own_rate() -> None:
    sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig, memory_lr_ratio=0.1)
    groups = group_parameters(sae, 1.0)
    assert [group.get("lr") for group in groups] == [None, 0.1]
    assert sum(len(group["params"]) for group in groups) == len(list(sae.parameters()))
    assert len(group_parameters(make_sae(MTTrainingSAE, MTTrainingSAEConfig, memory="none"), 1.0)) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dilations": (0, 1)}, r"expected an encoder that reads the token alone .*got dilations=\(0, 1\)"),
        ({"memory": "recurrent"}, "expected memory to be one of 'none', 'predictive', got 'recurrent'"),
        ({"memory_lags": (1, POS)}, "expected memory_lags of different whole numbers from 1 to .*context_size - 1"),
        ({"memory_lags": (), "memory_decays": ()}, "at least one lag or decay"),
        ({"memory_decays": (1.0,)}, "expected memory_decays between 0 and 1"),
        ({"memory_rank": 0}, "expected memory_rank of at least 1, got 0"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sae(**settings)


def test_a_part_of_a_context_cannot_be_decoded() -> None:
    with pytest.raises(DataError, match=r"expected features of whole contexts, .* \(batch, pos, 24\).*got shape \(5, 24\)"):
        random_sae().decode(torch.ones(5, D_SAE))
    with pytest.raises(DataError, match="got a single position"):
        random_sae().encode(contexts()[:, :1])


def test_contributions_add_up_to_the_pre_activation() -> None:
    sae, features = random_sae(), torch.arange(D_SAE)
    h = contexts()
    z = sae.encode_scales(*sae.read_contexts(h))
    hidden_pre = sae.encoder_input(z) @ sae.W_enc + sae.b_enc
    assert_close(offset_contributions(sae, h, features).sum(dim=2) + sae.b_enc, hidden_pre, rtol=1e-3, atol=1e-4)


def test_an_edit_changes_the_output_at_its_position_alone() -> None:
    sae, h = random_sae(), contexts()
    e = sae.encode(h)
    edited = e.clone()
    edited[:, 5] *= 0.5
    change = SAEState(sae, h, e).decode_change(edited)
    assert_close(change[:, 5], (edited - e)[:, 5] @ sae.W_dec)
    assert not change[:, :5].any()
    assert not change[:, 6:].any()
    carried = sae.decode(edited) - sae.decode(e)  # what SAELens's own hooks do
    assert carried[:, 6].norm() > 1e-3


def test_the_parts_of_memory_are_measured() -> None:
    sae, h = random_sae(), contexts(6)
    counted = torch.ones(6, POS, dtype=torch.bool)
    counted[:, 0] = False
    measured = measure_memory(sae, [(h[:3], counted[:3]), (h[3:], counted[3:])])
    x = h.clone()
    x[:, 0] = 0

    def explained(out: torch.Tensor) -> float:
        own, out = h[counted], out[counted]
        return float(1 - (own - out).detach().pow(2).sum() / (own - own.mean(dim=0)).pow(2).sum())

    e = sae.encode(x)
    coded = e @ sae.W_dec
    assert measured["explained_variance_without_prediction"] == pytest.approx(explained(coded + sae.b_dec), abs=1e-4)
    assert measured["predicted_variance"] == pytest.approx(explained(sae.decode(e) - coded), abs=1e-4)
    r, p = (sae.decode(e) - sae.b_dec).detach()[counted], (sae.decode(e) - coded - sae.b_dec).detach()[counted]
    carried = 1 - (r - p).pow(2).sum() / (r - r.mean(dim=0)).pow(2).sum()
    assert measured["carried_variance"] == pytest.approx(float(carried), abs=1e-4)
    assert measured["prediction_parameters"] == len(LAGS + DECAYS) * D_IN * D_IN + D_IN * D_IN
    own = measured["explained_variance_with_another_past"]
    assert own != pytest.approx(explained(sae.decode(e)), abs=1e-4)
    alone = measure_memory(sae, [(h[:1], counted[:1])])  # no other context: no control, rather than the context's own past
    assert math.isnan(alone["explained_variance_with_another_past"])
    assert math.isfinite(alone["predicted_variance"])


def test_a_model_with_memory_cannot_be_exported() -> None:
    with pytest.raises(ModelError, match=r"memory='predictive', a recursion that an exported model cannot run"):
        reduce_encoder(random_sae())


def test_it_is_spliced_by_saelens_too(tiny_model: Any) -> None:
    """Without an edit and with the error term nothing changes; without the error term the model reads `decode(encode(h))`."""
    hook = "blocks.0.hook_resid_post"
    sae = make_sae(MTSAE, lambda **values: MTSAEConfig(**(values | {"d_in": tiny_model.cfg.d_model})))
    for parameter in sae.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    sae.cfg.metadata.hook_name = hook
    tokens = torch.randint(10, tiny_model.cfg.d_vocab, (2, POS), generator=torch.Generator().manual_seed(1))
    clean = tiny_model(tokens, prepend_bos=False)
    assert_close(
        tiny_model.run_with_saes(tokens, saes=[sae], use_error_term=True, prepend_bos=False), clean, rtol=1e-4, atol=1e-4
    )
    replaced = tiny_model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda h, hook: sae(h))], prepend_bos=False)
    assert_close(tiny_model.run_with_saes(tokens, saes=[sae], prepend_bos=False), replaced, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(replaced, clean, atol=1e-2)


def test_a_position_without_features_is_decoded_to_the_mean() -> None:
    sae, x = random_sae(), contexts()
    x[:, 5] = 0
    assert_close(sae(x)[:, 5], sae.b_dec.expand(BATCH, D_IN))


def test_training_reads_a_past_with_errors_of_the_step_before() -> None:
    """At other positions of the batch, the same for the same step; errors of a running average are smaller."""
    sae = make_sae(MTTrainingSAE, MTTrainingSAEConfig)
    sae.W_memory_in.data.normal_(generator=torch.Generator().manual_seed(1))
    sae.W_memory_out.data.normal_(generator=torch.Generator().manual_seed(2))
    read = read_memory_batch(sae, autoregressive(4).flatten(0, 1))
    exact = predict_batch(sae, read, step=3)
    remember_errors(sae, torch.ones(5, D_IN))
    noisy = predict_batch(sae, read, step=3)
    assert not torch.allclose(noisy, exact, atol=0.1)
    assert_close(predict_batch(sae, read, step=3), noisy)
    drawn = draw_errors(sae, torch.tensor([[1.0, 0.0, 1.0, 0.5, 1.0]]), step=3)[0, :, 0]
    assert drawn.tolist() == pytest.approx([1, 0, 1, (0.5 / 1.5) ** 0.5, (0.1 / 1.9) ** 0.5], abs=1e-6)


def test_the_impulse_response_is_what_decode_adds_for_one_event() -> None:
    sae = random_sae()
    e = sae.encode(contexts())
    features = torch.tensor([7, 2])
    responses = impulse_response(sae, features, POS - 3)
    for feature, response in zip(features.tolist(), responses, strict=True):
        changed = e.clone()
        changed[:, 3, feature] += 0.7
        carried = (sae.decode(changed) - sae.decode(e)).detach()
        assert_close(carried[:, 3:], (0.7 * response).expand(BATCH, -1, -1), rtol=1e-4, atol=1e-5)
        assert not carried[:, :3].any()
        assert response[5].norm() > 1e-3  # a lag that is reached through averages and reconstructions alone
    norms = impulse_norms(sae, (1, 4))
    assert norms.shape == (D_SAE, 2)
    assert_close(norms[features], responses.norm(dim=-1)[:, [1, 4]] / sae.W_dec[features].norm(dim=-1, keepdim=True))


def test_the_parts_of_all_events_add_up_to_the_reconstruction() -> None:
    sae = random_sae()
    e = sae.encode(contexts())
    responses = impulse_response(sae, torch.arange(D_SAE), POS)
    t = POS - 1
    parts = torch.stack(
        [e[:, s, :, None] * responses[:, t - s] for s in range(POS)]
    )  # position of the event, context, feature, d_in
    assert_close(parts.sum(dim=(0, 2)) + sae.b_dec, sae.decode(e)[:, t], rtol=1e-4, atol=1e-4)


def test_an_impulse_response_needs_memory() -> None:
    with pytest.raises(ModelError, match=r"expected an SAE whose decoder has memory.*--set memory=predictive"):
        impulse_response(make_sae(memory="none"), torch.arange(2), 4)
    with pytest.raises(ConfigError, match="expected n_positions of at least 1, got 0"):
        impulse_response(random_sae(), torch.arange(2), 0)
