"""A Hugging Face model with an edit of sparse features attached: needs torch, transformers and safetensors, nothing else.

    model = load_edited("this folder")      # an ordinary transformers model; generate() works, with the KV cache or without
    remove = attach(model, "this folder")   # the same on a model that is loaded already; remove() takes the edit away again

At one decoder layer the residual stream h becomes h + delta wherever the gate is open, with

    x     = h - b_in, zero at walls (special tokens, padding, the first token)
    z_k   = norm(sum_o filters[k, o] * x[t + o])         one vector per time scale k; nothing is read at or across a wall
    e     = act([z_1; ...; z_K] @ W_enc + b_enc)         features, none at walls
    delta = (e' - e) @ W_dec                             e' the edited features; or a projection of h itself

The edit is suppression, not deletion: without the hook the model is what it was.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer

LAYERS = ("gpt_neox.layers", "model.layers", "transformer.h")  # of GPT-NeoX; Llama, Mistral and Qwen2; GPT-2
HOOK_FOLDER = "hook"
EDIT_FILE = "edit.json"
CHECKSUMS_FILE = "SHA256SUMS"
NORM_EPS = 1e-5


def load_edited(folder: str | Path, **options: Any) -> Any:
    """Load the model of a folder, in eval mode, with its edit attached; `options` go to `from_pretrained` (default dtype: float32)."""
    check_files(Path(folder))
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False} | options
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    attach(model, folder)
    return model


def attach(model: nn.Module, folder: str | Path) -> Callable[[], None]:
    """Attach the edit of a folder to a model in place; return a function that removes it."""
    folder = Path(folder)
    check_files(folder, (f"{HOOK_FOLDER}/", EDIT_FILE))
    config = json.loads((folder / HOOK_FOLDER / "config.json").read_text(encoding="utf-8"))
    content = json.loads((folder / EDIT_FILE).read_text(encoding="utf-8"))
    if config["weights_sha256"] != content["sae"]["weights_sha256"] or config["hook_name"] != content["hook_name"]:
        raise ValueError(f"{folder}: {EDIT_FILE} belongs to another SAE or hook than {HOOK_FOLDER}/")
    layer = decoder_layers(model)[config["layer"]]
    edited = EditedLayer(config, content, load_file(folder / HOOK_FOLDER / "weights.safetensors"))
    base: nn.Module = model.base_model  # type: ignore[assignment]
    handles = [
        base.register_forward_pre_hook(edited.before_model, with_kwargs=True),
        base.register_forward_hook(edited.after_model, with_kwargs=True, always_call=True),
        layer.register_forward_pre_hook(edited.before_layer, with_kwargs=True)
        if config["side"] == "pre"
        else layer.register_forward_hook(edited.after_layer),
    ]

    def remove() -> None:
        for handle in handles:
            handle.remove()

    return remove


def check_files(folder: Path, starts: tuple[str, ...] = ("",)) -> None:
    """Compare the files of a folder with the SHA-256 of each in `SHA256SUMS`, if there is such a list.

    Args:
        folder: an exported model.
        starts: only files whose names begin with one of these are compared.

    Raises:
        ValueError: a file is missing, or has another content than when it was written.
    """
    sums = folder / CHECKSUMS_FILE
    lines = sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []
    for recorded, _, name in (line.partition("  ") for line in lines):
        if name.startswith(starts):
            digest = hashlib.sha256()
            try:
                with (folder / name).open("rb") as file:
                    while piece := file.read(1 << 20):
                        digest.update(piece)
            except OSError as error:
                raise ValueError(f"{folder / name}: {error.strerror}; copy the whole folder again") from error
            if digest.hexdigest() != recorded:
                raise ValueError(
                    f"{folder / name} is damaged (its content does not match {CHECKSUMS_FILE}); copy the folder again, or delete "
                    f"{CHECKSUMS_FILE} if you changed the file on purpose"
                )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of a model's decoder layers."""
    for name in LAYERS:
        owner: Any = model
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner is not None:
            return owner
    raise ValueError(f"{type(model).__name__} has its decoder layers under none of {', '.join(LAYERS)}")


