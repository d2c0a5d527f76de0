"""Write a Hugging Face model folder with an edit attached by a hook, and a loader that does not need this package."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from mtsae_lens.checksums import write_checksums
from mtsae_lens.data.conversion import weights_in_float32
from mtsae_lens.data.origins import share_metadata
from mtsae_lens.data.precision import HALF_PRECISION, disagreement, log_probs_of, rounding_disagreement
from mtsae_lens.errors import ModelError
from mtsae_lens.export import standalone
from mtsae_lens.export.base_models import hooked_layer, open_base
from mtsae_lens.export.card import model_card
from mtsae_lens.export.reduction import reduce_encoder
from mtsae_lens.files import write_json, write_text, write_whole_folder
from mtsae_lens.splice.edit_files import save_edit, weights_digest
from mtsae_lens.splice.edit_interface import SUPPRESSION, Edit
from mtsae_lens.splice.error_edits import parts_of
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.serialization import Serializable
from mtsae_lens.upstream import SAE_CFG_FILENAME

LOADER = "edited_model"
"""Name under which the package `mtsae_lens.export.standalone` is copied into an exported model."""

CHECKED_FILES = ("**/*.safetensors", "**/*.json")
"""Files of an exported model whose SHA-256 digests are recorded: all files that its outputs depend on."""

_LOADING = """The loader needs torch, transformers and safetensors. Run this inside this folder, or with the folder on the Python path:

```python
from edited_model import load_edited

model = load_edited(".")  # a transformers model; generate() works, with the KV cache or without
```

`AutoModelForCausalLM.from_pretrained` on this folder gives the model **without** the edit."""

_FILES = """`model.safetensors`, config and tokenizer: the base model, unchanged. `edit.json`: the edit. `hook/`: the encoder that it reads,
reduced to plain tensors. `sae/`: the whole SAE as SAELens reads it. `edited_model/`: the loader, a Python
package. `SHA256SUMS`: the digests that the loader checks; `sha256sum --check SHA256SUMS` checks them too."""


def export_hooked(folder: Path, lm: HookedLM, edit: Edit, base: str, provenance: dict[str, Any] | None = None) -> float:
    """Write a folder with the base model, the SAE, the edit and a stand-alone loader, then load it and compare its logits.

    Args:
        folder: the folder to write; an existing one is replaced.
        lm: the model with its SAE.
        edit: an edit with a gate, both of kinds that the stand-alone loader knows.
        base: the name under which `load_language_model` opened `lm.model`.
        provenance: where the edit came from.

    Returns:
        The largest difference in log-probability, on a few random tokens, between what was written and `lm` with the edit, both in the
        dtype of `lm.model`.

    Raises:
        ModelError: the hook, SAE, edit, gate or model family cannot be exported, or the exported model gives different logits.
    """
    layer, side = hooked_layer(lm.splice.hook_name)
    for part in (edit, *parts_of(edit)):
        _check_loader_knows("edit", part, standalone.EDITS)
    _check_loader_knows("gate", edit.gate, standalone.GATES)
    tensors, settings = reduce_encoder(lm.sae)
    config = {
        "hook_name": lm.splice.hook_name,
        "layer": layer,
        "side": side,
        "weights_sha256": weights_digest(lm.sae),
        "d_vocab": lm.model.cfg.d_vocab,
        "special_token_ids": lm.cutter.special_token_ids.tolist(),
        **settings,
    }
    with write_whole_folder(folder) as partial:
        open_base(base, dtype="auto").save(partial)
        _save_sae(lm, partial / "sae")
        save_edit(partial / standalone.EDIT_FILE, edit, lm, provenance)
        (partial / standalone.HOOK_FOLDER).mkdir()
        save_file(tensors, partial / standalone.HOOK_FOLDER / "weights.safetensors")
        write_json(partial / standalone.HOOK_FOLDER / "config.json", config)
        _copy_loader(partial / LOADER)
        sections = {"How to load it": _LOADING, "What the edit is": SUPPRESSION, "Files": _FILES}
        card = model_card("A language model with an edit attached", base, lm.splice.hook_name, edit, sections, provenance)
        write_text(partial / "README.md", card)
        write_checksums(partial, CHECKED_FILES)
        difference = _check(partial, lm, edit)
    return difference


def _check_loader_knows(part: str, value: Serializable, known: Mapping[str, Any]) -> None:
    if value.kind not in known:
        raise ModelError(
            f"expected a {part} that the stand-alone loader knows ({', '.join(known)}), got a {type(value).__name__}; export another {part}"
        )


def _copy_loader(folder: Path) -> None:
    folder.mkdir()
    for module in sorted(Path(standalone.__file__).parent.glob("*.py")):
        write_text(folder / module.name, module.read_text(encoding="utf-8"))


def _save_sae(lm: HookedLM, folder: Path) -> None:
    """Save the SAE without the paths of this machine and the digests of its files."""
    lm.sae.save_model(folder)
    cfg = json.loads((folder / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
    write_json(folder / SAE_CFG_FILENAME, cfg | {"metadata": share_metadata(cfg["metadata"])})


def _check(folder: Path, lm: HookedLM, edit: Edit) -> float:
    generator = torch.Generator().manual_seed(0)
    size = (2, min(64, lm.model.cfg.n_ctx))
    tokens = torch.randint(lm.model.cfg.d_vocab, size, generator=generator).to(lm.model.cfg.device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).* is another model")  # what follows compares them more closely
        model = standalone.load_edited(folder, allow_other_model=True, dtype=lm.model.cfg.dtype).to(lm.model.cfg.device)
    if lm.model.cfg.dtype in HALF_PRECISION:
        got, expected = _both_logits_from_one_h(model, lm, edit, tokens)
        difference = rounding_disagreement(expected, _exact_logits(model, lm, tokens)[..., : got.shape[-1]], [got])
    else:
        got, expected = _both_logits(model, lm, edit, tokens)
        difference = disagreement(got, expected)
    if difference is not None:
        raise ModelError(
            f"expected the exported model to give the logits of the edited one, got others ({difference}); report this as a bug"
        )
    return _largest_difference(got, expected)


@torch.no_grad()
def _both_logits_from_one_h(model: Any, lm: HookedLM, edit: Edit, tokens: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
    """Compute both logits from the activations of `lm` at both hooks, and check that the edits agree in all but the last bit.

    In half precision, two implementations of a model round differently, so a feature near its threshold may fire in only one of them.
    """
    h, eps = lm.activations(tokens), torch.finfo(lm.model.cfg.dtype).eps
    with _given_activations(model, lm.splice.hook_name, h) as met:
        got, expected = _both_logits(model, lm, edit, tokens)
    edited = lm.splice.edited(h, edit, lm.masked(tokens))
    if not torch.allclose(met[-1].float(), edited.float(), rtol=eps, atol=1e-5 * h.abs().max().item()):
        raise ModelError(
            f"expected the exported edit to give the same activations, got a difference of {(met[-1] - edited).abs().max().item():.3g}; "
            "report this as a bug"
        )
    return got, expected


@torch.no_grad()
def _exact_logits(model: Any, lm: HookedLM, tokens: Int[Tensor, "batch pos"]) -> Tensor:
    """Compute the exported model's logits from the activations of `lm` at its hook, in float32, from its half-precision weights."""
    h = lm.activations(tokens).float()
    with weights_in_float32(model), _given_activations(model, lm.splice.hook_name, h):
        return model(tokens).logits


