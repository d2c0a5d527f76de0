"""What the training of a transcoder needs beside that of an SAE: a second hook, and the scale and mean of its activations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig
from torch import Tensor

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.language_models import resolve_hook
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.ranks import current_ranks
from mtsae_lens.sae.config import ARCHITECTURE
from mtsae_lens.sae.hierarchy import readable
from mtsae_lens.sae.transcoder import TRANSCODER, MTTrainingTranscoder, MTTrainingTranscoderConfig
from mtsae_lens.splice.hook_checks import check_order_in
from mtsae_lens.training.settings import TrainSettings
from mtsae_lens.training.start import RowStatistics

_RIDGE = 0.5
"""Ridge penalty of the first prediction, in the squares of each regressor, for as many weights as rows; with fewer weights it is smaller.
The gain of a scale does not change the prediction."""


def architecture_of(settings: TrainSettings) -> str:
    """Return the architecture that settings ask for: with `hook_name_out` the MTSAE is a transcoder.

    Raises:
        ConfigError: a transcoder without the hook that it decodes, or such a hook with another architecture.
    """
    architecture, hook_name_out = settings.architecture, settings.hook_name_out
    if architecture == TRANSCODER and hook_name_out is None:
        raise ConfigError(
            f"expected the hook that architecture {TRANSCODER!r} decodes, got none; give --hook-name-out, such as blocks.3.hook_attn_out"
        )
    if hook_name_out is None:
        return architecture
    if architecture not in (ARCHITECTURE, TRANSCODER):
        raise ConfigError(
            f"expected architecture {ARCHITECTURE!r} with --hook-name-out {hook_name_out}, got {architecture!r}, which decodes what it reads; "
            "leave one of them out"
        )
    if hook_name_out == settings.hook_name:
        raise ConfigError(
            f"expected another hook than --hook-name {settings.hook_name} as --hook-name-out, got the same; leave --hook-name-out out to train "
            "an SAE"
        )
    return TRANSCODER


def hook_names_of(cfg: LanguageModelSAERunnerConfig[Any]) -> tuple[str, ...]:
    """Return the hooks that a run reads, in the order in which their activations stand side by side."""
    if isinstance(cfg.sae, MTTrainingTranscoderConfig):
        return cfg.hook_name, cfg.sae.metadata.hook_name_out  # type: ignore[return-value]
    return (cfg.hook_name,)


def widths_of(cfg: LanguageModelSAERunnerConfig[Any]) -> tuple[int, ...]:
    """Return the width of each hook that a run reads."""
    return (cfg.sae.d_in, cfg.sae.d_out) if isinstance(cfg.sae, MTTrainingTranscoderConfig) else (cfg.sae.d_in,)


def check_transcoder(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Check the settings of a run that only a transcoder has.

    Raises:
        ConfigError: the transcoder does not name the hook that it decodes, or settings that it does not take.
    """
    if not isinstance(cfg.sae, MTTrainingTranscoderConfig):
        return
    if not isinstance(cfg.sae.metadata.hook_name_out, str):
        raise ConfigError(
            "expected a transcoder that names the hook that it decodes, got none; set cfg.sae.metadata.hook_name_out = 'blocks.3.hook_attn_out'"
        )
    if cfg.hook_head_index is not None:
        raise ConfigError(f"expected no hook_head_index for a transcoder, got {cfg.hook_head_index}; leave it out")
    if not current_ranks().is_alone:
        raise ConfigError(
            f"expected one process for a transcoder, which scales two hooks by the rows of one, got {current_ranks().size} ranks; train it "
            "without torchrun"
        )


