"""Load a Hugging Face model with an edit of sparse features attached. Only torch, transformers and safetensors are needed.

    model = load_edited("this folder")      # an ordinary transformers model; generate() works, with the KV cache or without
    remove = attach(model, "this folder")   # the same for a model that is already loaded; remove() removes the edit

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
    """Load the model of a folder, in eval mode, with its edit attached.

    Args:
        folder: an exported model.
        **options: options of `from_pretrained`; the default dtype is float32.

    Returns:
        The model.

    Raises:
        ValueError: a file is damaged or missing.
    """
    check_files(Path(folder))
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False} | options
    model = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
    attach(model, folder)
    return model


def attach(model: nn.Module, folder: str | Path) -> Callable[[], None]:
    """Attach the edit of a folder to a model, in place.

    Args:
        model: a Hugging Face model of the same family.
        folder: an exported model.

    Returns:
        A function that removes the edit.

    Raises:
        ValueError: a file is damaged or missing, or the edit belongs to another SAE or hook.
    """
    folder = Path(folder)
    check_files(folder, (f"{HOOK_FOLDER}/", EDIT_FILE))
    config = json.loads((folder / HOOK_FOLDER / "config.json").read_text(encoding="utf-8"))
    content = json.loads((folder / EDIT_FILE).read_text(encoding="utf-8"))
    if config["weights_sha256"] != content["sae"]["weights_sha256"] or config["hook_name"] != content["hook_name"]:
        raise ValueError(
            f"{folder}: expected {EDIT_FILE} and {HOOK_FOLDER}/ of one SAE and hook, got different ones; copy the whole folder again"
        )
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
    """Compare the files of a folder with their SHA-256 digests in `SHA256SUMS`, if it exists.

    Args:
        folder: an exported model.
        starts: only files whose names begin with one of these are compared.

    Raises:
        ValueError: a file is missing, or its content has changed.
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
                    f"{folder / name}: expected the content listed in {CHECKSUMS_FILE}, got other content (the file is damaged); copy the "
                    f"folder again, or delete {CHECKSUMS_FILE} if you changed the file on purpose"
                )


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Return the list of a model's decoder layers.

    Args:
        model: a Hugging Face model.

    Raises:
        ValueError: the model has none of the names in `LAYERS`.
    """
    for name in LAYERS:
        owner: Any = model
        for part in name.split("."):
            owner = getattr(owner, part, None)
        if owner is not None:
            return owner
    raise ValueError(
        f"expected decoder layers at {' or '.join(LAYERS)}, got none in {type(model).__name__}; give a supported model"
    )


class EditState(DynamicLayer):
    """State of an edit between calls, stored as a layer of the KV cache, so that both are reordered and copied together.

    Args:
        owner: digest of the edit that the state belongs to.
    """

    is_compileable = True  # like the layers of a static cache; a layer that is not would change the masks that the model makes
    supports_early_init = False

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner, self.tensors = owner, dict[str, Tensor]()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Reorder the rows, as beam search does.

        Args:
            beam_idx: the new order.
        """
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows.

        Args:
            indices: the rows to keep.
        """
        self._replace(lambda rows: rows[indices.to(rows.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row.

        Args:
            repeats: copies of each row.
        """
        self._replace(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def _replace(self, change: Callable[[Tensor], Tensor]) -> None:
        self.tensors = {name: value if name == "n_seen" else change(value) for name, value in self.tensors.items()}

    def reset(self) -> None:
        """Delete the state."""
        self.tensors = {}

    def crop(self, tokens_to_remove: int) -> None:
        """Delete the state if tokens are removed, because the past that the encoder needs is not kept; the next call then raises an error.

        Args:
            tokens_to_remove: number of tokens to remove.
        """
        if tokens_to_remove != 0:
            self.tensors = {}


class EditedLayer:
    """Hooks of an edit: hooks on the model find masked positions and the start of a context, and the hook on the layer applies the edit.

    Between calls of the model, state is kept only in the KV cache.

    Args:
        config: contents of `hook/config.json`.
        content: contents of `edit.json`.
        weights: tensors of `hook/weights.safetensors`.

    Raises:
        ValueError: this loader does not know the edit or the gate.
    """

    def __init__(self, config: dict[str, Any], content: dict[str, Any], weights: dict[str, Tensor]) -> None:
        self.config, self.edit, self.gate, self.weights = config, content["edit"], content["gate"], weights
        for part, known, names in (("edit", EDITS, self.edit), ("gate", GATES, self.gate)):
            if names["kind"] not in known:
                raise ValueError(
                    f"expected a known {part} ({', '.join(known)}), got {names['kind']!r}; load it with mtsae_lens.load_edit"
                )
            self.weights |= {f"{part}_{name}": torch.tensor(value) for name, value in names.items() if isinstance(value, list)}
        self.owner = hashlib.sha256(json.dumps([config, content["edit"], content["gate"]]).encode()).hexdigest()
        self.masked: Tensor | None = None
        self.h: Tensor | None = None
        self.state: dict[str, Tensor] = {}

    def before_model(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Find the masked ones among the new positions, and fetch the state of the positions before them.

        Args:
            module: the model.
            args: positional arguments of its call.
            kwargs: keyword arguments of its call.

        Raises:
            ValueError: the call has no `input_ids`, or its KV cache does not belong to the edit.
        """
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        given = given.get("kwargs", {}) | given
        tokens, cache, attention = (given.get(name) for name in ("input_ids", "past_key_values", "attention_mask"))
        if tokens is None:
            raise ValueError("expected input_ids, which show special tokens, got embeddings alone; give input_ids")
        n_past = int(cache.get_seq_length()) if cache is not None else 0
        self.state = dict(self._state_in(cache).tensors) if n_past else {}
        if n_past != (int(self.state["n_seen"]) if self.state else 0) or (n_past and len(self.state["x"]) != len(tokens)):
            raise ValueError(
                "expected a KV cache of this edit, got one that was made, cut or copied without it; give an empty one"
            )
        attention = visible_positions(attention, n_past, tokens.shape[1])
        check_length(module, n_past + tokens.shape[1], attention)
        self.masked = torch.isin(tokens, torch.tensor(self.config["special_token_ids"], device=tokens.device))
        if attention is not None:
            n_read = attention.long().cumsum(dim=-1)
            self.masked = self.masked | ((n_read <= 1) | (attention == 0))[:, n_past : n_past + tokens.shape[1]]
        elif not n_past:
            self.masked[:, 0] = True

    def after_model(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Store the state in the KV cache of this call.

        Args:
            module: the model.
            args: positional arguments of its call.
            kwargs: keyword arguments of its call.
            output: its output.
        """
        parts = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
        for cache in parts:
            if hasattr(cache, "get_seq_length"):
                self._state_in(cache).tensors = self.state
        self.masked, self.h, self.state = None, None, {}

    def _state_in(self, cache: Any) -> EditState:
        """Return the state of this edit in a cache; the first call adds it."""
        if not isinstance(getattr(cache, "layers", None), list):
            raise ValueError(
                f"expected a KV cache that is a list of layers, got a {type(cache).__name__}; give use_cache=False"
            )
        found = next((layer for layer in cache.layers if isinstance(layer, EditState) and layer.owner == self.owner), None)
        if found is None:
            found = EditState(self.owner)
            cache.layers.append(found)
        return found

    def before_layer(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Edit the input of the layer.

        Args:
            module: the layer.
            args: positional arguments of its call.
            kwargs: keyword arguments of its call.
        """
        if args:
            return (self(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": self(kwargs["hidden_states"])}

    def after_layer(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Edit the output of the layer.

        Args:
            module: the layer.
            args: positional arguments of its call.
            output: its output.
        """
        return (self(output[0]), *output[1:]) if isinstance(output, tuple) else self(output)

    def __call__(self, h: Tensor) -> Tensor:
        """Return the edited residual stream of the new positions.

        Args:
            h: the residual stream, `(batch, pos, d_model)`.
        """
        if self.masked is None:
            raise ValueError("expected a call of the whole model, got a call of the edited layer alone; call the model")
        self.weights = {name: tensor.to(h.device) for name, tensor in self.weights.items()}
        masked = self.masked.to(h.device)
        self.h = h.float().masked_fill(masked.unsqueeze(-1), 0.0)
        e = self.features(h.float(), masked)
        open_at = self.opens(e) & ~masked
        self.state["n_seen"] = self.state.get("n_seen", torch.tensor(0)) + h.shape[1]
        return (h + self.delta(h.float(), e).masked_fill(~open_at.unsqueeze(-1), 0.0)).to(h.dtype)

    def features(self, h: Tensor, masked: Tensor) -> Tensor:
        """Compute the feature activations of the new positions from all positions that the encoder reads.

        Args:
            h: the residual stream, `(batch, pos, d_model)`.
            masked: mask `(batch, pos)` of the positions that have no features.

        Returns:
            Feature activations, `(batch, pos, d_sae)`.
        """
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
        """Return where the gate is open, `(batch, pos)`.

        Args:
            e: feature activations, `(batch, pos, d_sae)`.
        """
        return GATES[self.gate["kind"]](self, e)

    def delta(self, h: Tensor, e: Tensor) -> Tensor:
        """Compute the change that the edit adds where the gate is open, `(batch, pos, d_model)`.

        Args:
            h: the residual stream, `(batch, pos, d_model)`.
            e: feature activations, `(batch, pos, d_sae)`.
        """
        return EDITS[self.edit["kind"]](self, h, e)


def always_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Return True everywhere.

    Args:
        layer: the edited layer.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    return torch.ones(e.shape[:2], dtype=torch.bool, device=e.device)


def feature_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Return True where one of the gate's features fires.

    Args:
        layer: the edited layer.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    return (e[..., layer.gate["features"]] > 0).any(dim=-1)


def evidence_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Return True where a decaying sum of the weights of the features that fired exceeds the threshold.

    Args:
        layer: the edited layer, which keeps the sum as state.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    gate = layer.gate
    step = (e[..., gate["features"]] > 0).float() @ layer.weights["gate_weights"]
    running, evidence = layer.state.get("evidence", torch.zeros_like(step[:, 0])), []
    for position in range(step.shape[1]):
        running = gate["decay"] * running + step[:, position]
        evidence.append(running)
    layer.state["evidence"] = running
    return torch.stack(evidence, dim=1) > gate["threshold"]


def evidence_steps(layer: EditedLayer, e: Tensor) -> tuple[Tensor, Tensor]:
    """Return `log sum_k exp(w_k . phi_t + c_k)` at each position, and False where nothing is read (special tokens, padding).

    Args:
        layer: the edited layer.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    gate, reads_features = layer.gate, layer.gate["reads"] == "features"
    observed = e if reads_features else layer.h
    assert observed is not None
    phi = observed[..., gate["features"]] if reads_features else observed
    each = phi @ layer.weights["gate_weights"].T + layer.weights["gate_bias"]
    return each.logsumexp(dim=-1), (observed != 0).any(dim=-1)


def two_state_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Return True where the log odds of a two-state filter exceed the threshold.

    Args:
        layer: the edited layer, which keeps the log odds as state.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    gate, (evidence, is_step) = layer.gate, evidence_steps(layer, e)
    opening, closing = evidence.new_tensor(gate["opening"]), evidence.new_tensor(gate["closing"])
    running = layer.state.get("log_odds", (opening.log() - closing.log()).expand(len(evidence)))
    log_odds = []
    for position in range(evidence.shape[1]):
        predicted = opening + (1 - opening - closing) * torch.sigmoid(running)
        updated = predicted.log() - (-predicted).log1p() + evidence[:, position]
        running = torch.where(is_step[:, position], updated, running)
        log_odds.append(running)
    layer.state["log_odds"] = running
    return torch.stack(log_odds, dim=1) > gate["threshold"]


def decayed_mean_opens(layer: EditedLayer, e: Tensor) -> Tensor:
    """Return True where the decayed mean of the evidence exceeds the threshold.

    Args:
        layer: the edited layer, which keeps the decayed sum and count as state.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    gate, (evidence, is_step) = layer.gate, evidence_steps(layer, e)
    counts = torch.stack([torch.where(is_step, evidence, 0.0), is_step.to(evidence.dtype)], dim=-1)
    running, means = layer.state.get("mean", torch.zeros_like(counts[:, 0])), []
    for position in range(evidence.shape[1]):
        running = torch.where(is_step[:, position, None], gate["decay"] * running + counts[:, position], running)
        means.append(running[:, 0] / running[:, 1].clamp(min=1e-9))
    layer.state["mean"] = running
    return torch.stack(means, dim=1) > gate["threshold"]


def rescale_features(layer: EditedLayer, h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `e_i -> -multiplier * e_i`.

    Args:
        layer: the edited layer.
        h: the residual stream, `(batch, pos, d_model)`.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    return decode_change(layer, -(1 + layer.edit["multiplier"]) * e[..., layer.edit["features"]])


def clamp_features(layer: EditedLayer, h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `e_i -> values_i`, where the feature fires, where any of the features fires, or everywhere.

    Args:
        layer: the edited layer.
        h: the residual stream, `(batch, pos, d_model)`.
        e: feature activations, `(batch, pos, d_sae)`.
    """
    chosen, where = e[..., layer.edit["features"]], layer.edit["where"]
    acts = chosen > 0
    if where != "fires":
        acts = (acts.any(-1, keepdim=True) | (where == "everywhere")).expand_as(chosen)
    return decode_change(layer, torch.where(acts, layer.weights["edit_values"] - chosen, 0.0))


def remove_directions(layer: EditedLayer, h: Tensor, e: Tensor) -> Tensor:
    """Compute the change of `h -> h - (1 + multiplier) * B^T B (h - center)`.

    Args:
        layer: the edited layer.
        h: the residual stream, `(batch, pos, d_model)`.
        e: feature activations, not used.
    """
    basis, center = layer.weights["edit_basis"], layer.weights["edit_center"]
    return -(1 + layer.edit["multiplier"]) * ((h - center) @ basis.T) @ basis


def decode_change(layer: EditedLayer, change: Tensor) -> Tensor:
    """Map a change of the edit's features to a change of the residual stream.

    Args:
        layer: the edited layer.
        change: change of the edit's features, `(batch, pos, feature)`.
    """
    return change @ layer.weights["W_dec"][layer.edit["features"]]


GATES: dict[str, Callable[[EditedLayer, Tensor], Tensor]] = {
    "always": always_opens,
    "feature_active": feature_opens,
    "running_evidence": evidence_opens,
    "two_state": two_state_opens,
    "decayed_mean": decayed_mean_opens,
}
"""Gates by `kind`: functions of the features of the new positions that return where the gate is open. State is kept in `layer.state`."""

EDITS: dict[str, Callable[[EditedLayer, Tensor, Tensor], Tensor]] = {
    "features": rescale_features,
    "clamp": clamp_features,
    "directions": remove_directions,
}
"""Edits by `kind`: functions of the residual stream and its features that return the change where the gate is open."""


def keep_positive(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `relu` encoder from its pre-activations.

    Args:
        hidden_pre: pre-activations, `(batch, pos, d_sae)`.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.
    """
    return hidden_pre.relu()


def keep_largest(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `topk` encoder from its pre-activations.

    Args:
        hidden_pre: pre-activations, `(batch, pos, d_sae)`.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.
    """
    e, kept = hidden_pre.relu(), hidden_pre.topk(config["k"], dim=-1, sorted=False).indices
    return torch.zeros_like(e).scatter(-1, kept, e.gather(-1, kept))


def keep_above_threshold(hidden_pre: Tensor, config: dict[str, Any], weights: dict[str, Tensor]) -> Tensor:
    """Compute the features of a `jumprelu` encoder from its pre-activations.

    Args:
        hidden_pre: pre-activations, `(batch, pos, d_sae)`.
        config: contents of `hook/config.json`.
        weights: the encoder's tensors.
    """
    return hidden_pre.relu() * (hidden_pre > weights["threshold"])


ACTIVATIONS = {"relu": keep_positive, "topk": keep_largest, "jumprelu": keep_above_threshold}


def scale_vectors(x: Tensor, filters: Tensor, offsets: list[int]) -> Tensor:
    """Convolve every scale over the past; nothing is read at, across or before a wall.

    Args:
        x: the encoder's input, `(batch, pos, d_in)`, zero at walls.
        filters: weights of the taps, `(scale, offset, d_in)`.
        offsets: offsets of the taps; 0 comes first.

    Returns:
        One vector per scale and position, `(batch, pos, scale, d_in)`.
    """
    segments = (x == 0).all(dim=-1).long().cumsum(dim=-1)
    total = x.unsqueeze(-2) * filters[:, 0]
    for place, offset in enumerate(offsets[1:], start=1):
        if -offset < x.shape[1]:
            there = (segments[:, :offset] == segments[:, -offset:]).unsqueeze(-1)
            read = nn.functional.pad(x[:, :offset] * there, (0, 0, -offset, 0))
            total = total + read.unsqueeze(-2) * filters[:, place]
    return total


def visible_positions(attention: Any, n_past: int, n_new: int) -> Tensor | None:
    """Return the positions that are not padding, from any attention mask of transformers.

    Args:
        attention: a mask `(batch, pos)` or `(batch, head, query, key)`, or a dictionary of masks; None for no mask.
        n_past: positions in the KV cache.
        n_new: new positions.

    Returns:
        A mask `(batch, n_past + n_new)`; None if there is no mask.

    Raises:
        ValueError: the mask has another shape.
    """
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
        )  # padding may read ahead, because it has nothing else to read
        attention = (allowed & ~reads_ahead).any(dim=1)
    if attention.ndim != 2:
        raise ValueError(f"expected an attention_mask (batch, pos), got shape {tuple(attention.shape)}; give one of that shape")
    return attention[:, :n_positions].long()


def check_length(model: nn.Module, n_positions: int, attention: Tensor | None) -> None:
    """Check that a text fits into the model's context.

    Args:
        model: a Hugging Face model.
        n_positions: positions of the text.
        attention: mask of the positions that are not padding; None for no padding.

    Raises:
        ValueError: the text is too long.
    """
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is None or n_positions <= longest:
        return
    n_read = n_positions if attention is None else int(attention.sum(dim=-1).max())
    if n_read > longest:
        raise ValueError(
            f"expected at most {longest} positions, the model's context, got {n_read}; give a shorter prompt or fewer new tokens"
        )