class EditState(DynamicLayer):
    """State of an edit between calls, kept as a layer of the KV cache, so that both are reordered and copied together."""

    is_compileable = True  # as the layers of a static cache: one that is not would change the masks that the model makes
    supports_early_init = False

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner, self.tensors = owner, dict[str, Tensor]()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows as beam search does."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._replace(lambda rows: rows[indices.to(rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._replace(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        self.tensors = {name: value if name == "n_seen" else change(value) for name, value in self.tensors.items()}

    def reset(self) -> None:
        """Forget everything."""
        self.tensors = {}

    def crop(self, tokens_to_remove: int) -> None:
        """Forget everything: what the encoder read before the remaining positions is not kept, so the next call refuses this cache."""
        if tokens_to_remove != 0:
            self.tensors = {}


class EditedLayer:
    """Hooks of an edit: those of the model find masked positions and the start of a context; the one of the layer edits.

    Between calls of the model, state is kept in its KV cache only.
    """

    def __init__(self, config: dict[str, Any], content: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.config, self.edit, self.gate, self.weights = config, content["edit"], content["gate"], weights
        for part, known, names in (("edit", EDITS, self.edit), ("gate", GATES, self.gate)):
            if names["kind"] not in known:
                raise ValueError(f"unknown {part} {names['kind']!r}; this loader knows {', '.join(known)}")
            self.weights |= {f"{part}_{name}": torch.tensor(value) for name, value in names.items() if isinstance(value, list)}
        self.owner = hashlib.sha256(json.dumps([config, content["edit"], content["gate"]]).encode()).hexdigest()
        self.masked: Tensor | None = None
        self.state: dict[str, Tensor] = {}

    def before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Find which of the new positions are masked, and fetch the state of the positions before them."""
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = given.get("kwargs", {}) | given
        tokens, cache, attention = (given.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        if tokens is None:
            raise ValueError("the edit needs input_ids: special tokens cannot be told from embeddings")
        n_past = int(cache.get_seq_length()) if cache is not None else 0
        self.state = dict(self._state_in(cache).tensors) if n_past else {}
        if n_past != (int(self.state["n_seen"]) if self.state else 0) or (n_past and len(self.state["x"]) != len(tokens)):
            raise ValueError("the KV cache was made, cut or copied without the edit; begin again with an empty one")
        attention = visible_positions(attention, n_past, tokens.shape[1])
        check_length(module, n_past + tokens.shape[1], attention)
        self.masked = torch.isin(tokens, torch.tensor(self.config["special_token_ids"], device=tokens.device))
        if attention is not None:
            n_read = attention.long().cumsum(dim=-1)
            self.masked = self.masked | ((n_read <= 1) | (attention == 0))[:, n_past : n_past + tokens.shape[1]]
        elif not n_past:
            self.masked[:, 0] = True

    def after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Put the state into the KV cache of this call."""
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for cache in parts:
            if hasattr(cache, "get_seq_length"):
                self._state_in(cache).tensors = self.state
        self.masked, self.state = None, {}

    def _state_in(self, cache: Any) -> EditState:
        """Find the state of this edit in a cache; the first call adds it."""
        if not isinstance(getattr(cache, "layers", None), list):
            raise ValueError(
                f"the edit needs a KV cache that is a list of layers; got a {type(cache).__name__}: give use_cache=False"
            )
        found = next((layer for layer in cache.layers if isinstance(layer, EditState) and layer.owner == self.owner), None)
        if found is None:
            found = EditState(self.owner)
            cache.layers.append(found)
        return found

    def before_layer(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Edit what the layer reads."""
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"])}

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Edit what the layer writes."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)

    def __call__(self, h: Tensor) -> Tensor:
        """Return the edited residual stream of the new positions."""
        if self.masked is None:
            raise ValueError("the edited layer was called on its own; call the whole model")
        self.weights = {name: tensor.to(h.device) for name, tensor in self.weights.items()}
        masked = self.masked.to(h.device)
        e = self.features(h.float(), masked)
        open_at = self.opens(e) & ~masked
        self.state["n_seen"] = self.state.get("n_seen", torch.tensor(0)) + h.shape[1]
        return (h + self.delta(h.float(), e).masked_fill(~open_at.unsqueeze(-1), 0.0)).to(h.dtype)

    def features(self, h: Tensor, masked: Tensor) -> Tensor:
        """Compute the feature activations of the new positions, from all that the encoder reads."""
        w, config = self.weights, self.config
        x = (h - w["b_in"]).masked_fill(masked.unsqueeze(-1), 0.0)
        window = torch.cat([self.state.get("x", x[:, :0]), x], dim=1)
        n_new, reach = x.shape[1], -min(config["offsets"])
        self.state = self.state | {"x": window[:, max(0, window.shape[1] - reach) :]}
        z = scale_vectors(window, w["filters"], config["offsets"])[:, -n_new:]
        if config["scale_norm"] != "none":
            z = nn.functional.layer_norm(z, z.shape[-1:], eps=NORM_EPS)
        if config["scale_norm"] == "rescaled_layer_norm":
            mean, std = x.mean(-1, keepdim=True), x.std(-1, keepdim=True, correction=0)
            z = z * std.unsqueeze(-2) + mean.unsqueeze(-2)
        z = torch.cat([z[..., :1, :], config["context_gain"] * z[..., 1:, :]], dim=-2)
        encoder_in = z.flatten(2)
        if "W_context" in w:  # the encoder reads the context through a narrow product
            encoder_in = torch.cat([z[..., 0, :], z[..., 1:, :].flatten(2) @ w["W_context"]], dim=-1)
        hidden_pre = encoder_in @ w["W_enc"] + w["b_enc"]
        e = ACTIVATIONS[config["activation"]](hidden_pre, config, w)
        return e.masked_fill(masked.unsqueeze(-1), 0.0)

    def opens(self, e: Tensor) -> Tensor:
        """Find where the gate is open, `(batch, pos)`."""
        return GATES[self.gate["kind"]](self, e)

    def delta(self, h: Tensor, e: Tensor) -> Tensor:
        """Compute what the edit adds at every position where the gate is open, `(batch, pos, d_model)`."""
        return EDITS[self.edit["kind"]](self, h, e)


def always_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Open everywhere."""
    return torch.ones(e.shape[:2], dtype=torch.bool, device=e.device)


def feature_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Open where one of the gate's features fires."""
    return (e[..., layer.gate["features"]] > 0).any(dim=-1)


def evidence_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Open where a decaying sum of the weights of the features that fired exceeds the threshold."""
    gate = layer.gate
    step = (e[..., gate["features"]] > 0).float() @ layer.weights["gate_weights"]
    running, evidence = layer.state.get("evidence", torch.zeros_like(step[:, 0])), []
    for position in range(step.shape[1]):
        running = gate["decay"] * running + step[:, position]
        evidence.append(running)
    layer.state["evidence"] = running
    return torch.stack(evidence, dim=1) > gate["threshold"]


def rescale_features(layer: EditedLayer, h: Tensor, e: Tensor) -> Tensor:
    """`e_i -> -multiplier * e_i`."""
    return decode_change(layer, -(1 + layer.edit["multiplier"]) * e[..., layer.edit["features"]])


def clamp_features(layer: EditedLayer, h: Tensor, e: Tensor) -> Tensor:
    """`e_i -> values_i`: where the feature fires, where any of the features fires, or everywhere."""
    chosen, where = e[..., layer.edit["features"]], layer.edit["where"]
    acts = chosen > 0
    if where != "fires":
        acts = (acts.any(-1, keepdim=True) | (where == "everywhere")).expand_as(chosen)
    return decode_change(layer, torch.where(acts, layer.weights["edit_values"] - chosen, 0.0))


def remove_directions(layer: EditedLayer, h: Tensor, e: Tensor) -> Tensor:
    """`h -> h - (1 + multiplier) * B^T B (h - center)`."""
    basis, center = layer.weights["edit_basis"], layer.weights["edit_center"]
    return -(1 + layer.edit["multiplier"]) * ((h - center) @ basis.T) @ basis


def decode_change(layer: EditedLayer, change: Tensor) -> Tensor:
    """Turn a change of the edit's features into a change of the residual stream."""
    return change @ layer.weights["W_dec"][layer.edit["features"]]


GATES: dict[str, Callable[[EditedLayer, Tensor], Tensor]] = {
    "always": always_opens,
    "feature_active": feature_opens,
    "running_evidence": evidence_opens,
}
"""Gates by `kind`: functions of the features of the new positions that say where the gate is open. State is kept in `layer.state`."""

EDITS: dict[str, Callable[[EditedLayer, Tensor, Tensor], Tensor]] = {
    "features": rescale_features,
    "clamp": clamp_features,
    "directions": remove_directions,
}
"""Edits by `kind`: functions of the residual stream and its features that say what is added where the gate is open."""


def keep_positive(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `relu` encoder from its pre-activations, `(batch, pos, feature)`."""
    return hidden_pre.relu()


def keep_largest(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `topk` encoder from its pre-activations, `(batch, pos, feature)`."""
    e, kept = hidden_pre.relu(), hidden_pre.topk(config["k"], dim=-1, sorted=False).indices
    return torch.zeros_like(e).scatter(-1, kept, e.gather(-1, kept))


def keep_above_threshold(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `jumprelu` encoder from its pre-activations, `(batch, pos, feature)`."""
    return hidden_pre.relu() * (hidden_pre > weights["threshold"])


ACTIVATIONS = {"relu": keep_positive, "topk": keep_largest, "jumprelu": keep_above_threshold}


def scale_vectors(x: Tensor, filters: Tensor, offsets: list[int]) -> Tensor:
    """Convolve every scale over the past, `(batch, pos, scale, d_in)`; nothing is read at, across or before a wall."""
    segments = (x == 0).all(dim=-1).long().cumsum(dim=-1)
    total = x.unsqueeze(-2) * filters[:, 0]
    for place, offset in enumerate(offsets[1:], start=1):
        if -offset < x.shape[1]:
            there = (segments[:, :offset] == segments[:, -offset:]).unsqueeze(-1)
            read = nn.functional.pad(x[:, :offset] * there, (0, 0, -offset, 0))
            total = total + read.unsqueeze(-2) * filters[:, place]
    return total


def visible_positions(attention: Any, n_past: int, n_new: int) -> Tensor | None:
    """Find the positions that are not padding, `(batch, n_past + n_new)`, from any mask of transformers; None where all are read."""
    if isinstance(attention, dict):
        attention = next((mask for mask in attention.values() if mask is not None), None)
    if not isinstance(attention, Tensor):
        return None
    n_positions = n_past + n_new
    if attention.ndim == 4:  # (batch, head, query, key): a position is read if any query reads it
        allowed = attention > torch.finfo(attention.dtype).min / 2 if attention.is_floating_point() else attention.bool()
        allowed = allowed[:, 0, :, :n_positions]
        places = torch.arange(n_positions, device=allowed.device)
        reads_ahead = (allowed & (places > places[n_past:, None])).any(
            dim=-1, keepdim=True
        )  # as padding may, which reads nothing else
        attention = (allowed & ~reads_ahead).any(dim=1)
    if attention.ndim != 2:
        raise ValueError(f"the edit needs an attention_mask (batch, pos); got shape {tuple(attention.shape)}")
    return attention[:, :n_positions].long()


def check_length(model: nn.Module, n_positions: int, attention: Tensor | None) -> None:
    """Raise `ValueError` where a text is longer than the model's context."""
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is None or n_positions <= longest:
        return
    n_read = n_positions if attention is None else int(attention.sum(dim=-1).max())
    if n_read > longest:
        raise ValueError(
            f"{n_read} positions are more than the model's context of {longest}; give a shorter prompt or fewer new tokens"
        )
