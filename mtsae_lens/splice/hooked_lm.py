"""Run a language model with an SAE at its hook, without repeated work.

The model runs to the hook once and the features are encoded once; each edit then reruns only the layers after the hook. This makes a
sweep of edits cheap if the hook is a residual stream. At other hooks, and in a bridge, the whole model is rerun with the activations
replaced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.data.bridges import AnyHookedModel, HookedBridge
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.lazy_logits import LazyLogits, lazy_logits
from mtsae_lens.data.masks import zero_rows
from mtsae_lens.data.padding import attention_options
from mtsae_lens.data.token_tables import TokenBatch, TokenTable
from mtsae_lens.errors import ConfigError, DataError, ModelError, nearest
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.generation import StreamingEdit, continue_tokens
from mtsae_lens.splice.hook_checks import check_takes_hook, never_ran
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.splice.token_checks import check_activations, check_prompts, check_tokens
from mtsae_lens.upstream import extract_stop_at_layer_from_tlens_hook_name

_RESIDUAL = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)$")


@dataclass(frozen=True)
class HookedLM:
    """A language model, an SAE at its hook, and the tokenization for both.

    Args:
        model: a `HookedTransformer` or a bridge.
        splice: the SAE at its hook.
        cutter: how text becomes contexts of tokens.
        batch_size: contexts in a forward pass.

    Raises:
        ConfigError: `splice` is not a `Splice`.
        ModelError: the model does not have the hook, or does not run it.
    """

    model: AnyHookedModel
    splice: Splice
    cutter: ContextCutter
    batch_size: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.splice, Splice):
            raise ConfigError(
                f"expected a Splice, got a {type(self.splice).__name__}; give HookedLM(model, Splice(sae), cutter)"
            )
        for name in self.splice.hook_names:
            if name not in self.model.hook_dict:
                raise ModelError(
                    f"expected a model with the SAE's hook {name!r}, got {self.model.cfg.model_name} without it."
                    f"{nearest(name, self.model.hook_dict)}"
                )
            check_takes_hook(self.model, name)

    def __repr__(self) -> str:
        architecture, name = self.sae.cfg.architecture(), self.model.cfg.model_name
        return f"HookedLM({name}, {architecture} {self.splice.place}, contexts of {self.cutter.context_size})"

    @property
    def sae(self) -> SAE[Any]:
        """Return the SAE."""
        return self.splice.sae

    def batches(self, table: TokenTable) -> list[Int[Tensor, "batch pos"]]:
        """Split a table into batches of tokens on the model's device.

        Args:
            table: the contexts.

        Raises:
            DataError: `table` is not a `TokenTable`.
        """
        if not isinstance(table, TokenTable):
            raise DataError(
                f"expected a TokenTable, got a {type(table).__name__}; give read_tokens(source, split, lm.cutter, 64)"
            )
        return [tokens.to(self.model.cfg.device) for tokens in table.tokens.split(self.batch_size)]

    def n_batches(self, table: TokenTable) -> int:
        """Return the number of `batches`.

        Args:
            table: the contexts.
        """
        return -(-len(table) // self.batch_size)

    def counted_batches(self, table: TokenTable) -> list[TokenBatch]:
        """Split a table into batches on the model's device.

        Args:
            table: the contexts.

        Returns:
            Tokens, a mask of the predictions that are counted, and the pieces of documents, for each batch.
        """
        return table.batches(self.cutter, self.batch_size, self.model.cfg.device)

    def masked(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Return the positions that statistics, gates and edits leave out: special tokens, padding, and the first position of each text.

        Args:
            tokens: contexts or prompts, `(batch, pos)`.
        """
        check_tokens(self.model, tokens)
        masked = self.cutter.masked(tokens)
        masked[:, 1:] |= self.left_padding(tokens)[:, :-1]
        return masked

    def left_padding(self, tokens: Int[Tensor, "batch pos"]) -> Bool[Tensor, "batch pos"]:
        """Return the padding on the left of prompts of different lengths (`ContextCutter.left_padding`).

        Args:
            tokens: prompts, `(batch, pos)`.
        """
        check_tokens(self.model, tokens)
        return self.cutter.left_padding(tokens)

    def attention_options(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Any]:
        """Return the options with which the model reads each padded prompt as if it were alone.

        Every method of this class passes them to the model. A direct call of the model needs them too:
        `lm.model(tokens, prepend_bos=False, **lm.attention_options(tokens))`.

        Args:
            tokens: prompts; shorter ones are padded on the left. Padding on the right needs no option.

        Returns:
            Keyword arguments for the model's calls; empty if no prompt is padded.

        Raises:
            DataError: `tokens` are not tokens of the model.
            ModelError: the model cannot leave padding out.
        """
        return attention_options(self.model, self.left_padding(tokens))

    @torch.no_grad()
    def activations(self, tokens: Int[Tensor, "batch pos"]) -> Tensor:
        """Run the model to the hook.

        Args:
            tokens: contexts, or prompts; shorter prompts are padded on the left, and each is read as if it were alone.

        Returns:
            The activations `(batch, pos, ...)` in the model's dtype, of a transcoder those at both hooks side by side; those of padding have
            no meaning.

        Raises:
            DataError: not tokens `(batch, pos)` of this model, or more positions than it reads.
            ModelError: the model does not run the hook, or runs a transcoder's hooks the other way round.
        """
        return self.splice.join(self._run_to(tokens, self.splice.hook_names))

    def _run_to(self, tokens: Int[Tensor, "batch pos"], names: Sequence[str]) -> dict[str, Tensor]:
        """Run the model to the last of some hooks; return the activations at each, in the order in which they ran."""
        options = self.attention_options(tokens)
        layers = [extract_stop_at_layer_from_tlens_hook_name(name) for name in names]
        _, cache = self.model.run_with_cache(
            tokens,
            names_filter=list(names),
            prepend_bos=False,
            stop_at_layer=None if None in layers else max(layer for layer in layers if layer is not None),
            **options,
        )
        for name in names:
            if name not in cache:
                raise never_ran(name, self.model)
        return dict(cache.items())

    def _read(self, tokens: Int[Tensor, "batch pos"], h: Tensor | None) -> Tensor:
        """Return activations from which features are computed: the given ones, or those at the hook that the SAE reads."""
        if h is not None:
            check_activations(self.model, tokens, h)
            return h
        return self._run_to(tokens, [self.splice.hook_name])[self.splice.hook_name]

    @torch.no_grad()
    def sae_input(self, tokens: Int[Tensor, "batch pos"], h: Tensor | None = None) -> Tensor:
        """Turn activations into the SAE's input, with walls at masked positions.

        Args:
            tokens: contexts or prompts.
            h: their activations at the hook, if already computed; None to run the model.
        """
        return zero_rows(self.splice.as_sae_input(self._read(tokens, h)), self.masked(tokens))

    @torch.no_grad()
    def target(self, tokens: Int[Tensor, "batch pos"], h: Tensor | None = None) -> Tensor:
        """Return what edits change, zero at masked positions: the SAE's input, or what is at the hook that a transcoder decodes.

        Args:
            tokens: contexts or prompts.
            h: their activations at the hook, if already computed; None to run the model.
        """
        if h is not None:
            check_activations(self.model, tokens, h)
        target = self.splice.as_target(self.activations(tokens) if h is None else h)
        return zero_rows(target, self.masked(tokens))

    @torch.no_grad()
    def feature_acts(self, tokens: Int[Tensor, "batch pos"], h: Tensor | None = None) -> Float[Tensor, "batch pos d_sae"]:
        """Compute the SAE's feature activations, which are 0 at masked positions.

        Args:
            tokens: contexts or prompts.
            h: their activations at the hook, if already computed; None to run the model.
        """
        return self.splice.feature_acts(self._read(tokens, h), self.masked(tokens))

    @property
    def _layer_after(self) -> int | None:
        """Return the first layer after the hook of edits, if it is a residual stream and the model can start there; None otherwise."""
        if isinstance(self.model, HookedBridge):
            return None
        match = _RESIDUAL.match(self.splice.decoded_hook_name)
        return None if match is None else int(match[1]) + (match[2] == "post")

    def logits_from(self, tokens: Int[Tensor, "batch pos"], h: Tensor) -> Float[Tensor, "batch pos d_vocab"]:
        """Compute the model's logits with the activations at the hook replaced by `h`; gradients flow back to `h`.

        Args:
            tokens: contexts or prompts, `(batch, pos)`.
            h: activations at the hook, `(batch, pos, ...)`.

        Returns:
            Logits `(batch, pos, d_vocab)`.

        Raises:
            ModelError: the model does not run the hook.
        """
        return self.lazy_logits_from(tokens, h).whole()

    def lazy_logits_from(self, tokens: Int[Tensor, "batch pos"], h: Tensor) -> LazyLogits:
        """Run the model with the activations at the hook replaced by `h`, up to the unembedding; gradients flow back to `h`.

        Unembedding dominates the cost of a small model, and logits dominate the memory if the vocabulary is large. Select the positions
        that are needed from the result before they are unembedded.

        Args:
            tokens: contexts or prompts, `(batch, pos)`.
            h: activations at the hook, `(batch, pos, ...)`.

        Returns:
            Logits `(batch, pos, d_vocab)` that are computed when they are needed.

        Raises:
            ModelError: the model does not run the hook.
        """
        check_activations(self.model, tokens, h)
        options, name, new = self.attention_options(tokens), self.splice.decoded_hook_name, self.splice.edited_part(h)
        if self._layer_after is not None:
            if len(self.splice.hook_names) > 1:
                new = new.to(self.model.cfg.dtype)  # both parts of h have the more precise dtype
            return lazy_logits(self.model, new, start_at_layer=self._layer_after, **options)
        n_calls = 0

        def put(before: Tensor, hook: Any) -> Tensor:
            nonlocal n_calls
            n_calls += 1
            return new.view_as(before).to(before.dtype)

        logits = lazy_logits(self.model, tokens, fwd_hooks=[(name, put)], prepend_bos=False, **options)
        if not n_calls:
            raise never_ran(name, self.model)
        return logits

    def generate(self, tokens: Int[Tensor, "batch pos"], edit: Edit | None = None, **options: Any) -> Any:
        """Continue prompts with an edit. The tokens are the same with and without the KV cache (`use_past_kv_cache`).

        Args:
            tokens: prompts; shorter ones are padded on the left (`ContextCutter.left_padding`, with `reads_prompts`).
            edit: the edit; None for no edit.
            options: the options of `HookedTransformer.generate`, such as `max_new_tokens`, `do_sample`, `temperature`.

        Returns:
            The prompts and their continuations, `(batch, pos + new)`.

        Raises:
            DataError: `tokens` are not tokens of the model, or a prompt is padded on the right or consists of padding only.
            ConfigError: `generate` does not have an option, or there are more tokens than the model's context holds.
            ModelError: `generate` does not run the hook, so an edit there would change nothing.
        """
        of_prompts = replace(self, cutter=replace(self.cutter, reads_prompts=True))
        padding = of_prompts.left_padding(tokens)
        check_prompts(self.cutter, tokens)
        if edit is None:
            return continue_tokens(self.model, tokens, padding, **options)
        streaming = StreamingEdit(self.splice, edit, of_prompts.masked(tokens))
        of_prompts.attention_options(tokens)  # raises for a model that cannot leave padding out, before the hook is added
        with self.model.hooks(fwd_hooks=streaming.hooks):
            continued = continue_tokens(self.model, tokens, padding, **options)
        if not streaming.was_called and options.get("max_new_tokens") != 0:
            raise ModelError(
                f"expected a hook that runs during generation, got {self.splice.decoded_hook_name}, where an edit changes nothing; train an "
                "SAE at blocks.0.hook_resid_pre or later"
            )
        return continued

    def check_generates(self) -> None:
        """Check, before any work is done, that edits of this SAE can be used in generation.

        Raises:
            ConfigError: the encoder reads later positions.
            ModelError: `generate` does not run the hook.
        """
        self.generate(torch.zeros(1, 1, dtype=torch.long), FeatureEdit(()), max_new_tokens=1, do_sample=False)


def fit_batch(lm: HookedLM, n_positions: int | None = None) -> HookedLM:
    """Return the same model with smaller batches, if the vocabulary or the SAE is so large that a batch would fill the memory.

    Logits are always computed in chunks; those of a batch of this size are few enough to be kept while edits are compared with them.

    Args:
        lm: the model with its SAE.
        n_positions: number of positions of the longest text in a batch; None for contexts of the SAE's training.
    """
    width = max(lm.model.cfg.d_vocab, lm.sae.cfg.d_sae)
    return replace(lm, batch_size=contexts_at_once(lm.batch_size, n_positions or lm.cutter.context_size, width))
