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

import functools
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

LAYERS = ("gpt_neox.layers", "model.layers", "transformer.h")  # of GPT-NeoX; Llama, Mistral and Qwen2; GPT-2
HOOK_FOLDER = "hook"
EDIT_FILE = "edit.json"
CHECKSUMS_FILE = "SHA256SUMS"
NORM_EPS = 1e-5
_STATE = "_edit_state"  # what the edit carries from call to call travels with the KV cache that it belongs to


def load_edited(folder: str | Path, **options: Any) -> Any:
    """The model of a folder with its edit attached, in eval mode; `options` go to `from_pretrained` (dtype: float32 if not given)."""
    check_files(Path(folder))
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False} | options
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    attach(model, folder)
    return model


def attach(model: nn.Module, folder: str | Path) -> Callable[[], None]:
    """Attach the edit of a folder to a model in place; what is returned removes it."""
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
    """The list of a model's decoder layers."""
    for name in LAYERS:
        owner: Any = model
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner is not None:
            return owner
    raise ValueError(f"{type(model).__name__} has its decoder layers under none of {', '.join(LAYERS)}")


class EditedLayer:
    """The hooks: the model's tell what is read and where a context begins, the layer's edits."""

    def __init__(self, config: dict[str, Any], content: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.config, self.edit, self.gate, self.weights = config, content["edit"], content["gate"], weights
        for owner, name in ((self.edit, "basis"), (self.edit, "center"), (self.edit, "values"), (self.gate, "weights")):
            if name in owner:
                self.weights[f"{'gate_' if owner is self.gate else 'edit_'}{name}"] = torch.tensor(owner[name])
        self.masked: Tensor | None = None
        self.state: dict[str, Tensor] = {}

    def before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Note which of the new positions are masked, and what was read before them."""
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = given.get("kwargs", {}) | given
        tokens, cache, attention = (given.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        if tokens is None:
            raise ValueError("the edit needs input_ids: special tokens cannot be told from embeddings")
        n_past = int(cache.get_seq_length()) if cache is not None else 0
        self.state = getattr(cache, _STATE, {}) if n_past else {}
        if n_past != (int(self.state["n_seen"]) if self.state else 0) or (n_past and len(self.state["x"]) != len(tokens)):
            raise ValueError("the KV cache was made, cut or copied without the edit; begin again with an empty one")
        self.masked = torch.isin(tokens, torch.tensor(self.config["special_token_ids"], device=tokens.device))
        if isinstance(attention, Tensor) and attention.ndim == 2:
            n_read = attention.long().cumsum(dim=-1)
            self.masked = self.masked | ((n_read <= 1) | (attention == 0))[:, n_past : n_past + tokens.shape[1]]
        elif not n_past:
            self.masked[:, 0] = True

    def after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Leave what was read with the cache that it belongs to; beam search reorders both."""
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            if not hasattr(cache, _STATE):
                kind: Any = type(cache)
                cache.__class__ = _remembering(kind)
            setattr(cache, _STATE, self.state)
        self.masked = None

    def before_layer(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Edit what the layer reads."""
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"])}

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Edit what the layer writes."""
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)

    def __call__(self, h: Tensor) -> Tensor:
        """The edited residual stream of the new positions."""
        if self.masked is None:
            raise ValueError("the edited layer was called on its own; call the whole model")
        self.weights = {name: tensor.to(h.device) for name, tensor in self.weights.items()}
        masked = self.masked.to(h.device)
        e = self.features(h.float(), masked)
        open_at = self.opens(e) & ~masked
        self.state["n_seen"] = self.state.get("n_seen", torch.tensor(0)) + h.shape[1]
        return (h + self.delta(h.float(), e).masked_fill(~open_at.unsqueeze(-1), 0.0)).to(h.dtype)

    def features(self, h: Tensor, masked: Tensor) -> Tensor:
        """Feature activations of the new positions, from all that the encoder reads."""
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
        hidden_pre = z.flatten(2) @ w["W_enc"] + w["b_enc"]
        e = hidden_pre.relu()
        if config["activation"] == "topk":
            kept = hidden_pre.topk(config["k"], dim=-1, sorted=False).indices
            e = torch.zeros_like(e).scatter(-1, kept, e.gather(-1, kept))
        elif config["activation"] == "jumprelu":
            e = e * (hidden_pre > w["threshold"])
        return e.masked_fill(masked.unsqueeze(-1), 0.0)

    def opens(self, e: Tensor) -> Tensor:
        """Where the gate is open."""
        gate = self.gate
        if gate["kind"] == "always":
            return torch.ones(e.shape[:2], dtype=torch.bool, device=e.device)
        fires = e[..., gate["features"]] > 0
        if gate["kind"] == "feature_active":
            return fires.any(dim=-1)
        if gate["kind"] != "running_evidence":
            raise ValueError(f"no gate {gate['kind']!r} here")
        step = fires.float() @ self.weights["gate_weights"]
        running, evidence = self.state.get("evidence", torch.zeros_like(step[:, 0])), []
        for position in range(step.shape[1]):
            running = gate["decay"] * running + step[:, position]
            evidence.append(running)
        self.state["evidence"] = running
        return torch.stack(evidence, dim=1) > gate["threshold"]

    def delta(self, h: Tensor, e: Tensor) -> Tensor:
        """What the edit adds at every position, were the gate open there."""
        edit, w = self.edit, self.weights
        if edit["kind"] == "directions":
            return -(1 + edit["multiplier"]) * ((h - w["edit_center"]) @ w["edit_basis"].T) @ w["edit_basis"]
        chosen = e[..., edit["features"]]
        if edit["kind"] == "features":
            change = -(1 + edit["multiplier"]) * chosen
        elif edit["kind"] == "clamp":
            where = chosen > 0
            if edit["where"] != "fires":
                where = (where.any(-1, keepdim=True) | (edit["where"] == "everywhere")).expand_as(chosen)
            change = torch.where(where, w["edit_values"] - chosen, 0.0)
        else:
            raise ValueError(f"no edit {edit['kind']!r} here")
        return change @ w["W_dec"][edit["features"]]


def scale_vectors(x: Tensor, filters: Tensor, offsets: list[int]) -> Tensor:
    """`(batch, pos, scale, d_in)`: the convolution of every scale over the past; nothing is read at, across or before a wall."""
    segments = (x == 0).all(dim=-1).long().cumsum(dim=-1)
    total = x.unsqueeze(-2) * filters[:, 0]
    for place, offset in enumerate(offsets[1:], start=1):
        if -offset < x.shape[1]:
            there = (segments[:, :offset] == segments[:, -offset:]).unsqueeze(-1)
            read = nn.functional.pad(x[:, :offset] * there, (0, 0, -offset, 0))
            total = total + read.unsqueeze(-2) * filters[:, place]
    return total


@functools.cache
def _remembering(kind: Any) -> Any:
    """A kind of KV cache that reorders what the edit carries along with the beams."""

    class Remembering(kind):
        def reorder_cache(self, beam_idx: Tensor) -> None:
            super().reorder_cache(beam_idx)
            state = getattr(self, _STATE)
            setattr(self, _STATE, {name: value if name == "n_seen" else value[beam_idx] for name, value in state.items()})

    return Remembering
