"""Every law on every variant, and for every law twins broken on purpose that it must catch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import laws
import pytest
import torch
from einops import rearrange
from sae_lens import SAE
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.sae import mtsae, temporal

CONTEXT = 20
D_IN = 8
CONFIGS: dict[type, type] = {MTSAE: MTSAEConfig, MTTrainingSAE: MTTrainingSAEConfig}
PADDINGS = ("causal", "circular", "zero")
SCALE_NORMS = ("rescaled_layer_norm", "layer_norm", "none")
ACTIVATIONS = ("topk", "relu")


def random_sae(kind: type[Any] = MTSAE, mixin: type | None = None, **settings: Any) -> Any:
    """An SAE of random weights, in float64; with a mixin, a twin broken by it."""
    base = next(b for b in CONFIGS if issubclass(kind, b))
    cfg = CONFIGS[base](
        **({"d_in": D_IN, "d_sae": 32, "k": 6, "dilations": (1, 2, 4), "context_size": CONTEXT, "dtype": "float64"} | settings)
    )
    sae = (kind if mixin is None else type("Twin", (mixin, kind), {}))(cfg)
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return sae


@pytest.fixture(
    params=list(product(CONFIGS, PADDINGS, SCALE_NORMS, ACTIVATIONS)),
    ids=lambda variant: "-".join((variant[0].__name__, *variant[1:])),
)
def sae(request: pytest.FixtureRequest) -> Any:
    kind, padding, scale_norm, activation = request.param
    return random_sae(kind, padding=padding, scale_norm=scale_norm, activation=activation)


@pytest.fixture
def h() -> Tensor:
    return torch.randn(3, CONTEXT, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def no_walls(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.bool)


# causality ------------------------------------------------------------------------------------------------------------


class CentredOverTime:
    """Takes the mean of the context from each scale."""

    def encode_scales(self, x: Tensor) -> Tensor:
        z = super().encode_scales(x)
        return z - z.mean(dim=1, keepdim=True)


def centred_taps(kernel_size: int, dilation: int, padding: str) -> list[int]:
    return [(kernel_size // 2 - tap) * dilation for tap in range(kernel_size)]


@pytest.mark.parametrize(("kind", "scale_norm", "activation"), list(product(CONFIGS, SCALE_NORMS, ACTIVATIONS)))
def test_causality(kind: type, scale_norm: str, activation: str, h: Tensor) -> None:
    laws.check_causality(random_sae(kind, padding="causal", scale_norm=scale_norm, activation=activation).encode, h)


@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_causality_catches_paddings_that_look_ahead(padding: str, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae(padding=padding).encode, h)


def test_causality_catches_centred_taps(h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "tap_offsets", centred_taps)
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae().encode, h)


def test_causality_catches_a_norm_over_time(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae(mixin=CentredOverTime).encode, h)


# receptive field ------------------------------------------------------------------------------------------------------


def test_receptive_field(sae: Any, h: Tensor) -> None:
    laws.check_receptive_field(sae, h)


@pytest.mark.parametrize("claim", [(7, 0), (9, 0), (8, 1)])
def test_receptive_field_catches_a_wrong_claim(claim: tuple[int, int], h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtsae, "receptive_field", lambda *_: claim)
    with pytest.raises(AssertionError):
        laws.check_receptive_field(random_sae(), h)


def test_receptive_field_catches_a_norm_over_time(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_receptive_field(random_sae(mixin=CentredOverTime), h)


# equivariance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "scale_norm", "activation"), list(product(CONFIGS, SCALE_NORMS, ACTIVATIONS)))
def test_circular_equivariance(kind: type, scale_norm: str, activation: str, h: Tensor) -> None:
    circular = random_sae(kind, padding="circular", scale_norm=scale_norm, activation=activation, skip_first_position=False)
    laws.check_circular_equivariance(circular.encode, h)


@pytest.mark.parametrize("broken", [{"padding": "zero"}, {"padding": "causal"}, {"skip_first_position": True}])
def test_circular_equivariance_catches_a_beginning(broken: dict[str, Any], h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_circular_equivariance(
            random_sae(**({"padding": "circular", "skip_first_position": False} | broken)).encode, h
        )


def test_circular_equivariance_catches_taps_that_do_not_wrap(h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = temporal._shift
    monkeypatch.setattr(temporal, "_shift", lambda x, offset, padding: shift(x, offset, "zero"))
    with pytest.raises(AssertionError):
        laws.check_circular_equivariance(random_sae(padding="circular", skip_first_position=False).encode, h)


# forward --------------------------------------------------------------------------------------------------------------


class Noisy:
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-6 * torch.randn_like(x)


class PassesTheTokenThrough:
    """As SAELens' own `TemporalSAE`: `forward` adds a prediction that `decode` knows nothing of."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x.roll(1, dims=-2)


