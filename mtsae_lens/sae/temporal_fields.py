"""The settings of the temporal front end and of the memory, which training and inference share, and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.activation_fields import ActivationFields
from mtsae_lens.sae.field_types import check_one_of
from mtsae_lens.sae.temporal import PADDINGS, SCALE_NORMS, Padding, ScaleNorm

Hierarchy = Literal["none", "nested"]


Memory = Literal["none", "predictive"]


DILATIONS = (0, 1, 2, 4, 8)


@dataclass(kw_only=True)
class TemporalFields(ActivationFields):
    """The settings of an MTSAE that training and inference share."""

    dilations: tuple[int, ...] = DILATIONS
    """Dilation of each scale, in positions: the paper's 1, 2, 4 and 8, and 0 for a scale that reads the current token alone. With
    `memory="predictive"` the default is (0,)."""

    memory: Memory = "none"
    """`predictive`: the decoder predicts each position from its own past reconstructions, and the features code only the difference
    (`mtsae_lens.sae.memory`). The encoder then reads the current token alone. `none`: the decoder reads one position."""

    memory_lags: tuple[int, ...] = (1, 2, 4, 8)
    """How many positions back the prediction reads, with `memory="predictive"`."""

    memory_decays: tuple[float, ...] = (0.5, 0.8, 0.95)
    """Running averages of the past that the prediction reads: the share that each keeps at every position."""

    memory_rank: int = 64
    """Rank of the prediction, `d_in` at most."""

    kernel_size: int = 3
    """Number of taps of each scale."""

    learn_dilations: bool = False
    """Learn the dilations in training, starting from those given (`mtsae_lens.sae.spacing`). Needs causal padding."""

    max_lag: int | None = None
    """The farthest position back that a tap may read with `learn_dilations`; None for the whole context."""

    hierarchy: Hierarchy = "none"
    """`nested`: one group of features for each scale. The first group reads the first scale alone, the last reads all scales
    (`mtsae_lens.sae.hierarchy`). `none`: every feature reads every scale."""

    padding: Padding = "causal"
    """`causal`: taps read the current and earlier tokens, so nothing leaks from later tokens. `circular`: taps are centered and wrap around
    the context, as in the paper. `zero`: taps are centered and read nothing beyond the ends of the context."""

    scale_norm: ScaleNorm = "rescaled_layer_norm"
    """`rescaled_layer_norm`: layer norm, then scaled and shifted to the mean and standard deviation of the token's own activations.
    `layer_norm`: as in the paper. `none`: no norm."""

    context_gain: float = 0.1
    """Factor on every scale but the first. Adam moves every encoder weight by about the same amount, and with the default dilations four
    times as many weights read the context as read the token itself; a gain below 1 reduces the noise they add. The paper has 1."""

    context_rank: int | None = None
    """Rank of the part of the encoder that reads the context, which is all scales but the first. With rank r this part is a product `U V` of
    matrices `(n_context_scales * d_in, r)` and `(r, d_sae)`, and a feature costs r multiplications instead of `n_context_scales * d_in`. None
    gives full rank."""

    context_size: int = 128
    """Number of positions in a context. A 2-D input is read as contexts of this length, laid end to end."""

    skip_first_position: bool = True
    """Treat position 0 of every context as a wall: in most language models it is an outlier, BOS or not. `SequenceSAETrainingRunner`,
    `HookedLM` and the export mask it for every SAE, so False is for an SAE that is trained on your own contexts
    (`mtsae_lens.training.fit`) and used on its own."""

    @property
    def n_memory_reads(self) -> int:
        """Number of vectors that the prediction reads."""
        return len(self.memory_lags) + len(self.memory_decays)

    def _validate_memory(self) -> None:
        check_one_of("memory", self.memory, get_args(Memory))
        self.memory_lags, self.memory_decays = tuple(self.memory_lags), tuple(self.memory_decays)
        if self.memory == "none":
            return
        if self.dilations != (0,) or self.hierarchy != "none" or self.learn_dilations:
            raise ConfigError(
                f"expected an encoder that reads the token alone for memory='predictive' (dilations=(0,), hierarchy='none', "
                f"learn_dilations=False), got dilations={self.dilations}, hierarchy={self.hierarchy!r}, learn_dilations={self.learn_dilations}"
                "; leave these settings out"
            )
        if not all(type(lag) is int and 0 < lag < self.context_size for lag in self.memory_lags) or len(
            set(self.memory_lags)
        ) != len(self.memory_lags):
            raise ConfigError(
                f"expected memory_lags of different whole numbers from 1 to {self.context_size - 1} (context_size - 1), got "
                f"{self.memory_lags}; give such as (1, 2, 4, 8)"
            )
        if not all(0 < decay < 1 for decay in self.memory_decays) or not self.n_memory_reads:
            raise ConfigError(
                f"expected memory_decays between 0 and 1, and at least one lag or decay, got memory_lags={self.memory_lags} and "
                f"memory_decays={self.memory_decays}; give such as memory_decays=(0.5, 0.9)"
            )
        if self.memory_rank < 1:
            raise ConfigError(f"expected memory_rank of at least 1, got {self.memory_rank}; raise it")

    def _validate_temporal_fields(self, d_in: int, d_sae: int, normalize_activations: str) -> None:
        if self.memory == "predictive" and tuple(self.dilations) == DILATIONS:
            self.dilations = (0,)
        if not isinstance(self.dilations, tuple | list) or not all(type(d) is int and d >= 0 for d in self.dilations or (-1,)):
            raise ConfigError(
                f"expected dilations as whole numbers, 0 for the token alone, got {self.dilations}; give such as (0, 1, 2, 4, 8)"
            )
        self.dilations = tuple(self.dilations)  # JSON has only lists
        if len(set(self.dilations)) != len(self.dilations):
            raise ConfigError(f"expected different dilations, got {self.dilations}; give each once")
        check_one_of("padding", self.padding, PADDINGS)
        check_one_of("hierarchy", self.hierarchy, get_args(Hierarchy))
        check_one_of("scale_norm", self.scale_norm, SCALE_NORMS)
        if self.context_gain <= 0:
            raise ConfigError(f"expected a positive context_gain, got {self.context_gain}; raise it")
        self.check_activation()
        if self.kernel_size == 1 and len(self.dilations) > 1:
            raise ConfigError(
                f"expected one dilation for kernel_size=1, which reads no other position, got {self.dilations}; give one dilation"
            )
        if self.kernel_size < 1 or (self.padding != "causal" and self.kernel_size % 2 == 0):
            raise ConfigError(
                f"expected a positive kernel_size, odd unless padding is 'causal', got {self.kernel_size}; change it"
            )
        if self.hierarchy == "nested" and not 1 < len(self.dilations) <= d_sae:
            raise ConfigError(
                f"expected at least two dilations, and a feature for each, for hierarchy='nested', got {self.dilations} and d_sae={d_sae}; "
                "give more"
            )
        self._validate_learned_dilations()
        self._validate_context_rank(d_in)
        self._validate_memory()
        if self.context_size < 2:
            raise ConfigError(f"expected context_size of at least 2 positions, got {self.context_size}; raise it")
        if normalize_activations not in ("none", "expected_average_only_in"):
            raise ConfigError(
                "expected normalize_activations 'expected_average_only_in' or 'none' for an MTSAE, got "
                f"{normalize_activations!r} (whitening cannot be folded into depth-wise taps, and the norm of a token is undefined at a "
                "wall); give one of them"
            )

    def _validate_context_rank(self, d_in: int) -> None:
        rank, n_context_scales = self.context_rank, len(self.dilations) - 1
        if rank is None:
            return
        if not n_context_scales:
            raise ConfigError(
                f"expected at least two dilations with context_rank={rank}, got {self.dilations}, which read no context; leave context_rank out"
            )
        full = d_in * n_context_scales
        if not 1 <= rank < full:
            raise ConfigError(
                f"expected context_rank from 1 to {full - 1}, below the width of the context ({n_context_scales} scales of d_in={d_in}), got "
                f"{rank}; leave it out for full rank"
            )
        if self.hierarchy != "none":
            raise ConfigError(
                f"expected hierarchy='none' with context_rank={rank}, which mixes the scales of the context, got {self.hierarchy!r}; leave one "
                "of them out"
            )

    def _validate_learned_dilations(self) -> None:
        if not self.learn_dilations:
            if self.max_lag is not None:
                raise ConfigError(
                    f"expected learn_dilations=True with max_lag={self.max_lag}, got False; add learn_dilations=True, or leave max_lag out"
                )
            return
        if self.padding != "causal" or self.kernel_size == 1:
            raise ConfigError(
                "expected padding='causal' and a kernel_size of at least 2 for learn_dilations=True, which moves taps over the past, got "
                f"{self.padding!r} and {self.kernel_size}; change them"
            )
        if self.max_lag is None:
            self.max_lag = self.context_size - 1
        if type(self.max_lag) is not int or not 2 <= self.max_lag < self.context_size:
            raise ConfigError(
                f"expected max_lag from 2 to context_size - 1 ({self.context_size - 1}), got {self.max_lag}; change it"
            )
        if not 0 < max(self.dilations) <= self.max_lag:
            raise ConfigError(
                f"expected a dilation above 0, and none beyond max_lag={self.max_lag}, for learn_dilations=True, got {self.dilations}; "
                "change them"
            )
