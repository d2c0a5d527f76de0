"""Name the settings, the model and the text that a checkpoint was made with, so that a run is not resumed with others."""

from __future__ import annotations

import json
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig

from mtsae_lens.data.file_stamps import model_stamps, text_stamps
from mtsae_lens.data.massive import MASSIVE
from mtsae_lens.sae.config import MTTrainingSAEConfig
from mtsae_lens.training.options import TrainerOptions

_RUNNER_FIELDS = (
    "model_name hook_name dataset_path context_size training_tokens train_batch_size_tokens lr lr_scheduler_name lr_warm_up_steps "
    "lr_decay_steps lr_end n_restart_cycles adam_beta1 adam_beta2 seed prepend_bos disable_concat_sequences dead_feature_window "
    "feature_sampling_window n_batches_in_buffer store_batch_size_prompts n_batches_for_norm_estimate hook_head_index autocast "
    "autocast_lm"
).split()
"""Fields of SAELens's configuration on which the weights of the run depend."""

_WITHOUT_EFFECT = frozenset(("metadata", "device", "skip_first_position", "training_step"))
"""Fields of the SAE that change nothing that is trained: the stream masks position 0 in any case, and how a step is computed is a matter
of rounding."""


def make_fingerprint(
    cfg: LanguageModelSAERunnerConfig[Any],
    options: TrainerOptions,
    *,
    text_seed: int,
    half_precision: str | None,
    cache_digest: str | None,
    reads_dataset: bool,
) -> dict[str, Any]:
    """Collect what must be the same when a run is resumed.

    A setting that is newer than some checkpoints is None where it has the value that those checkpoints were made with, or begun with.

    Args:
        cfg: SAELens's configuration.
        options: the settings of the trainer.
        text_seed: the seed of the order of the text.
        half_precision: the name of the language model's dtype if that is half precision, else None.
        cache_digest: the digest of the cache that is read; None for activations of a live language model.
        reads_dataset: whether the text is that of `cfg.dataset_path`, not one that was handed over in memory.

    Returns:
        The settings by name, as JSON. Those of the SAE have the prefix `sae.`.
    """
    is_live = cache_digest is None
    values = {name: getattr(cfg, name) for name in _RUNNER_FIELDS} | {
        "weight_decay": options.weight_decay,
        "b_dec_init": None if options.b_dec_init == "mean" else options.b_dec_init,
        "frozen": options.frozen,
        "max_norm_multiple": None if options.max_norm_multiple == MASSIVE else str(options.max_norm_multiple),
        "model_dtype": half_precision,
        "text_seed": None if text_seed == cfg.seed else text_seed,
        "cache": cache_digest,
        "hook_name_out": cfg.sae.metadata.hook_name_out,
        "model_contents": list(model_stamps(cfg.model_name).values()) if is_live else [],
        "dataset_contents": list(text_stamps(cfg.dataset_path).values()) if is_live and reads_dataset else [],
    }
    without_effect = _WITHOUT_EFFECT
    if isinstance(cfg.sae, MTTrainingSAEConfig):  # a checkpoint may be older than the settings of another activation
        without_effect |= cfg.sae.unused_activation_fields
    sae = {f"sae.{name}": value for name, value in cfg.sae.to_dict().items() if name not in without_effect}
    sae = {name: None if name == "sae.matryoshka_widths" and not value else value for name, value in sae.items()}
    fingerprint: dict[str, Any] = json.loads(json.dumps(values | sae))
    return fingerprint
