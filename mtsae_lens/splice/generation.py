"""Edits while a model generates, with its KV cache or without.

With the cache a hook is given the new positions alone. What an encoder reads of the past and what a gate has gathered are then carried from
call to call, so the tokens are those of a model that rereads the whole context each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from sae_lens import HookedSAETransformer
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.splice.edits import Edit
from mtsae_lens.splice.splicing import Splice


class StreamingEdit:
    """An edit of one generation: make one for each call of `generate`.

    Position 0 and the `masked` positions of the prompt are neither read nor edited, as in `HookedLM`; special tokens that are generated cannot
    be told from activations and are edited like any.

    A call with several positions starts a context (the prompt, or without the cache the whole text so far); a call with one position goes on
    from the calls before.

    >>> streaming = StreamingEdit(splice, FeatureEdit((3, 14), multiplier=2.0))               # doctest: +SKIP
    >>> with model.hooks(fwd_hooks=[streaming.hook]):                                          # doctest: +SKIP
    ...     text = model.generate("In the beginning", max_new_tokens=20)

    Args:
        splice: the SAE at its hook.
        edit: what is done to each new position.
        masked: special tokens and padding of the prompt (`HookedLM.masked`), so that prompts padded on the left are edited as they are alone;
            None for position 0 only.

    Raises:
        ConfigError: an encoder or a gate that reads later positions, which do not exist yet.
    """

    def __init__(self, splice: Splice, edit: Edit, masked: Bool[Tensor, "batch pos"] | None = None) -> None:
        sae = splice.sae
        self.splice, self.edit, self._masked = splice, edit, masked
        self._reach = 0
        if not edit.gate.causal:
            raise ConfigError(
                f"a {type(edit.gate).__name__} reads the whole context before it opens, which does not exist yet when a model generates; "
                "give the edit a causal gate"
            )
        if isinstance(sae, TemporalEncoder):
            if sae.cfg.padding != "causal":
                raise ConfigError(
                    f"this SAE has padding={sae.cfg.padding!r}: its encoder reads later positions, which do not exist yet when a model "
                    "generates; train one with padding='causal'"
                )
            self._reach = sae.receptive_field[0]
        self._past: Tensor | None = None  # the last positions that the encoder may still read
        self._gate_state: Tensor | None = None

    @property
    def was_called(self) -> bool:
        """Whether the model has come by the hook."""
        return self._past is not None

    @property
    def hook(self) -> tuple[str, Any]:
        """`(name, function)` as TransformerLens takes hooks."""
        return self.splice.hook_name, lambda h, hook: self(h)

    @torch.no_grad()
    def __call__(self, h: Tensor) -> Tensor:
        """The edited activations of the new positions."""
        if h.shape[1] > 1 or self._past is None:
            self._past = self._gate_state = None
        masked = self._masked_of(h)
        feature_acts = self._encode(h, masked)
        open_at, self._gate_state = self.edit.gate.open_from(feature_acts, self._gate_state)
        return self.splice.apply_edit(h, feature_acts, self.edit, open_at & ~masked)

    def _masked_of(self, h: Tensor) -> Bool[Tensor, "batch pos"]:
        """Which of the new positions are neither read nor edited: of a context that starts, the masked ones of its prompt and position 0."""
        masked = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
        if self._past is None:
            masked[:, 0] = True
            if self._masked is not None:
                masked[:, : self._masked.shape[1]] |= self._masked.to(h.device)
        return masked

    def _encode(self, h: Tensor, masked: Bool[Tensor, "batch pos"]) -> Tensor:
        """Features of the new positions, from a window with all that they read; masked positions have none, as everywhere.

        The window begins with a row of zeros: a wall in the place of position 0, which the encoder takes for one anyway.
        """
        rows = h.masked_fill(masked.view(*masked.shape, *(1,) * (h.ndim - 2)), 0.0)
        if self._past is None:
            self._past = rows[:, :0]
        n_past, n_new = self._past.shape[1], h.shape[1]
        window = torch.cat([torch.zeros_like(rows[:, :1]), self._past, rows], dim=1)
        self._past = window[:, 1:][:, max(0, n_past + n_new - self._reach) :]
        return self.splice.feature_acts(window, (window == 0).flatten(2).all(dim=-1))[:, -n_new:]


@dataclass
class _Padding:
    """What `HookedTransformer.generate` asks of a tokenizer: what ends a text, and which tokens at the left are padding."""

    eos_token_id: int | None
    pad_token_id: int
    padding_side: str = "left"


def continue_tokens(
    model: AnyHookedModel, tokens: Int[Tensor, "batch pos"], padding: Bool[Tensor, "batch pos"] | None = None, **options: Any
) -> Int[Tensor, "batch pos"]:
    """`model.generate` of prompts, prompt included.

    `HookedTransformer.generate` takes tokens at a prompt's end that are also the padding token, such as a lone BOS, for padding, attends to
    none of them, and fails where there is no padding token. Here padding is what is said to be, whatever the tokenizer calls padding.

    Args:
        model: a bridge reads padding like any token.
        tokens: prompts of one length.
        padding: the positions at the left to which nothing attends (`HookedLM.left_padding`); None for none.
        options: as `HookedTransformer.generate` takes them.
    """
    options = {"verbose": False, "prepend_bos": False, "return_type": "tokens"} | options
    tokens = tokens.to(model.cfg.device)
    if not isinstance(model, HookedSAETransformer):
        return model.generate(tokens, **options)
    tokenizer: Any = model.tokenizer
    eos = None if tokenizer is None else tokenizer.eos_token_id
    filler, prompts = -1, tokens
    if padding is not None and padding.any():  # a token that no prompt holds marks the padding, as BOS may be the padding token
        present = set(tokens.unique().tolist())
        filler = next(token for token in range(model.cfg.d_vocab) if token not in present)
        prompts = tokens.masked_fill(padding.to(tokens.device), filler)
    model.tokenizer = _Padding(eos, filler)  # type: ignore[assignment]
    try:
        continued = model.generate(prompts, **({"stop_at_eos": eos is not None} | options))
    finally:
        model.tokenizer = tokenizer
    return torch.cat([tokens, continued[:, tokens.shape[1] :]], dim=1) if torch.is_tensor(continued) else continued