def check_output(cfg: LanguageModelSAERunnerConfig[Any], source: AnyHookedModel | ActivationCache) -> None:
    """Check that the hook that a transcoder decodes exists, has its width, and runs after the one that it reads (a cache does not say).

    Args:
        cfg: SAELens's configuration; of an SAE nothing is checked.
        source: the language model, or the cache of its activations.

    Raises:
        ConfigError: the model lacks the hook.
        DataError: the cache lacks the hook.
        ModelError: the hook has another width, or the model runs it before the one that is read.
    """
    if not isinstance(cfg.sae, MTTrainingTranscoderConfig):
        return
    name = hook_names_of(cfg)[1]
    width = source.check_hook(name) if isinstance(source, ActivationCache) else resolve_hook(source, name)
    if width != cfg.sae.d_out:
        raise ModelError(
            f"expected width d_out={cfg.sae.d_out}, that of the transcoder, got {width} at {name}; give the transcoder d_out={width}"
        )
    if not isinstance(source, ActivationCache):
        check_order_in(source, hook_names_of(cfg))


@torch.no_grad()
def start_transcoder_(
    sae: MTTrainingTranscoder,
    data: Iterator[Tensor],
    n_batches: int,
    *,
    scaling_factor: float | None,
    starts_at_mean: bool,
) -> Iterator[Tensor]:
    """Set the scale of the hook that is decoded, and the start of a new transcoder, all in place.

        s_y = sqrt(d_out) / E ||y||,        b_in = s_x E h,        b_dec = s_y E y
        W_enc = P @ W_dec.T,        P = argmin sum_t ||y_t - b_dec - z_t P||^2 + ridge sum_ti ||z_ti P_i||^2

    z is the input of the encoder. An SAE starts with the transpose of its decoder, which reads how far its input points along each feature.
    Here that is read from the best linear prediction of the other hook. A transcoder with a bias that is not zero keeps its weights.

    Args:
        sae: the transcoder.
        data: the batches that training will read.
        n_batches: how many of them to measure.
        scaling_factor: the scale s_x of the hook that is read; None if nothing is scaled.
        starts_at_mean: whether to set `b_in` and `b_dec`.

    Returns:
        All batches, those that were measured included.
    """
    cfg = sae.cfg
    first = list(islice(data, n_batches))
    read = RowStatistics.of(first, cfg.d_in)
    decoded = RowStatistics.of([batch[:, -cfg.d_out :] for batch in first], cfg.d_out)
    s_x, s_y = 1.0, 1.0
    if scaling_factor is not None:
        s_x, s_y = scaling_factor, cfg.d_out**0.5 / decoded.mean_norm
        sae.output_scale.fill_(s_y / s_x)
    if not any(bias.any() for bias in (sae.b_in, sae.b_enc, sae.b_dec)):
        if starts_at_mean:
            sae.b_in.copy_(s_x * read.mean)
            sae.b_dec.copy_(s_y * decoded.mean)
        _start_encoder_(sae, [s_x * batch.to(sae.device) for batch in first])
    return chain(first, data)


def _start_encoder_(sae: MTTrainingTranscoder, batches: Sequence[Tensor]) -> None:
    """Set `W_enc` to the best linear prediction of the hook that is decoded, read along the rows of the decoder."""
    width = sae.W_enc.shape[0]
    gram, cross, n_rows = torch.zeros(width, width), torch.zeros(width, sae.cfg.d_out), 0
    for batch in batches:
        z, target = sae.read_encoder(batch)
        z, target = z.cpu().float(), (target - sae.b_dec).cpu().float()
        gram += z.T @ z
        cross += z.T @ target
        n_rows += len(z)
    ridge = _RIDGE * width / max(n_rows, 1) * gram.diagonal().clamp(min=1e-6 * float(gram.diagonal().max()) + 1e-12)
    weights = torch.linalg.solve(gram + ridge.diag(), cross) @ sae.W_dec.cpu().float().T
    if sae.cfg.hierarchy == "nested":
        weights *= readable(sae.cfg.d_sae, len(sae.cfg.dilations)).repeat_interleave(sae.cfg.d_in, dim=0)
    sae.W_enc.copy_(weights)
