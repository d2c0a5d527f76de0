"""Save what a run leaves: what the SAE's configuration says of its making, the folder of the SAE, and its copy on Weights & Biases."""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sae_lens import LanguageModelSAERunnerConfig, TrainingSAE
from safetensors.torch import save_file
from torch import Tensor

from mtsae_lens.data.activation_cache import ActivationCache
from mtsae_lens.data.origins import DIGESTS, record_origins, share_metadata
from mtsae_lens.files import sync_folder, write_json, write_whole_folder
from mtsae_lens.machine_paths import shorten
from mtsae_lens.sae.saved import seal_sae
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.training.options import TrainerOptions
from mtsae_lens.upstream import RUNNER_CFG_FILENAME, SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME, SPARSITY_FILENAME

_RECORDED_FIELDS = (
    "hook_name model_class_name hook_head_index context_size seqpos_slice prepend_bos exclude_special_tokens sequence_separator_token "
    "disable_concat_sequences"
).split()
"""Fields of the run that SAELens records in the metadata of an SAE."""


def record_run(
    cfg: LanguageModelSAERunnerConfig[Any],
    sae: TrainingSAE[Any],
    *,
    cache: ActivationCache | None,
    half_precision: str | None,
) -> None:
    """Write into the metadata of an SAE from which model and text it is trained, and how they are read.

    Args:
        cfg: SAELens's configuration.
        sae: the SAE; its metadata are changed.
        cache: the cache that is read, or None.
        half_precision: the name of the language model's dtype if that is half precision, else None.
    """
    metadata = sae.cfg.metadata
    for name in _RECORDED_FIELDS:
        setattr(metadata, name, getattr(cfg, name))
    record_origins(metadata, cfg.model_name, cfg.dataset_path)
    if cache is not None:  # the files themselves may be on another machine
        setattr(metadata, DIGESTS, cache.contents.local_contents)
    if half_precision is not None:  # as SAELens records it, and loads the model again
        metadata.model_from_pretrained_kwargs = {"dtype": half_precision}


def save_run(
    cfg: LanguageModelSAERunnerConfig[Any],
    sae: TrainingSAE[Any],
    options: TrainerOptions,
    log_feature_sparsity: Tensor,
    out: Path,
) -> None:
    """Write the SAE for inference into the output folder, beside the log and the checkpoints.

    Args:
        cfg: SAELens's configuration.
        sae: the trained SAE.
        options: the settings of the trainer.
        log_feature_sparsity: logarithm of the share of tokens on which each feature fires, `(d_sae,)`, as SAELens saves it.
        out: the output folder.
    """
    with write_whole_folder(out / ".sae") as folder:
        sae.save_inference_model(folder)
        if not isinstance(sae, TemporalEncoder):  # which has done so itself
            seal_sae(folder)
        save_file({"sparsity": log_feature_sparsity}, folder / SPARSITY_FILENAME)
        settings = asdict(options) | {"run_dir": str(options.run_dir)}
        write_json(folder / RUNNER_CFG_FILENAME, cfg.to_dict() | {"options": settings})
    # the weights before the config: without a config there is no SAE
    for file in sorted((out / ".sae").iterdir(), reverse=True):
        file.replace(out / file.name)
    (out / ".sae").rmdir()
    sync_folder(out)


def send_sae_to_wandb(cfg: LanguageModelSAERunnerConfig[Any], sae: TrainingSAE[Any], out: Path) -> None:
    """Send a saved SAE to Weights & Biases, with no path of this machine in its settings.

    Args:
        cfg: SAELens's configuration.
        sae: the SAE.
        out: the folder that `save_run` has written to.
    """
    public = copy.copy(cfg)
    for name, value in vars(cfg).items():
        if isinstance(value, str):
            setattr(public, name, shorten(value))
    saved = json.loads((out / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="wandb_") as folder:
        shared = Path(folder) / SAE_CFG_FILENAME
        write_json(shared, saved | {"metadata": share_metadata(saved["metadata"])})
        paths = (out / SAE_WEIGHTS_FILENAME, shared, out / SPARSITY_FILENAME)
        # SAELens reads the settings and the name of the SAE from what it calls a trainer
        cfg.logger.log(SimpleNamespace(cfg=public, sae=sae), *paths, wandb_aliases=["final_model"])
