"""Test every law on every variant, and that every law fails on its broken variants."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import laws
import pytest
import torch
from einops import rearrange
from sae_lens import SAE, TopKTrainingSAE, TopKTrainingSAEConfig
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig, MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.data.blocks import SequenceBlocks
from mtsae_lens.data.outliers import OutlierBlocks
from mtsae_lens.data.planted import PlantedBlocks, PlantedConfig, PlantedFeatures
from mtsae_lens.sae import hierarchy, spacing, temporal, temporal_encoder, training
from mtsae_lens.sae.contributions import offset_contributions, scale_contributions
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions

CONTEXT = 20
D_IN = 8
CONFIGS: dict[type, type] = {MTSAE: MTSAEConfig, MTTrainingSAE: MTTrainingSAEConfig}
PADDINGS = ("causal", "circular", "zero")
SCALE_NORMS = ("rescaled_layer_norm", "layer_norm", "none")
ACTIVATIONS = ("topk", "relu")
LEARNED = {"learn_dilations": True, "max_lag": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "token-alone": {"dilations": (0, 1, 4)},
    "token-alone-zero": {"dilations": (0, 1, 4), "padding": "zero"},
    "token-alone-circular": {"dilations": (1, 0, 4), "padding": "circular"},
    "nested": {"hierarchy": "nested", "k": 12},
    "nested-zero": {"hierarchy": "nested", "k": 12, "padding": "zero"},
    "nested-circular": {"hierarchy": "nested", "k": 12, "padding": "circular"},
    "learned": LEARNED,
    "learned-layer-norm": LEARNED | {"scale_norm": "layer_norm"},
    "learned-token-alone": LEARNED | {"dilations": (0, 1, 4)},
    "learned-nested": LEARNED | {"dilations": (0, 2, 4), "hierarchy": "nested", "scale_norm": "none"},
    "paper-gain": {"context_gain": 1.0},
    "narrow": {"context_rank": 3},
    "narrow-learned": LEARNED | {"context_rank": 3},
}
VARIANTS: dict[str, tuple[type, dict[str, Any]]] = {
    "-".join((kind.__name__, *plain)): (kind, dict(zip(("padding", "scale_norm", "activation"), plain, strict=True)))
    for kind in CONFIGS
    for plain in product(PADDINGS, SCALE_NORMS, ACTIVATIONS)
} | {
    f"{kind.__name__}-{name}-{activation}": (kind, settings | {"activation": activation})
    for kind in CONFIGS
    for name, settings in OPTIONS.items()
    for activation in ACTIVATIONS
}
# thresholds: in training as learned by either activation, in inference as JumpReLU
VARIANTS |= {
    f"{kind.__name__}-{name}-{activation}": (kind, settings | {"activation": activation})
    for kind, activation in ((MTSAE, "jumprelu"), (MTTrainingSAE, "jumprelu"), (MTTrainingSAE, "batchtopk"))
    for name, settings in (
        {padding: {"padding": padding} for padding in PADDINGS}
        | {name: OPTIONS[name] for name in ("token-alone", "nested-circular", "learned", "narrow")}
    ).items()
}
BATCHTOPK = {name for name, (_, settings) in VARIANTS.items() if settings["activation"] == "batchtopk"}
"""In training, the features of a context depend on the other contexts of the batch."""


def with_padding(padding: str) -> dict[str, tuple[type, dict[str, Any]]]:
    return {name: (kind, cfg) for name, (kind, cfg) in VARIANTS.items() if cfg.get("padding", "causal") == padding}


SETTINGS = {"d_in": D_IN, "d_sae": 32, "k": 6, "dilations": (1, 2, 4), "context_size": CONTEXT, "dtype": "float64"}


def training_config(**settings: Any) -> MTTrainingSAEConfig:
    return MTTrainingSAEConfig(**(SETTINGS | settings))


def random_sae(kind: type[Any] = MTSAE, mixin: type | None = None, **settings: Any) -> Any:
    """An SAE of random weights, in float64; with a mixin, a broken variant."""
    base = next(b for b in CONFIGS if issubclass(kind, b))
    cfg = CONFIGS[base](**(SETTINGS | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # an SAE in training draws its initial weights
        sae = (kind if mixin is None else type("Broken", (mixin, kind), {}))(cfg)
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    if sae.cfg.hierarchy == "nested":
        sae.W_enc.data *= laws.allowed(sae)
    if sae.cfg.activation == "jumprelu":
        sae.threshold.data.abs_()
    if sae.cfg.activation == "batchtopk":
        sae.topk_threshold.fill_(0.4)
    return sae


@pytest.fixture(params=VARIANTS)
def sae(request: pytest.FixtureRequest) -> Any:
    kind, settings = VARIANTS[request.param]
    return random_sae(kind, **settings)


@pytest.fixture(params=[name for name in VARIANTS if name not in BATCHTOPK])
def context_sae(request: pytest.FixtureRequest) -> Any:
    """Make an SAE whose features depend only on their own context."""
    kind, settings = VARIANTS[request.param]
    return random_sae(kind, **settings)


@pytest.fixture
def h() -> Tensor:
    return torch.randn(3, CONTEXT, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def no_walls(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.bool)


# causality ------------------------------------------------------------------------------------------------------------


class CentredOverTime:
    """Takes the mean of the context from each scale."""

    def encode_scales(self, x: Tensor, walls: Tensor) -> Tensor:
        z = super().encode_scales(x, walls)
        return z - z.mean(dim=1, keepdim=True)


def centred_taps(kernel_size: int, dilation: int, padding: str) -> list[int]:
    return [(kernel_size // 2 - tap) * dilation for tap in range(kernel_size)]


@pytest.mark.parametrize("variant", sorted(set(with_padding("causal")) - BATCHTOPK))
def test_causality(variant: str, h: Tensor) -> None:
    kind, settings = VARIANTS[variant]
    laws.check_causality(random_sae(kind, **settings).encode, h)


@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_causality_catches_paddings_that_look_ahead(padding: str, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae(padding=padding).encode, h)


def test_causality_catches_a_choice_among_the_batch(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae(MTTrainingSAE, activation="batchtopk").encode, h)


def test_causality_catches_centred_taps(h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (temporal, temporal_encoder):
        monkeypatch.setattr(module, "tap_offsets", centred_taps)
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae().encode, h)


def test_causality_catches_a_norm_over_time(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_causality(random_sae(mixin=CentredOverTime).encode, h)


def test_causality_catches_learned_taps_in_the_future(h: Tensor) -> None:
    class ReadsAhead:
        @property
        def read_offsets(self) -> list[int]:
            return [-offset for offset in super().read_offsets]

    with pytest.raises(AssertionError):
        laws.check_causality(random_sae(mixin=ReadsAhead, **LEARNED).encode, h)


# receptive field ------------------------------------------------------------------------------------------------------


def test_receptive_field(context_sae: Any, h: Tensor) -> None:
    laws.check_receptive_field(context_sae, h)


@pytest.mark.parametrize("claim", [(7, 0), (9, 0), (8, 1)])
def test_receptive_field_catches_a_wrong_claim(claim: tuple[int, int], h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal_encoder, "receptive_field", lambda *_: claim)
    with pytest.raises(AssertionError):
        laws.check_receptive_field(random_sae(), h)


@pytest.mark.parametrize("max_lag", [7, 9])
def test_receptive_field_catches_a_wrong_claim_of_learned_taps(
    max_lag: int, h: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = random_sae(**LEARNED)
    lags = spacing.lag_grid(8)
    monkeypatch.setattr(temporal_encoder, "lag_grid", lambda _: lags)
    sae.cfg.max_lag = max_lag
    with pytest.raises(AssertionError):
        laws.check_receptive_field(sae, h)


def test_receptive_field_catches_a_norm_over_time(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_receptive_field(random_sae(mixin=CentredOverTime), h)


# equivariance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", with_padding("circular"))
def test_circular_equivariance(variant: str, h: Tensor) -> None:
    kind, settings = VARIANTS[variant]
    laws.check_circular_equivariance(random_sae(kind, **settings, skip_first_position=False).encode, h)


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
    """A broken variant, like SAELens's `TemporalSAE`: `forward` adds a prediction that is not part of `decode`."""

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
        super().process_state_dict_for_saving(state_dict)
        del state_dict["b_enc"]


