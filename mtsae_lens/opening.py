"""Load a trained SAE together with the language model that it was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lens import SAE
from safetensors import SafetensorError

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.choices import FLOAT32
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import check_device, load_language_model
from mtsae_lens.data.origins import find_model
from mtsae_lens.data.precision import recorded_dtype, unfollowed_options
from mtsae_lens.data.vocabularies import check_reads
from mtsae_lens.errors import ModelError, MTSAEWarning
from mtsae_lens.evaluation.fidelity import check_fits
from mtsae_lens.interop.hub import HUB_PREFIX, load_from_hub
from mtsae_lens.sae.saved import check_sae
from mtsae_lens.sae.saved_config import check_metadata, check_saved_config
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice


def load_sae(folder: Path | str, device: str = "cpu") -> SAE[Any]:
    """Load an SAE for inference, from a folder in SAELens's layout or from the hub.

    Args:
        folder: the folder, or `hub:OWNER/NAME:SAE_ID`.
        device: device to put the SAE on.

    Returns:
        The SAE.

    Raises:
        ModelError: the folder is missing, files are damaged, SAELens does not know the architecture, or the device or the hub cannot be
            reached.
    """
    check_device(device)
    if str(folder).startswith(HUB_PREFIX):
        sae = load_from_hub(str(folder), device)
        check_metadata(sae.cfg.metadata.to_dict(), str(folder))
        return sae
    folder = Path(folder)
    for name in ("cfg.json", "sae_weights.safetensors"):
        if not (folder / name).is_file():
            raise ModelError(
                f"{folder}: expected {name} in this folder, got no such file; give the --out folder of a finished 'mtsae train'"
            )
    check_saved_config(folder / "cfg.json")
    try:
        sae = SAE.load_from_disk(folder, device=device)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(
            f"{folder}: expected an SAE, got one that cannot be loaded ({type(error).__name__}: {' '.join(str(error).split())[:200]}); copy "
            "the folder again, or train the SAE again"
        ) from error
    check_sae(folder)
    return sae


def open_sae(
    folder: Path | str,
    *,
    model: str | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    dtype: str | None = None,
    check: Callable[[SAE[Any]], None] | None = None,
) -> tuple[HookedLM, AnyHookedModel]:
    """Open an SAE in its language model, with the tokenization of training, and check that they fit each other.

    Args:
        folder: folder of the SAE, or `hub:OWNER/NAME:SAE_ID`.
        model: name of another language model; None for the one that the SAE was trained on.
        device: device to put both on.
        batch_size: contexts per forward pass.
        dtype: dtype of the language model; None for the dtype in which the SAE was trained (`metadata.model_from_pretrained_kwargs`).
        check: called with the SAE before the language model is loaded, which may take minutes; it raises if the SAE does not fit the task.

    Returns:
        The model with the SAE at its hook, and the model without the SAE (`lm.model`).

    Raises:
        ModelError: the SAE or the model cannot be loaded, or they do not fit each other (hook, width, context, tokenizer).
    """
    with warnings.catch_warnings(record=True) as caught:
        sae = load_sae(folder, device)
    if check is not None:
        check(sae)
    metadata = sae.cfg.metadata
    kwargs = metadata.model_from_pretrained_kwargs or {}
    for warning in caught:  # SAELens asks to load the model with these options, which this function does
        if "model_from_pretrained_kwargs" not in str(warning.message):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if not_followed := unfollowed_options(kwargs):
        warnings.warn(
            f"{folder}: the SAE was trained on a model that was loaded with {', '.join(not_followed)}, which is not done here; its metrics "
            "may be worse. To use it as it was trained, load the model with SAELens and make HookedLM(model, Splice(sae), cutter)",
            MTSAEWarning,
            stacklevel=2,
        )
    name = model or find_model(metadata, folder)
    if name is None:
        raise ModelError(f"{folder}: expected an SAE that records its language model, got one without; give --model")
    lm = load_language_model(name, device=device, dtype=dtype or recorded_dtype(kwargs) or FLOAT32)
    check_fits(sae, lm)
    assert lm.tokenizer is not None
    cutter = ContextCutter(lm.tokenizer, metadata.context_size or 128, prepend_bos=metadata.prepend_bos is not False)
    check_reads(lm, cutter)
    return HookedLM(lm, Splice(sae), cutter, batch_size), lm
