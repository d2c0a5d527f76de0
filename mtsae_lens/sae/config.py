"""What an MTSAE is (`MTSAEConfig`) and how it is trained (`MTTrainingSAEConfig`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sae_lens import SAEConfig, TrainingSAEConfig

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.field_types import check_fields
from mtsae_lens.sae.separation import SEPARATIONS
from mtsae_lens.sae.temporal import PADDINGS, SCALE_NORMS, Padding, ScaleNorm

ARCHITECTURE = "mtsae"
Activation = Literal["topk", "relu"]
TapInit = Literal["near", "far", "alike", "conv"]
ReconstructionLoss = Literal["mse", "l2"]
Hierarchy = Literal["none", "nested"]


def _one_of(name: str, value: str, valid: Iterable[str]) -> None:
    if value not in valid:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, valid))}; got {value!r}")


@dataclass(kw_only=True)
class _TemporalFields:
    """The fields that training and inference share."""

    dilations: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Dilation of each scale, in positions: the paper's 1, 2, 4, 8, and 0, a scale of its own for the token alone."""

    kernel_size: int = 3
    """Taps of each scale."""

    learn_dilations: bool = False
    """Let the dilations move in training, from those given (`mtsae_lens.sae.spacing`); causal only."""

    max_lag: int | None = None
    """With `learn_dilations`, the farthest position that a tap may come to read; None for the whole context."""

    hierarchy: Hierarchy = "none"
    """`nested`: features in one group a scale, the first reading the first scale alone, the last all (`mtsae_lens.sae.hierarchy`)."""

    padding: Padding = "causal"
    """`causal`: taps read the past only, the one choice that leaks nothing inside an autoregressive model. `circular`: centred,
    wrapping around the context, as in the paper. `zero`: centred, nothing beyond the ends."""

    scale_norm: ScaleNorm = "rescaled_layer_norm"
    """`rescaled_layer_norm`: layer norm with the token's own mean and deviation put back. `layer_norm`: as in the paper. `none`."""

    context_gain: float = 0.1
    """Factor on every scale but the first. Adam moves each encoder weight alike, useful or not, and there are four times as many
    for the context as for the token itself; a gain below 1 keeps their noise down. 1 is the paper."""

    activation: Activation = "topk"
    """`topk` keeps the `k` largest pre-activations of a position; `relu` keeps the positive ones and needs an L1 penalty."""

    k: int = 32
    """Features active at a position, for `topk`."""

    context_size: int = 128
    """Positions of a context. A 2-D input is read as contexts of this length laid end to end."""

    skip_first_position: bool = True
    """Treat position 0 of every context as a wall: in most language models it is an outlier, BOS or not."""

    def _validate_temporal_fields(self, d_sae: int, normalize_activations: str) -> None:
        if not isinstance(self.dilations, tuple | list) or not all(type(d) is int and d >= 0 for d in self.dilations or (-1,)):
            raise ConfigError(
                f"dilations must be whole numbers, 0 for the token alone, such as (0, 1, 2, 4, 8); got {self.dilations}"
            )
        self.dilations = tuple(self.dilations)  # JSON knows lists only
        if len(set(self.dilations)) != len(self.dilations):
            raise ConfigError(f"dilations must differ from each other; got {self.dilations}")
        _one_of("padding", self.padding, PADDINGS)
        _one_of("hierarchy", self.hierarchy, get_args(Hierarchy))
        _one_of("scale_norm", self.scale_norm, SCALE_NORMS)
        if self.context_gain <= 0:
            raise ConfigError(f"context_gain must be positive; got {self.context_gain}")
        _one_of("activation", self.activation, get_args(Activation))
        if self.kernel_size == 1 and len(self.dilations) > 1:
            raise ConfigError(
                f"kernel_size=1 reads no other position, so the scales {self.dilations} would be one; give one dilation"
            )
        if self.kernel_size < 1 or (self.padding != "causal" and self.kernel_size % 2 == 0):
            raise ConfigError(f"kernel_size must be positive, and odd unless padding is 'causal'; got {self.kernel_size}")
        if self.hierarchy == "nested" and not 1 < len(self.dilations) <= d_sae:
            raise ConfigError(
                f"hierarchy='nested' needs at least two dilations, and a feature for each; got {self.dilations} and d_sae={d_sae}"
            )
        self._validate_learnt_dilations()
        if self.activation == "topk" and not 1 <= self.k <= d_sae:
            raise ConfigError(f"k must lie between 1 and d_sae ({d_sae}); got {self.k}")
        if self.context_size < 2:
            raise ConfigError(f"context_size must be at least 2 positions; got {self.context_size}")
        if normalize_activations not in ("none", "expected_average_only_in"):
            raise ConfigError(
                f"normalize_activations={normalize_activations!r} does not go with an MTSAE: whitening cannot be folded into depth-wise "
                "taps, and norms of single tokens are undefined at a wall; use 'expected_average_only_in' or 'none'"
            )

    def _validate_learnt_dilations(self) -> None:
        if not self.learn_dilations:
            if self.max_lag is not None:
                raise ConfigError(f"max_lag={self.max_lag} says how far learnt dilations may reach; add learn_dilations=True")
            return
        if self.padding != "causal" or self.kernel_size == 1:
            raise ConfigError(
                "learn_dilations=True moves taps over the past, so it needs padding='causal' and a kernel_size of at least 2; got "
                f"{self.padding!r} and {self.kernel_size}"
            )
        if self.max_lag is None:
            self.max_lag = self.context_size - 1
        if type(self.max_lag) is not int or not 2 <= self.max_lag < self.context_size:
            raise ConfigError(f"max_lag must lie between 2 and context_size - 1 ({self.context_size - 1}); got {self.max_lag}")
        if not 0 < max(self.dilations) <= self.max_lag:
            raise ConfigError(
                f"learn_dilations=True needs a dilation to start from, and none beyond max_lag={self.max_lag}; got {self.dilations}"
            )


