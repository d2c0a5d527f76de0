"""Write the README of a published SAE: what it is, its metrics, how to load it, and its limits."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from sae_lens import SAE, TranscoderConfig

from mtsae_lens.data.origins import display_name
from mtsae_lens.data.precision import recorded_dtype
from mtsae_lens.markdown import code_span, escape_markdown
from mtsae_lens.sae.activation_interface import ACTIVATIONS
from mtsae_lens.sae.config import MTSAEConfig

EQUATIONS = """\
    x    = h - b_dec, zero at walls (special tokens, position 0)
    z_k  = g_k norm(conv_{r_k}(x))                    one vector per scale k and position; dilation r = 0 is the token alone
           g = 1 for the first scale, GAIN for the others
    e    = ACTIVATION([z_1; ...; z_K] @ W_enc + b_enc)
    h'   = e @ W_dec + b_dec"""

TEMPORAL_LIMITS = """\
- The encoder reads earlier positions. Give it whole contexts, `(batch, pos, d_in)`, or concatenated rows, `{context_size}` per context. \
Single positions, and numbers of rows that are not a multiple of the context size, are refused. Shuffled rows are not detected and give wrong \
features. In training they are refused at the first batch if contexts begin with BOS, and not detected otherwise.
- Set the rows of special tokens to zero before encoding, as in training. `mtsae_lens.splice.hooked_lm.HookedLM` does this.
- `W_enc` does not have the shape of `W_dec.T`, because it reads several scales: metrics that compare it with `W_dec` are not defined.
- Without `import mtsae_lens`, SAELens does not know the architecture."""

POINTWISE_LIMITS = "- The features describe the model and the kind of text that the SAE was trained on."


def write_sae_card(
    sae: SAE[Any],
    repo_id: str,
    sae_id: str,
    metrics: Mapping[str, float] | None = None,
    meanings: Mapping[str, str] | None = None,
    measured_on: str | None = None,
) -> str:
    """Write the README of an SAE in Markdown.

    Args:
        sae: the SAE.
        repo_id: repository on the hub, `OWNER/NAME`.
        sae_id: folder of the SAE in the repository.
        metrics: metrics to show, by name; None shows none.
        meanings: what each metric means, by name.
        measured_on: the text on which they were measured.

    Returns:
        The text of the file.
    """
    cfg, metadata = sae.cfg, sae.cfg.metadata
    temporal = isinstance(cfg, MTSAEConfig)
    kind = "Multi-Scale Temporal SAE (MTSAE)" if temporal else f"{cfg.architecture()} SAE"
    if isinstance(cfg, TranscoderConfig):
        kind = "Multi-Scale Temporal Transcoder" if temporal else f"{cfg.architecture()} transcoder"
    facts = {
        "architecture": cfg.architecture(),
        "language model": _shown(metadata.model_name),
        "dtype of the language model, if not float32": recorded_dtype(metadata.model_from_pretrained_kwargs),
        "hook": metadata.hook_name,
        "hook that is decoded": metadata.hook_name_out if isinstance(cfg, TranscoderConfig) else None,
        "d_in": cfg.d_in,
        "d_out": cfg.d_out if isinstance(cfg, TranscoderConfig) else None,
        "features (d_sae)": cfg.d_sae,
        "trained on": _shown(metadata.dataset_path),
        "context size": metadata.context_size,
        "dtype": cfg.dtype,
    }
    if isinstance(cfg, MTSAEConfig):
        facts["dilations"] = ", ".join(map(str, cfg.dilations))
        facts["kernel size, padding, norm"] = f"{cfg.kernel_size}, {cfg.padding}, {cfg.scale_norm}"
        facts["rank of the context"] = cfg.context_rank
        facts["active features per position"] = ACTIVATIONS[cfg.activation].describe(cfg)
    parts = [
        f"---\nlibrary_name: saelens\ntags: [sparse-autoencoder, interpretability, {cfg.architecture()}]\n---",
        f"# {kind} on {escape_markdown(str(metadata.hook_name))}",
        _table(("what", "value"), [(name, value) for name, value in facts.items() if value is not None]),
    ]
    if isinstance(cfg, MTSAEConfig):
        parts += ["## What it computes", _equations(cfg)]
    if metrics:
        rows = [(name, f"{value:.4g}", (meanings or {}).get(name, "")) for name, value in metrics.items()]
        where = f"Measured on held-out text of {escape_markdown(measured_on)}.\n\n" if measured_on else ""
        parts += ["## Metrics", where + _table(("metric", "value", "meaning"), rows)]
    limits = TEMPORAL_LIMITS.format(context_size=cfg.context_size) if isinstance(cfg, MTSAEConfig) else POINTWISE_LIMITS
    parts += ["## How to load it", _loading(repo_id, sae_id, temporal), "## Limits", limits]
    return "\n\n".join(parts) + "\n"


def _shown(name: str | None) -> str | None:
    return None if name is None else display_name(name)


def _equations(cfg: MTSAEConfig) -> str:
    equations = (
        EQUATIONS if cfg.context_rank is None else EQUATIONS.replace("z_1; ...; z_K]", "z_1; [z_2; ...; z_K] @ W_context]")
    )
    if isinstance(cfg, TranscoderConfig):
        equations = equations.replace("h - b_dec", "h - b_in").replace("h'   =", "y'   =")
    return equations.replace("ACTIVATION", cfg.activation).replace("GAIN", f"{cfg.context_gain:g}")


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(escape_markdown(str(cell)) for cell in line) + " |" for line in lines)


def _loading(repo_id: str, sae_id: str, temporal: bool) -> str:
    register = "import mtsae_lens  # registers the architecture\n" if temporal else ""
    code = f"{register}from sae_lens import SAE\n\nsae = SAE.from_pretrained({json.dumps(repo_id)}, {json.dumps(sae_id)})"
    command = f"mtsae evaluate {shlex.quote(f'hub:{repo_id}:{sae_id}')}"
    return f"```python\n{code}\n```\n\nor in any command of mtsae-lens: {code_span(command)}."
