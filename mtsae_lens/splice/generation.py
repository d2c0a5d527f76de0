"""Apply edits while a model generates, with or without its KV cache.

With the cache, a hook gets the new positions only. The positions that the encoder still reads, or the past of an SAE with memory, and the
states of the gate and of the edit are then carried from call to call, so the tokens equal those of a model that reads the whole context again
each time, at any length.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import HookedSAETransformer
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import last_position_alone
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.padding import attention_options
from mtsae_lens.errors import ConfigError, nearest
from mtsae_lens.sae.memory import Past
from mtsae_lens.sae.memory_streaming import encode_from
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hook_pair import hooks_for
from mtsae_lens.splice.splicing import Splice


class StreamingEdit:
    """An edit during one generation. Create a new object for each call of `generate`.

    Position 0 and the `masked` positions of the prompt are neither read nor edited, as in `HookedLM`. Special tokens that are generated are
    edited like other tokens, because activations do not reveal which token they belong to.

    A call with several positions starts a context (the prompt, or without the cache the whole text so far). A call with one position
    continues the previous calls.

    >>> streaming = StreamingEdit(Splice(sae), FeatureEdit((3, 14), multiplier=2.0))
    >>> with model.hooks(fwd_hooks=streaming.hooks):
    ...     text = model.generate("In the beginning", max_new_tokens=20, verbose=False)

    Args:
        splice: the SAE at its hook.
        edit: the edit; its gate must be causal.
        masked: special tokens and padding of the prompt (`HookedLM.masked`), so that a prompt padded on the left is edited as if it were
            alone; None for position 0 only.

    Raises:
        ConfigError: the encoder or the gate reads later positions, which do not exist yet during generation.
    """

    def __init__(self, splice: Splice, edit: Edit, masked: Bool[Tensor, "batch pos"] | None = None) -> None:
        sae = splice.sae
        self.splice, self.edit, self._masked = splice, edit, masked
        self._reach = 0
        self._remembers = isinstance(sae, TemporalEncoder) and sae.has_memory
        self._was_called = False
        if not edit.gate.causal:
            raise ConfigError(
                f"expected a causal gate to generate, got a {type(edit.gate).__name__}, which reads the whole context before it opens; give "
                "the edit a causal gate"
            )
        if isinstance(sae, TemporalEncoder):
            if sae.cfg.padding != "causal":
                raise ConfigError(
                    f"expected a causal encoder to generate, got padding={sae.cfg.padding!r}, which reads later positions; train an SAE with "
                    "padding='causal'"
                )
            self._reach = sae.receptive_field[0]
        self._start()

    def _start(self) -> None:
        """Begin a context."""
        self._past: Tensor | None = None  # the last positions that the encoder may still read
        self._past_walls: Tensor | None = None  # which of them are walls
        self._memory: Past | None = None  # what an SAE with memory remembers
        self._gate_state: Tensor | None = None
        self._edit_state: Any = None

    @property
    def was_called(self) -> bool:
        """Return whether the model has run the hook."""
        return self._was_called

    @property
    def hooks(self) -> list[tuple[str, Any]]:
        """Return the hooks `(name, function)`, as TransformerLens takes them: one, or for a transcoder two."""
        return hooks_for(self.splice.sae, self)

    @torch.no_grad()
    def __call__(self, h: Tensor) -> Tensor:
        """Return the edited activations of the new positions.

        Args:
            h: activations at the hook, `(batch, pos, ...)`; of a transcoder, those at both hooks (`Splice`).
        """
        starts = h.shape[1] > 1 or not self._was_called
        if starts:
            self._start()
        self._was_called = True
        masked = self._masked_of(h, starts)
        before = self._memory
        if self._remembers:
            sae_in = zero_rows(self.splice.as_sae_input(h), masked)
            feature_acts, self._memory = encode_from(self.splice.sae, sae_in, before)
            feature_acts = zero_rows(feature_acts, masked)
        else:
            feature_acts = self._encode_after_window(h, masked)
        observed = self.edit.gate.observe(zero_rows(self.splice.as_target(h), masked), feature_acts)
        open_at, self._gate_state = self.edit.gate.open_from(observed, self._gate_state)
        sae_state = self.splice.sae_state(h, feature_acts, before)
        change, self._edit_state = self.edit.change_from(sae_state, open_at & ~masked, self._edit_state)
        return self.splice.add_change(h, change)

    def _masked_of(self, h: Tensor, starts: bool) -> Bool[Tensor, "batch pos"]:
        """Return which of the new positions are neither read nor edited: at the start of a context, position 0 and the prompt's masked
        positions.
        """
        masked = torch.zeros(h.shape[:2], dtype=torch.bool, device=h.device)
        if starts:
            masked[:, 0] = True
            if self._masked is not None:
                masked[:, : self._masked.shape[1]] |= self._masked.to(h.device)
        return masked

    def _encode_after_window(self, h: Tensor, masked: Bool[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_sae"]:
        """Compute the features of the new positions with an encoder that reads the last positions; masked positions have no features.

        The window holds all positions that the new ones read. It begins with a row of zeros, a wall in place of position 0, which the encoder
        always treats as a wall.
        """
        rows = zero_rows(h, masked)
        if self._past is None or self._past_walls is None:
            self._past, self._past_walls = rows[:, :0], masked[:, :0]
        n_past, n_new = self._past.shape[1], h.shape[1]
        window = torch.cat([torch.zeros_like(rows[:, :1]), self._past, rows], dim=1)
        walls = torch.cat([torch.ones_like(masked[:, :1]), self._past_walls, masked], dim=1)
        first_kept = 1 + max(0, n_past + n_new - self._reach)
        self._past, self._past_walls = window[:, first_kept:], walls[:, first_kept:]
        return self.splice.feature_acts(window, walls)[:, -n_new:]


@dataclass
class _Padding:
    """The attributes of a tokenizer that `HookedTransformer.generate` reads: the token that ends a text, and the padding token."""

    eos_token_id: int | None
    pad_token_id: int
    padding_side: str = "left"


def continue_tokens(
    model: AnyHookedModel, tokens: Int[Tensor, "batch pos"], padding: Bool[Tensor, "batch pos"] | None = None, **options: Any
) -> Any:
    """Continue prompts with `model.generate`.

    `HookedTransformer.generate` takes tokens at a prompt's end that equal the padding token, such as a single BOS token, for padding,
    attends to none of them, and fails if there is no padding token. A bridge takes no token for padding. Here, only the positions in
    `padding` are padding, independently of the tokenizer. The given model does not change, so hooks may call it during generation.

    Args:
        model: a `HookedTransformer` or a bridge.
        tokens: prompts, `(batch, pos)`; shorter ones are padded on the left.
        padding: the positions that no position attends to (`HookedLM.left_padding`); None for no padding.
        options: the options of `HookedTransformer.generate`.

    Returns:
        The prompts and their continuations, `(batch, pos + new)`; the prompts if `max_new_tokens=0`; texts if `return_type="str"`.

    Raises:
        ConfigError: `generate` does not have an option, the number of new tokens is negative or exceeds the model's context, or
            `stop_at_eos` is set and there is no token that ends a text.
    """
    tokens = tokens.to(model.cfg.device)
    padding = torch.zeros_like(tokens, dtype=torch.bool) if padding is None else padding.to(tokens.device)
    options = {"verbose": False, "max_new_tokens": 10} | options
    return_type = options.pop("return_type", "tokens")
    tokenizer: Any = model.tokenizer
    _check_options(model, tokens.shape[1], options, return_type)
    eos = None if tokenizer is None else tokenizer.eos_token_id
    ends = eos is not None or options.get("eos_token_id") is not None
    if not ends and options.get("stop_at_eos"):
        raise ConfigError("expected an EOS token for stop_at_eos, got a tokenizer without one; give eos_token_id=...")
    options = {"stop_at_eos": ends} | options | {"return_type": "tokens", "prepend_bos": False}
    if options["max_new_tokens"] == 0:
        continued: Any = tokens
    else:
        attention = attention_options(model, padding)  # refuses a model that cannot leave padding out
        with last_position_alone(model):
            if isinstance(model, HookedSAETransformer):
                continued = _continue_hooked(model, tokens, padding, eos, options)
            else:
                continued = model.generate(tokens, **options, **attention)
    if return_type != "str" or not torch.is_tensor(continued):
        return continued
    texts = [tokenizer.decode(row, skip_special_tokens=True) for row in continued.tolist()]
    return texts[0] if len(texts) == 1 else texts


def _continue_hooked(
    model: HookedSAETransformer, tokens: Tensor, padding: Tensor, eos: int | None, options: dict[str, Any]
) -> Any:
    """Continue prompts with a copy that shares weights and hooks, and has its own tokenizer and settings, which `generate` changes."""
    filler, prompts = -1, tokens
    if bool(padding.any()):  # mark padding by a token that no prompt contains, because BOS may be the padding token
        present = set(tokens.unique().tolist())
        filler = next(token for token in range(model.cfg.d_vocab) if token not in present)
        prompts = tokens.masked_fill(padding, filler)
    shallow = copy.copy(model)
    shallow.cfg, shallow.tokenizer = copy.copy(model.cfg), _Padding(eos, filler)  # type: ignore[assignment]
    continued = shallow.generate(prompts, **options)
    if torch.is_tensor(continued):
        return torch.cat([tokens, continued[:, tokens.shape[1] :]], dim=1)
    continued.sequences = torch.cat([tokens, continued.sequences[:, tokens.shape[1] :]], dim=1)
    return continued


def _check_options(model: AnyHookedModel, n_prompt: int, options: Mapping[str, Any], return_type: str) -> None:
    parameters = inspect.signature(type(model).generate).parameters.values()
    known = {p.name for p in parameters if p.kind != p.VAR_KEYWORD} - {"self", "input", "attention_mask"}
    known |= {"output_logits", "return_dict_in_generate"}
    for name in options.keys() - known:
        raise ConfigError(f"expected an option of generate, got {name!r}.{nearest(name, sorted(known))}")
    if return_type not in ("tokens", "input", "str"):
        raise ConfigError(f"expected return_type 'tokens' or 'str', got {return_type!r}; give one of them")
    n_new = options["max_new_tokens"]
    if not isinstance(n_new, int) or isinstance(n_new, bool) or n_new < 0:
        raise ConfigError(f"expected max_new_tokens as an integer of at least 0, got {n_new!r}; change it")
    check_length(model, n_prompt, n_new)


def check_length(model: AnyHookedModel, n_prompt: int, n_new: int) -> None:
    """Check that a prompt and the new tokens together fit into the model's context.

    Args:
        model: the language model.
        n_prompt: tokens of the prompt.
        n_new: tokens to generate.

    Raises:
        ConfigError: they do not fit.
    """
    left = model.cfg.n_ctx - n_prompt
    if n_new > left:
        cure = f"give a shorter prompt or max_new_tokens={left} at most" if left > 0 else "give a shorter prompt"
        raise ConfigError(
            f"expected at most {model.cfg.n_ctx} tokens, the model's context, got {n_prompt} prompt tokens and {n_new} new ones; {cure}"
        )