@dataclass
class MTSAEConfig(_TemporalFields, SAEConfig):
    """A Multi-Scale Temporal SAE for inference; see `MTSAE` for the equations."""

    @classmethod
    def architecture(cls) -> str:
        """The name under which SAELens knows it."""
        return ARCHITECTURE

    def __post_init__(self) -> None:
        check_fields(type(self), {field.name: getattr(self, field.name) for field in fields(self)})
        super().__post_init__()
        self._validate_temporal_fields(self.d_sae, self.normalize_activations)


@dataclass(kw_only=True)
class MTTrainingSAEConfig(_TemporalFields, TrainingSAEConfig):
    """A Multi-Scale Temporal SAE in training; see `MTTrainingSAE` for the loss."""

    decoder_init_norm: float | None = 1.0
    """Norm of the decoder rows at the start; 1 agrees with `normalize_decoder`."""

    normalize_decoder: bool = True
    """Bring the decoder rows back to unit norm after each update (`MTTrainingSAE.normalize_decoder_`), as in the paper."""

    reconstruction_loss: ReconstructionLoss = "mse"
    """`mse`: squared error summed over `d_in`, as everywhere in SAELens. `l2`: its square root, as in eq. 4 of the paper."""

    l1_coefficient: float = 1.0
    """Weight of the L1 penalty, for `relu`."""

    l1_warm_up_steps: int = 0
    """Steps over which the L1 weight rises from zero."""

    separation: str = "cosine"
    """Separation loss between scales: `cosine` (the paper's), `decorrelation`, `cka`, `taps`, or one that was registered
    (`mtsae_lens.sae.separation`)."""

    separation_coefficient: float = 0.0
    """Weight of the separation loss."""

    aux_loss_coefficient: float = 1 / 32
    """Weight of the auxiliary loss by which dead features learn the residual, for `topk` (Gao et al. 2024, arXiv 2406.04093)."""

    tap_init: TapInit = "near"
    """How the filters start. `near`, `far`: the first scale as the token itself, every other as the nearest or farthest token it
    reads, so no two scales start alike. `alike`: all as the token itself. `conv`: uniform, as `torch.nn.Conv1d`."""

    @classmethod
    def architecture(cls) -> str:
        """The name under which SAELens knows it."""
        return ARCHITECTURE

    @classmethod
    def paper(cls, d_in: int, d_sae: int, **overrides: Any) -> MTTrainingSAEConfig:
        """The paper's own settings: eq. 2-4, lambda1 0.04, lambda2 0.1."""
        settings: dict[str, Any] = {
            "dilations": (1, 2, 4, 8),
            "padding": "circular",
            "scale_norm": "layer_norm",
            "activation": "relu",
            "reconstruction_loss": "l2",
            "l1_coefficient": 0.04,
            "separation_coefficient": 0.1,
            "tap_init": "conv",
            "context_gain": 1.0,
            "skip_first_position": False,
        }
        return cls(d_in=d_in, d_sae=d_sae, **(settings | overrides))

    def __post_init__(self) -> None:
        check_fields(type(self), {field.name: getattr(self, field.name) for field in fields(self)})
        super().__post_init__()
        self._validate_temporal_fields(self.d_sae, self.normalize_activations)
        _one_of("reconstruction_loss", self.reconstruction_loss, get_args(ReconstructionLoss))
        _one_of("separation", self.separation, SEPARATIONS)
        _one_of("tap_init", self.tap_init, get_args(TapInit))
        for name in ("l1_coefficient", "l1_warm_up_steps", "separation_coefficient", "aux_loss_coefficient"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative; got {getattr(self, name)}")