def test_forward_is_decode_of_encode(sae: Any, h: Tensor) -> None:
    laws.check_forward_is_decode_of_encode(sae, h)


@pytest.mark.parametrize("mixin", [Noisy, PassesTheTokenThrough])
@pytest.mark.parametrize("kind", CONFIGS)
def test_forward_is_decode_of_encode_catches(kind: type, mixin: type, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_forward_is_decode_of_encode(random_sae(kind, mixin), h)


# saving ---------------------------------------------------------------------------------------------------------------


class DropsAWeight:
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        del state_dict["b_enc"]


class SavesZeros:
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        state_dict["taps"] = torch.zeros_like(state_dict["taps"])


class ForgetsThePadding:
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().get_inference_sae_cfg_dict().items() if name != "padding"}


def test_save_load(sae: Any, h: Tensor, tmp_path: Any) -> None:
    laws.check_save_load(sae, h, tmp_path)


@pytest.mark.parametrize("mixin", [DropsAWeight, SavesZeros])
@pytest.mark.parametrize("kind", CONFIGS)
def test_save_load_catches(kind: type, mixin: type, h: Tensor, tmp_path: Any) -> None:
    with pytest.raises(AssertionError):
        laws.check_save_load(random_sae(kind, mixin), h, tmp_path)


def test_save_load_catches_a_forgotten_setting(h: Tensor, tmp_path: Any) -> None:
    sae = random_sae(MTTrainingSAE, padding="zero")
    sae.cfg = type("Twin", (ForgetsThePadding, MTTrainingSAEConfig), {})(
        **{f: getattr(sae.cfg, f) for f in sae.cfg.__dataclass_fields__}
    )
    with pytest.raises(AssertionError):
        laws.check_save_load(sae, h, tmp_path)


# batches --------------------------------------------------------------------------------------------------------------


class CentredOverTheBatch:
    def encode_scales(self, x: Tensor) -> Tensor:
        return super().encode_scales(x - x.mean(dim=0))


class ReadsRowsTheOtherWayRound:
    def _as_contexts(self, h: Tensor) -> Tensor:
        return rearrange(h, "(pos batch) d_in -> batch pos d_in", pos=CONTEXT) if h.ndim == 2 else h


def test_batch_splitting(sae: Any, h: Tensor) -> None:
    laws.check_batch_splitting(sae, h)


@pytest.mark.parametrize("mixin", [CentredOverTheBatch, ReadsRowsTheOtherWayRound])
@pytest.mark.parametrize("kind", CONFIGS)
def test_batch_splitting_catches(kind: type, mixin: type, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_batch_splitting(random_sae(kind, mixin), h)


# folding --------------------------------------------------------------------------------------------------------------


class FoldsAsTheBaseClass:
    """Scales `W_enc`, behind a norm that has taken the scale away."""

    fold_activation_norm_scaling_factor = SAE.fold_activation_norm_scaling_factor


class FoldsTheTapsOnly:
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self: Any, scaling_factor: float) -> None:
        self.taps.data *= scaling_factor
        self.W_dec.data /= scaling_factor
        self.b_dec.data /= scaling_factor


class ForgetsTheBias:
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self: Any, scaling_factor: float) -> None:
        super().fold_activation_norm_scaling_factor(scaling_factor)
        self.b_dec.data *= scaling_factor


@pytest.mark.parametrize("factor", [0.03, 25.0])
@pytest.mark.parametrize("apply_b_dec_to_input", [True, False])
def test_scale_folding(sae: Any, h: Tensor, factor: float, apply_b_dec_to_input: bool) -> None:
    sae.cfg.apply_b_dec_to_input = apply_b_dec_to_input
    sae.cfg.normalize_activations = "expected_average_only_in"
    laws.check_scale_folding(sae, h, factor)


