"""Apply an edit at a decoder layer: the hooks of the model and of the layer, and the state between calls."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from .edits import EDITS
from .encoder import encode
from .gates import GATES
from .positions import check_length, visible_positions
from .state import EditState, find_cache


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
        self.config, self.weights = config, weights
        self.edit, self.gate = content["edit"], content["gate"]
        for fields in (self.edit, *self.edit.get("parts", [])):
            check_known("edit", fields["kind"], EDITS)
        check_known("gate", self.gate["kind"], GATES)
        self.edit_tensors = tensors_of(self.edit)
        self.gate_tensors = tensors_of(self.gate)
        self.owner = hashlib.sha256(json.dumps([config, content["edit"], content["gate"]]).encode()).hexdigest()
        self.masked: Tensor | None = None
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
        tokens, attention, cache = given.get("input_ids"), given.get("attention_mask"), find_cache(given)
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
            output: its output; None if the call raised an error.
        """
        cache = find_cache(output)
        if cache is not None:
            self._state_in(cache).tensors = self.state
        self.masked, self.state = None, {}

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
        self._move_to(h.device)
        masked = self.masked.to(h.device)
        e = self.features(h.float(), masked)
        read = h.float().masked_fill(masked.unsqueeze(-1), 0.0)
        open_at = GATES[self.gate["kind"]](self.gate, self.gate_tensors, self.state, e, read) & ~masked
        tensors = self.edit_tensors | {"W_dec": self.weights["W_dec"], "b_dec": self.weights["b_dec"]}
        delta = EDITS[self.edit["kind"]](self.edit, tensors, h.float(), e)
        self.state["n_seen"] = self.state.get("n_seen", torch.tensor(0)) + h.shape[1]
        return (h + delta.masked_fill(~open_at.unsqueeze(-1), 0.0)).to(h.dtype)

    def features(self, h: Tensor, masked: Tensor) -> Tensor:
        """Compute the feature activations of the new positions, and keep what the encoder will read of them later.

        Args:
            h: the residual stream, `(batch, pos, d_model)`.
            masked: mask `(batch, pos)` of the positions that have no features.

        Returns:
            Feature activations, `(batch, pos, d_sae)`.
        """
        x = (h - self.weights["b_in"]).masked_fill(masked.unsqueeze(-1), 0.0)
        past = self.state.get("x", x[:, :0])
        read, reach = torch.cat([past, x], dim=1), -min(self.config["offsets"])
        self.state = self.state | {"x": read[:, max(0, read.shape[1] - reach) :]}
        return encode(x, past, masked, self.config, self.weights)

    def _move_to(self, device: torch.device) -> None:
        for tensors in (self.weights, self.edit_tensors, self.gate_tensors):
            tensors.update({name: tensor.to(device) for name, tensor in tensors.items()})


def check_known(what: str, kind: str, known: Collection[str]) -> None:
    """Check that this loader knows the kind of an edit or a gate.

    Args:
        what: `edit` or `gate`.
        kind: its kind.
        known: the kinds that it knows.

    Raises:
        ValueError: it does not know this kind.
    """
    if kind not in known:
        raise ValueError(f"expected a known {what} ({', '.join(known)}), got {kind!r}; load it with mtsae_lens.load_edit")


def tensors_of(fields: dict[str, Any]) -> dict[str, Tensor]:
    """Return the lists of an edit or a gate as tensors, by name; those of a combined edit by the place of the part and the name.

    Args:
        fields: the edit or the gate in `edit.json`.
    """
    if "parts" in fields:
        of_parts = [tensors_of(part) for part in fields["parts"]]
        return {f"{place}.{name}": tensor for place, part in enumerate(of_parts) for name, tensor in part.items()}
    return {name: torch.tensor(value) for name, value in fields.items() if isinstance(value, list)}