class ForgetsTheThreshold:
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["threshold"] = torch.zeros_like(state_dict["threshold"])


class SavesZeros:
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_saving(state_dict)
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


@pytest.mark.parametrize("kind", CONFIGS)
def test_save_load_catches_a_forgotten_threshold(kind: type, h: Tensor, tmp_path: Any) -> None:
    with pytest.raises(AssertionError):
        laws.check_save_load(random_sae(kind, ForgetsTheThreshold, activation="jumprelu"), h, tmp_path)


def test_save_load_catches_a_forgotten_setting(h: Tensor, tmp_path: Any) -> None:
    sae = random_sae(MTTrainingSAE, padding="zero")
    sae.cfg = type("Broken", (ForgetsThePadding, MTTrainingSAEConfig), {})(
        **{f: getattr(sae.cfg, f) for f in sae.cfg.__dataclass_fields__}
    )
    with pytest.raises(AssertionError):
        laws.check_save_load(sae, h, tmp_path)


# batches --------------------------------------------------------------------------------------------------------------


class CentredOverTheBatch:
    def encode_scales(self, x: Tensor, walls: Tensor) -> Tensor:
        return super().encode_scales(x - x.mean(dim=0), walls)


class ReadsRowsTheOtherWayRound:
    def _as_contexts(self, h: Tensor) -> Tensor:
        return rearrange(h, "(pos batch) d_in -> batch pos d_in", pos=CONTEXT) if h.ndim == 2 else h