@pytest.mark.parametrize(
    ("mixin", "scale_norm"),
    [
        (FoldsAsTheBaseClass, "layer_norm"),
        (FoldsTheTapsOnly, "rescaled_layer_norm"),
        *product([ForgetsTheBias], SCALE_NORMS),
    ],
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_scale_folding_catches(kind: type, mixin: type, scale_norm: str, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_scale_folding(random_sae(kind, mixin, scale_norm=scale_norm), h, 3.0)


# mixed rows -----------------------------------------------------------------------------------------------------------


def in_another_order(h: Tensor, offsets: list[int], padding: str) -> Callable[[Tensor], Tensor]:
    return temporal.gather_reads(h, offsets[:1] + offsets[:0:-1], padding)


def of_another_padding(h: Tensor, offsets: list[int], padding: str) -> Callable[[Tensor], Tensor]:
    return temporal.gather_reads(h, offsets, "zero" if padding == "circular" else "circular")


def through_walls(h: Tensor, offsets: list[int], padding: str) -> Callable[[Tensor], Tensor]:
    shifted = torch.cat([temporal._shift(h, offset, padding) for offset in offsets], dim=-1).flatten(0, 1)
    return shifted.__getitem__


@pytest.mark.parametrize(("padding", "scale_norm", "activation"), list(product(PADDINGS, SCALE_NORMS, ACTIVATIONS)))
@pytest.mark.parametrize("settings", [{}, {"skip_first_position": False}, {"apply_b_dec_to_input": False}], ids=str)
def test_mixed_rows(padding: str, scale_norm: str, activation: str, settings: dict[str, Any], h: Tensor) -> None:
    sae = random_sae(MTTrainingSAE, padding=padding, scale_norm=scale_norm, activation=activation, **settings)
    laws.check_mixed_rows(sae, h, temporal.gather_reads)


def test_mixed_rows_that_read_themselves_alone(h: Tensor) -> None:
    laws.check_mixed_rows(random_sae(MTTrainingSAE, kernel_size=1, dilations=(1,)), h, temporal.gather_reads)


@pytest.mark.parametrize("gather", [in_another_order, of_another_padding, through_walls])
@pytest.mark.parametrize("padding", PADDINGS)
def test_mixed_rows_catch(padding: str, gather: Any, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_mixed_rows(random_sae(MTTrainingSAE, padding=padding, skip_first_position=False), h, gather)


# gradients ------------------------------------------------------------------------------------------------------------


def detached(name: str, part: slice = slice(None)) -> type:
    """A mixin in which part of a parameter takes no gradient."""

    def initialize_weights(self: Any) -> None:
        super(mixin, self).initialize_weights()

        def without_gradient(gradient: Tensor) -> Tensor:
            gradient = gradient.clone()
            gradient[part] = 0
            return gradient

        getattr(self, name).register_hook(without_gradient)

    mixin = type("Detached", (), {"initialize_weights": initialize_weights})
    return mixin


class WithoutGradient:
    def encode_scales(self, x: Tensor) -> Tensor:
        return super().encode_scales(x).detach()


def test_gradients(sae: Any, h: Tensor) -> None:
    laws.check_gradients(sae, h)


@pytest.mark.parametrize(
    "mixin",
    [
        detached("b_enc"),
        detached("b_dec"),
        detached("W_dec"),
        detached("taps", slice(1, 2)),
        detached("W_enc", slice(-3, None)),
    ],
    ids=["b_enc", "b_dec", "W_dec", "a-scale", "some-inputs"],
)
@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_catch(kind: type, mixin: type, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_gradients(random_sae(kind, mixin), h)


def test_gradients_catch_a_detached_scale(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_gradients(random_sae(mixin=WithoutGradient), h)


# walls ----------------------------------------------------------------------------------------------------------------


def test_walls(sae: Any, h: Tensor) -> None:
    laws.check_walls(sae, h)


@pytest.mark.parametrize("padding", PADDINGS)
def test_walls_catch_features_at_a_wall(padding: str, h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mtsae, "find_walls", no_walls)
    with pytest.raises(AssertionError):
        laws.check_walls(random_sae(padding=padding), h)


@pytest.mark.parametrize("padding", PADDINGS)
def test_walls_catch_taps_that_read_across(padding: str, h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_segments", lambda walls, padding: torch.zeros_like(walls, dtype=torch.long))
    with pytest.raises(AssertionError):
        laws.check_walls(random_sae(padding=padding), h)


# scale contributions --------------------------------------------------------------------------------------------------


class ContributionsWithoutTheNorm:
    def scale_contributions(self: Any, h: Tensor, features: Tensor) -> Tensor:
        self.cfg.scale_norm = "none"
        contributions = super().scale_contributions(h, features)
        self.cfg.scale_norm = "rescaled_layer_norm"
        return contributions


class ContributionsWithScalesMixedUp:
    @torch.no_grad()
    def scale_contributions(self: Any, h: Tensor, features: Tensor) -> Tensor:
        z = self.encode_scales(self.process_sae_in(h))
        return torch.einsum("bpsd,dsf->bpsf", z, self.W_enc[:, features].unflatten(0, z.shape[:1:-1]))


def test_scale_contributions(sae: Any, h: Tensor) -> None:
    laws.check_scale_contributions(sae, h)


@pytest.mark.parametrize("mixin", [ContributionsWithoutTheNorm, ContributionsWithScalesMixedUp])
@pytest.mark.parametrize("kind", CONFIGS)
def test_scale_contributions_catch(kind: type, mixin: type, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_scale_contributions(random_sae(kind, mixin), h)
