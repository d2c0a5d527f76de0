"""The settings of an MTSAE (`MTSAEConfig`) and of its training (`MTTrainingSAEConfig`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from sae_lens import SAEConfig, TrainingSAEConfig
from typing_extensions import override

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.activation_fields import ActivationTrainingFields
from mtsae_lens.sae.activation_interface import ACTIVATIONS
from mtsae_lens.sae.field_types import check_fields, check_one_of
from mtsae_lens.sae.separation import SEPARATIONS
from mtsae_lens.sae.temporal_fields import TemporalFields

ARCHITECTURE = "mtsae"
TapInit = Literal["near", "far", "alike", "conv"]
ReconstructionLoss = Literal["mse", "l2"]
TrainingStep = Literal["auto", "sparse", "dense"]


@dataclass
class MTSAEConfig(TemporalFields, SAEConfig):
    """Configure a Multi-Scale Temporal SAE for inference; `MTSAE` has the equations.

    Raises:
        ConfigError: a setting has an invalid value, or one that does not fit another setting.
    """

    @classmethod
    def architecture(cls) -> str:
        """Return the name under which SAELens knows the architecture."""
        return ARCHITECTURE

    def __post_init__(self) -> None:
        check_fields(type(self), {of_class.name: getattr(self, of_class.name) for of_class in fields(self)})
        super().__post_init__()
        self._validate_temporal_fields(self.d_in, self.d_sae, self.normalize_activations)
        inference = ACTIVATIONS[self.activation].inference
        if inference != self.activation:
            raise ConfigError(
                f"expected an activation for inference, got {self.activation!r}, which is for training; give {inference!r}, which an SAE "
                "trained with it has"
            )


@dataclass(kw_only=True)
class MTTrainingSAEConfig(TemporalFields, ActivationTrainingFields, TrainingSAEConfig):
    """Configure a Multi-Scale Temporal SAE in training; `MTTrainingSAE` has the loss.

    Raises:
        ConfigError: a setting has an invalid value, or one that does not fit another setting.
    """

    decoder_init_norm: float | None = 1.0
    """Norm of the decoder rows at the start; use 1 with `normalize_decoder`. None leaves them as drawn."""

    normalize_decoder: bool = True
    """Scale the decoder rows to unit norm after each update (`MTTrainingSAE.normalize_decoder_`), as in the paper."""

    reconstruction_loss: ReconstructionLoss = "mse"
    """`mse`: squared error summed over `d_in`, as everywhere in SAELens. `l2`: its square root, as in eq. 4 of the paper."""

    matryoshka_widths: list[int] = field(default_factory=list)
    """Number of features in each nested dictionary, as of SAELens's Matryoshka SAEs, such as [128, 256, 512]: the reconstruction loss is
    averaged over the first 128 features, the first 256, and so on, and all of them (`mtsae_lens.sae.hierarchy`). Empty for one dictionary."""

    separation: str = "cosine"
    """Separation loss between scales: `cosine` (the paper's), `decorrelation`, `cka`, `taps`, or your own loss
    (`mtsae_lens.sae.separation.register_separation`)."""

    separation_coefficient: float = 0.0
    """Weight of the separation loss."""

    tap_init: TapInit = "near"
    """How the filters start. `near` and `far`: the first scale reads the token itself, and every other scale reads the nearest or farthest
    token that it can reach, so that no two scales start the same. `alike`: all scales read the token itself. `conv`: uniformly random, as
    in `torch.nn.Conv1d`."""

    memory_lr_ratio: float = 0.15
    """Learning rate of the prediction over that of the other weights: at the full rate Adam loses what ridge regression gave it."""

    training_step: TrainingStep = "auto"
    """How a training step is computed. `sparse`: with the active features alone, so that its cost hardly exceeds that of the encoder's
    forward product. `dense`: with all features. `auto`: sparse where so few features are active that it is cheaper, on a CPU or a CUDA GPU.
    Both give the same weights up to rounding. A hook on the features makes a step dense in any case."""

    @classmethod
    def architecture(cls) -> str:
        """Return the name under which SAELens knows the architecture."""
        return ARCHITECTURE

    @classmethod
    def paper(cls, d_in: int, d_sae: int, **overrides: Any) -> MTTrainingSAEConfig:
        """Return the paper's own settings: eq. 2-4, lambda1 0.04, lambda2 0.1.

        The paper does not mask position 0. `skip_first_position` is still True, because the runner, `HookedLM` and the export mask
        that position for every SAE.

        Args:
            d_in: width of the activations.
            d_sae: number of features.
            **overrides: other settings, by name.

        Returns:
            The configuration of an SAE in training.
        """
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
        }
        return cls(d_in=d_in, d_sae=d_sae, **(settings | overrides))

    @override
    def get_inference_sae_cfg_dict(self) -> dict[str, Any]:
        return super().get_inference_sae_cfg_dict() | {"activation": ACTIVATIONS[self.activation].inference}

    def __post_init__(self) -> None:
        check_fields(type(self), {of_class.name: getattr(self, of_class.name) for of_class in fields(self)})
        super().__post_init__()
        self._validate_temporal_fields(self.d_in, self.d_sae, self.normalize_activations)
        check_one_of("reconstruction_loss", self.reconstruction_loss, get_args(ReconstructionLoss))
        check_one_of("separation", self.separation, SEPARATIONS)
        check_one_of("tap_init", self.tap_init, get_args(TapInit))
        check_one_of("training_step", self.training_step, get_args(TrainingStep))
        if self.training_step == "sparse" and not ACTIVATIONS[self.activation].has_sparse_step:
            raise ConfigError(
                f"expected an activation that can list its active features for training_step='sparse', got {self.activation!r}; give 'auto'"
            )
        self._validate_matryoshka_widths()
        if self.memory_lr_ratio <= 0:
            raise ConfigError(f"expected memory_lr_ratio above 0, got {self.memory_lr_ratio}; raise it")
        if self.separation_coefficient < 0:
            raise ConfigError(f"expected separation_coefficient of at least 0, got {self.separation_coefficient}; raise it")

    def _validate_matryoshka_widths(self) -> None:
        widths = self.matryoshka_widths = list(self.matryoshka_widths)
        if widths != sorted(set(widths)) or not all(1 <= width <= self.d_sae for width in widths):
            raise ConfigError(
                f"expected matryoshka_widths that grow, from 1 to d_sae={self.d_sae} at most, got {widths}; give such as "
                f"{[max(1, self.d_sae // share) for share in (8, 4, 2)]}"
            )
        if widths and self.hierarchy != "none":
            raise ConfigError(
                f"expected hierarchy='none' with matryoshka_widths={widths}, got {self.hierarchy!r}, which makes groups already; leave one of "
                "them out"
            )