@contextmanager
def _given_activations(model: Any, hook_name: str, h: Float[Tensor, "batch pos d_model"]) -> Iterator[list[Tensor]]:
    """Replace the activations that an exported edit reads by `h` within this context, and collect the edited activations in the list."""
    number, side = hooked_layer(hook_name)
    layer, met = standalone.decoder_layers(model)[number], list[Tensor]()

    def read(_: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return ((h, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": h})

    def written(_: Any, args: Any, output: Any) -> Any:
        return (h, *output[1:]) if isinstance(output, tuple) else h

    def note_read(_: Any, args: Any, kwargs: Any) -> None:
        met.append(args[0] if args else kwargs["hidden_states"])

    def note_written(_: Any, args: Any, output: Any) -> None:
        met.append(output[0] if isinstance(output, tuple) else output)

    if side == "pre":  # the hook of the edit runs between these two
        handles = [
            layer.register_forward_pre_hook(read, with_kwargs=True, prepend=True),
            layer.register_forward_pre_hook(note_read, with_kwargs=True),
        ]
    else:
        handles = [layer.register_forward_hook(written, prepend=True), layer.register_forward_hook(note_written)]
    try:
        yield met
    finally:
        for handle in handles:
            handle.remove()


def _largest_difference(got: Float[Tensor, "*n d_vocab"], expected: Float[Tensor, "*n d_vocab"]) -> float:
    return (log_probs_of(got) - log_probs_of(expected)).abs().max().item()


@torch.no_grad()
def _both_logits(model: Any, lm: HookedLM, edit: Edit, tokens: Int[Tensor, "batch pos"]) -> tuple[Tensor, Tensor]:
    edited = lm.splice.edited(lm.activations(tokens), edit, lm.masked(tokens))
    expected = lm.logits_from(tokens, edited)
    return model(tokens).logits[..., : expected.shape[-1]], expected