def test_batch_splitting(context_sae: Any, h: Tensor) -> None:
    laws.check_batch_splitting(context_sae, h)


def test_batch_splitting_catches_a_choice_among_the_batch(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_batch_splitting(random_sae(MTTrainingSAE, activation="batchtopk"), h)


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


def in_another_order(h: Tensor, walls: Tensor, offsets: list[int], padding: str) -> Callable[[Tensor], Tensor]:
    return temporal.gather_reads(h, walls, offsets[:1] + offsets[:0:-1], padding)


def of_another_padding(h: Tensor, walls: Tensor, offsets: list[int], padding: str) -> Callable[[Tensor], Tensor]:
    return temporal.gather_reads(h, walls, offsets, "zero" if padding == "circular" else "circular")


def through_walls(h: Tensor, walls: Tensor, offsets: list[int], padding: str) -> Callable[[Tensor], Tensor]:
    shifted = torch.cat([temporal._shift(h, offset, padding) for offset in offsets], dim=-1).flatten(0, 1)
    return shifted.__getitem__


@pytest.mark.parametrize("variant", [name for name, (kind, _) in VARIANTS.items() if kind is MTTrainingSAE])
@pytest.mark.parametrize("changes", [{}, {"skip_first_position": False}, {"apply_b_dec_to_input": False}], ids=str)
def test_mixed_rows(variant: str, changes: dict[str, Any], h: Tensor) -> None:
    laws.check_mixed_rows(random_sae(MTTrainingSAE, **VARIANTS[variant][1], **changes), h, temporal.gather_reads)


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
    def encode_scales(self, x: Tensor, walls: Tensor) -> Tensor:
        return super().encode_scales(x, walls).detach()


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


@pytest.mark.parametrize("part", [slice(None), slice(1, 2)], ids=["all", "a-scale"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_catch_dilations_that_do_not_learn(kind: type, part: slice, h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_gradients(random_sae(kind, detached("log2_dilations", part), **LEARNED), h)


def test_gradients_catch_a_detached_scale(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_gradients(random_sae(mixin=WithoutGradient), h)


# walls ----------------------------------------------------------------------------------------------------------------


def test_walls(context_sae: Any, h: Tensor) -> None:
    laws.check_walls(context_sae, h)


@pytest.mark.parametrize("padding", PADDINGS)
def test_walls_catch_features_at_a_wall(padding: str, h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal_encoder, "find_walls", no_walls)
    with pytest.raises(AssertionError):
        laws.check_walls(random_sae(padding=padding), h)


@pytest.mark.parametrize("padding", PADDINGS)
def test_walls_catch_taps_that_read_across(padding: str, h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "_segments", lambda walls, padding: torch.zeros_like(walls, dtype=torch.long))
    with pytest.raises(AssertionError):
        laws.check_walls(random_sae(padding=padding), h)


# contributions --------------------------------------------------------------------------------------------------------

CONTRIBUTIONS = (scale_contributions, offset_contributions)


def without_the_norm(contributions: Callable[..., Tensor], sae: Any, h: Tensor, features: Tensor) -> Tensor:
    norm, sae.cfg.scale_norm = sae.cfg.scale_norm, "none"
    try:
        return contributions(sae, h, features)
    finally:
        sae.cfg.scale_norm = norm


def without_the_gain(contributions: Callable[..., Tensor], sae: Any, h: Tensor, features: Tensor) -> Tensor:
    gain, sae.cfg.context_gain = sae.cfg.context_gain, 1.0
    try:
        return contributions(sae, h, features)
    finally:
        sae.cfg.context_gain = gain


def with_scales_mixed_up(sae: Any, h: Tensor, features: Tensor) -> Tensor:
    z = sae.encode_scales(*sae.read_contexts(h))
    return torch.einsum("bpsd,dsf->bpsf", z, sae.W_enc[:, features].unflatten(0, z.shape[:1:-1]))


def with_a_scale_moved(sae: Any, h: Tensor, features: Tensor) -> Tensor:
    return scale_contributions(sae, h, features).roll(1, dims=2)


def with_offsets_moved(sae: Any, h: Tensor, features: Tensor) -> Tensor:
    return offset_contributions(sae, h, features).roll(1, dims=2)


def through_the_walls(sae: Any, h: Tensor, features: Tensor) -> Tensor:
    return offset_contributions(sae, torch.where(h == 0, 1.0, h), features)


@pytest.mark.parametrize("contributions", CONTRIBUTIONS)
def test_contributions(contributions: Callable[..., Tensor], sae: Any, h: Tensor) -> None:
    laws.check_contributions(contributions, sae, h)


@pytest.mark.parametrize(
    "broken",
    [
        *(partial(change, each) for change in (without_the_norm, without_the_gain) for each in CONTRIBUTIONS),
        with_scales_mixed_up,
        through_the_walls,
    ],
    ids=["scales-norm", "offsets-norm", "scales-gain", "offsets-gain", "mixed-up", "walls"],
)
@pytest.mark.parametrize("settings", [{}, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_contributions_catch(kind: type, settings: dict[str, Any], broken: Callable[..., Tensor], h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_contributions(broken, random_sae(kind, **settings), h)


@pytest.mark.parametrize("contributions", CONTRIBUTIONS)
def test_contributions_catch_an_offset_counted_by_each_of_its_taps(
    contributions: Callable[..., Tensor], h: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a scale for the token alone all taps read offset 0."""

    class CountsEveryTap:
        def convolve(self: Any, reads: dict[int, Tensor]) -> Tensor:
            cfg = self.cfg
            used = [temporal.tap_offsets(cfg.kernel_size, dilation, cfg.padding) for dilation in cfg.dilations]
            return temporal.temporal_convolution(reads, self.filters, used)

    sae = random_sae(mixin=CountsEveryTap, dilations=(0, 1, 4))
    with pytest.raises(AssertionError):
        laws.check_contributions(offset_contributions, sae, h)


def test_contributions_are_of_their_scale(sae: Any, h: Tensor) -> None:
    laws.check_contributions_are_of_their_scale(scale_contributions, sae, h)


@pytest.mark.parametrize("settings", [{}, LEARNED], ids=["fixed", "learned"])
def test_contributions_are_of_their_scale_catches(settings: dict[str, Any], h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_contributions_are_of_their_scale(with_a_scale_moved, random_sae(**settings), h)


@pytest.mark.parametrize("variant", VARIANTS)
def test_contributions_are_of_their_offset(variant: str, h: Tensor) -> None:
    kind, settings = VARIANTS[variant]
    laws.check_contributions_are_of_their_offset(
        offset_contributions, random_sae(kind, **(settings | {"scale_norm": "none"})), h
    )


@pytest.mark.parametrize("settings", [{}, LEARNED, {"padding": "circular"}], ids=["fixed", "learned", "circular"])
def test_contributions_are_of_their_offset_catches(settings: dict[str, Any], h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_contributions_are_of_their_offset(with_offsets_moved, random_sae(**settings, scale_norm="none"), h)


# hierarchy ------------------------------------------------------------------------------------------------------------


class ReadsAllScales:
    """Bars no weight."""

    def _encoder_weights(self: Any) -> Tensor:
        return self.W_enc


def one_group_further(d_sae: int, n_scales: int) -> Tensor:
    return torch.arange(n_scales)[:, None] <= hierarchy.feature_groups(d_sae, n_scales)[None, :] + 1


NESTED = {name: settings for name, settings in OPTIONS.items() if name.startswith("nested")}
NESTED |= {
    "nested-token-alone": {"hierarchy": "nested", "dilations": (0, 1, 4)},
    "nested-layer-norm": {"hierarchy": "nested", "scale_norm": "layer_norm"},
    "nested-descending": {"hierarchy": "nested", "dilations": (4, 2, 1)},
}


@pytest.mark.parametrize("settings", NESTED.values(), ids=NESTED)
@pytest.mark.parametrize("kind", CONFIGS)
def test_groups_read_no_longer_scale(kind: type, settings: dict[str, Any], h: Tensor) -> None:
    laws.check_groups_read_no_longer_scale(random_sae(kind, **settings), h)


def test_groups_read_no_longer_scale_catches_a_missing_mask(h: Tensor) -> None:
    sae = random_sae(MTTrainingSAE, ReadsAllScales, hierarchy="nested")
    sae.W_enc.data = torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with pytest.raises(AssertionError):
        laws.check_groups_read_no_longer_scale(sae, h)


def test_groups_read_no_longer_scale_catches_a_group_too_many(h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "readable", one_group_further)
    sae = random_sae(MTTrainingSAE, hierarchy="nested")
    sae.W_enc.data = torch.randn(sae.W_enc.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with pytest.raises(AssertionError):
        laws.check_groups_read_no_longer_scale(sae, h)


NESTED_TRAINING = {
    "nested": {},
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu", "jumprelu_ste_to_input": True},
    "batchtopk": {"activation": "batchtopk"},
    "token-alone": {"dilations": (0, 1, 4)},
    "learned": LEARNED,
    "cka": {"separation": "cka"},
    "conv": {"tap_init": "conv", "padding": "circular"},
}


@pytest.mark.parametrize("settings", NESTED_TRAINING.values(), ids=NESTED_TRAINING)
def test_barred_weights_stay_zero(settings: dict[str, Any], h: Tensor) -> None:
    laws.check_barred_weights_stay_zero(MTTrainingSAE(training_config(hierarchy="nested", **settings)), h)


@pytest.mark.parametrize("settings", NESTED_TRAINING.values(), ids=NESTED_TRAINING)
def test_barred_weights_stay_zero_catches_a_missing_mask(settings: dict[str, Any], h: Tensor) -> None:
    broken = type("Broken", (ReadsAllScales, MTTrainingSAE), {})(training_config(hierarchy="nested", **settings))
    with pytest.raises(AssertionError):
        laws.check_barred_weights_stay_zero(broken, h)


def test_barred_weights_stay_zero_catches_a_start_that_reads_all(h: Tensor) -> None:
    sae = MTTrainingSAE(training_config(hierarchy="nested"))
    sae.W_enc.data[-1, 0] = 1e-3
    with pytest.raises(AssertionError):
        laws.check_barred_weights_stay_zero(sae, h)


# learned dilations ----------------------------------------------------------------------------------------------------


def shifted_rates(weights: Callable[..., Tensor], log2_dilations: Tensor, *rest: Any) -> Tensor:
    return weights(log2_dilations + 0.5, *rest)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Tensor]:
    """Taps that read one lag each."""
    weights = partial(spacing.spacing_weights, width=1e-3)
    monkeypatch.setattr(spacing, "spacing_weights", weights)
    return weights


LEARNED_ON_THE_GRID = [
    {"dilations": (1, 2, 4)},
    {"dilations": (0, 1, 4)},
    {"dilations": (4, 0, 1), "scale_norm": "none"},
    {"dilations": (3, 6), "kernel_size": 2, "scale_norm": "layer_norm"},
    {"dilations": (1, 2), "hierarchy": "nested"},
]


@pytest.mark.parametrize("settings", LEARNED_ON_THE_GRID, ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_narrow_taps_are_the_fixed_ones(kind: type, settings: dict[str, Any], h: Tensor, narrow: Any) -> None:
    laws.check_narrow_taps_are_the_fixed_ones(random_sae(kind, **settings, **LEARNED), h)


def test_narrow_taps_are_the_fixed_ones_catches_wide_taps(h: Tensor) -> None:
    with pytest.raises(AssertionError):
        laws.check_narrow_taps_are_the_fixed_ones(random_sae(**LEARNED), h)


def test_narrow_taps_are_the_fixed_ones_catches_rates_off_the_grid(h: Tensor, narrow: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(spacing, "spacing_weights", partial(shifted_rates, narrow))
    with pytest.raises(AssertionError):
        laws.check_narrow_taps_are_the_fixed_ones(random_sae(**LEARNED), h)


def test_a_still_scale_reads_the_token_alone(h: Tensor) -> None:
    for norm in SCALE_NORMS:
        laws.check_a_still_scale_reads_the_token_alone(random_sae(**LEARNED, dilations=(1, 0, 4), scale_norm=norm), h)


def test_a_still_scale_reads_the_token_alone_catches_a_scale_that_moves(h: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    filters = spacing.learned_filters
    monkeypatch.setattr(temporal_encoder, "learned_filters", lambda *rest: filters(*rest[:-1], torch.ones_like(rest[-1])))
    with pytest.raises(AssertionError):
        laws.check_a_still_scale_reads_the_token_alone(random_sae(**LEARNED, dilations=(1, 0, 4)), h)


@pytest.mark.parametrize("start", [4.0, 8.0])
def test_a_rate_moves_to_where_the_target_lies(start: float) -> None:
    laws.check_a_rate_moves_to_where_the_target_lies(spacing.learned_filters, start=start, lag=6)


def narrow_filters(taps: Tensor, log2_dilations: Tensor, lags: list[int], moves: Tensor) -> Tensor:
    weights = spacing.spacing_weights(log2_dilations, taps.shape[1], lags, width=0.01)
    return torch.cat([taps[:, :1], torch.einsum("kjl,kjd->kld", weights, taps[:, 1:])], dim=1)


def detached_filters(taps: Tensor, log2_dilations: Tensor, lags: list[int], moves: Tensor) -> Tensor:
    return spacing.learned_filters(taps, log2_dilations.detach(), lags, moves)


@pytest.mark.parametrize("filters", [narrow_filters, detached_filters])
@pytest.mark.parametrize("start", [4.0, 8.0])
def test_a_rate_moves_to_where_the_target_lies_catches(filters: Callable[..., Tensor], start: float) -> None:
    with pytest.raises(AssertionError):
        laws.check_a_rate_moves_to_where_the_target_lies(filters, start=start, lag=6)


# training -------------------------------------------------------------------------------------------------------------

PLANTED = PlantedConfig(context_size=32, durations=(1, 4), lags=((1, 2), (2, 4)))


@pytest.fixture(scope="module")
def planted() -> PlantedBlocks:
    return PlantedBlocks(PlantedFeatures(PLANTED), batch_size_sequences=16, block_size_batches=8)


def trained_from(start: str, architecture: str, stream: SequenceBlocks) -> Any:
    kind, config = {
        "mtsae": (MTTrainingSAE, partial(MTTrainingSAEConfig, context_size=PLANTED.context_size)),
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
    }[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sae = kind(config(d_in=PLANTED.d_in, d_sae=128, k=8, normalize_activations="expected_average_only_in"))
    options = TrainerOptions(log_every_n_steps=1000) if start == "default" else TrainerOptions(b_dec_init=start)  # type: ignore[arg-type]
    return fit(sae, stream, n_steps=150, batch_size_tokens=512, lr=3e-3, lr_warm_up_steps=7, lr_end=1.5e-4, options=options)


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_outlier_dimensions_cost_nothing(architecture: str, planted: PlantedBlocks) -> None:
    train = partial(trained_from, "default", architecture)
    laws.check_outlier_dimensions_cost_nothing(train, planted, OutlierBlocks(planted))


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
def test_outlier_dimensions_cost_nothing_catches_a_start_at_zero(architecture: str, planted: PlantedBlocks) -> None:
    train = partial(trained_from, "zeros", architecture)
    with pytest.raises(AssertionError, match="are silent"):
        laws.check_outlier_dimensions_cost_nothing(train, planted, OutlierBlocks(planted))
