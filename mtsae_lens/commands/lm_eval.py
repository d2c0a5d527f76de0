"""Run lm-evaluation-harness with the model `mtsae`: a language model with a saved edit at its hook.

The harness finds models by name in one table and has no way for other packages to add to it, so its command `lm_eval` does not know `mtsae`.
`mtsae-lm-eval` adds the model to that table and then runs the harness's command, with all its options.
"""

from __future__ import annotations

import importlib.util
import sys
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mtsae_lens.errors import ConfigError, MTSAEError, MTSAEWarning
from mtsae_lens.interop.lm_eval import EditedRequests
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edit_files import load_edit

MODEL_NAME = "mtsae"
NO_EDIT = "off"


def check_installed() -> None:
    """Check that lm-evaluation-harness is installed.

    Raises:
        ConfigError: it is not.
    """
    if "lm_eval" not in sys.modules and importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("expected lm-evaluation-harness, got no package lm_eval; run: pip install 'mtsae-lens[lm-eval]'")


def open_requests(
    sae: str,
    edit: str,
    model: str | None = None,
    *,
    dtype: str | None = None,
    device: str | None = None,
    batch_size: int | str | None = None,
    allow_other_model: bool = False,
) -> dict[str, Any]:
    """Open a saved edit in its language model.

    Args:
        sae: folder of the SAE, or `hub:OWNER/NAME:SAE_ID`.
        edit: an `edit.json`, or `off` for the model without an edit.
        model: name or folder of the language model; None for the one that the SAE was trained on.
        dtype: dtype of the language model; None for the one in which the SAE was trained.
        device: device to run on; None for the CPU, which also replaces a CUDA device on a machine without one.
        batch_size: largest number of requests in a forward pass; None and `auto` for 16. A large vocabulary or SAE lowers it for long
            requests.
        allow_other_model: apply the edit although it was made on another language model.

    Returns:
        The arguments `lm` and `edit` of `EditedRequests`.

    Raises:
        ConfigError: `batch_size` is not a positive number.
        MTSAEError: the SAE, the edit or the model cannot be opened, or they do not belong together.
    """
    if batch_size in (None, "auto"):
        batch_size = 16
    if not str(batch_size).isdecimal() or int(batch_size) < 1:  # type: ignore[arg-type]
        raise ConfigError(f"expected a number of requests, or auto, as batch_size, got {batch_size!r}; give --batch_size 16")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        device = "cpu"  # the harness asks for cuda:0 where no --device is given, and its own models fall back like this
        warnings.warn("no CUDA device was found; running on the CPU", MTSAEWarning, stacklevel=2)
    lm, _ = open_sae(sae, model=model, device=device or "cpu", batch_size=int(batch_size), dtype=dtype)  # type: ignore[arg-type]
    loaded = None if edit == NO_EDIT else load_edit(Path(edit), lm, allow_other_model=allow_other_model)
    return {"lm": lm, "edit": loaded}


@cache
def model_class() -> type[Any]:
    """Return the harness's model class for edits, and register it as `mtsae`.

    Its arguments are those of `open_requests`, and `max_length`, `max_gen_toks` and `add_bos_token` of `EditedRequests`.

    Raises:
        ConfigError: lm-evaluation-harness is not installed.
    """
    check_installed()
    from lm_eval.api.model import TemplateLM  # noqa: PLC0415
    from lm_eval.api.registry import register_model  # noqa: PLC0415

    @register_model(MODEL_NAME)
    class EditedModel(EditedRequests, TemplateLM):
        """A language model with a saved edit at its hook."""

        def __init__(
            self,
            sae: str | None = None,
            edit: str | None = None,
            *,
            max_length: int | None = None,
            max_gen_toks: int = 256,
            add_bos_token: bool | None = None,
            max_batch_size: int | None = None,  # the harness always gives it, for batch_size=auto
            **options: Any,
        ) -> None:
            if sae is None or edit is None:
                raise ConfigError(
                    "expected an SAE and an edit in --model_args, got one of them or neither; give "
                    f"--model_args sae=runs/sae,edit=runs/unlearn/edit.json (edit={NO_EDIT} for the model without an edit)"
                )
            known = set(open_requests.__kwdefaults__ or ()) | {"model"}
            if unknown := sorted(set(options) - known):
                raise ConfigError(f"expected {', '.join(sorted(known))} in --model_args, got {unknown[0]!r}; leave it out")
            opened = open_requests(str(sae), str(edit), **options)  # the harness turns words such as 7 into numbers
            super().__init__(**opened, max_length=max_length, max_gen_toks=max_gen_toks, add_bos_token=add_bos_token)

    return EditedModel


def main() -> None:
    """Run the command of lm-evaluation-harness with the words of the command line. A user's error is printed as one line."""
    try:
        model_class()
        from lm_eval.__main__ import cli_evaluate  # noqa: PLC0415

        cli_evaluate()
    except MTSAEError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
