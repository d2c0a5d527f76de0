"""Wrap a language model such that SAELens's `run_evals` reads losses and divergences computed in chunks of positions, in float32.

`run_evals` keeps the logits of three forward passes of a batch and copies them about ten times, and it computes in the dtype of the model's
outputs: in bfloat16, a loss or the mean of a thousand norms has only two significant digits. This readout computes the losses itself, and
also the KL divergences from the clean pass, for which `run_evals` is then not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.lazy_logits import LazyLogits, in_chunks, kl_divergence, lazy_logits, token_nll
from mtsae_lens.data.precision import in_float32, log_probs_of

_PASSES = (
    "kl_div_with_sae",
    "kl_div_with_ablation",
)  # the order in which `run_evals` makes its passes with hooks after a clean one


class ChunkedReadout:
    """A model for the three ways in which `run_evals` calls one: losses computed in chunks, and activations cast to float32.

    Args:
        model: the language model, which computes in its own dtype.
        unmark: returns the tokens that the model reads for those that it is given; by default the same.
    """

    def __init__(self, model: AnyHookedModel, unmark: Callable[[Tensor], Tensor] = lambda tokens: tokens) -> None:
        self.model, self._unmark = model, unmark
        self.tokenizer = model.tokenizer
        self._clean: LazyLogits | None = None
        self._kl: dict[str, list[Float[Tensor, "batch pos"]]] = {name: [] for name in _PASSES}

    def __call__(
        self, tokens: Int[Tensor, "batch pos"], *, return_type: str, loss_per_token: bool, **options: Any
    ) -> tuple[None, Tensor]:
        """Compute the loss of the clean pass, with which later passes are compared.

        Args:
            tokens: contexts, `(batch, pos)`.
            return_type: ignored; the loss is always returned.
            loss_per_token: whether the loss is returned per token, `(batch, pos - 1)`, or as its mean.
            **options: options of the model's call.

        Returns:
            None in place of logits, and the loss in nats.
        """
        tokens = self._unmark(tokens)
        self._clean = lazy_logits(self.model, tokens, **options).as_log_probs().remembered()
        nll = in_chunks(token_nll, [self._clean], _targets(tokens))[:, :-1]
        return None, nll if loss_per_token else nll.mean()

    def run_with_hooks(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        fwd_hooks: Sequence[Any],
        return_type: str,
        loss_per_token: bool,
        **options: Any,
    ) -> tuple[None, Tensor]:
        """Compute the loss with hooks, which read activations in the model's own dtype, and keep the divergence from the clean pass.

        Args:
            tokens: contexts, `(batch, pos)`.
            fwd_hooks: the hooks.
            return_type: ignored; the loss is always returned.
            loss_per_token: whether the loss is returned per token, `(batch, pos - 1)`, or as its mean.
            **options: options of the model's call.

        Returns:
            None in place of logits, and the loss in nats.
        """
        assert self._clean is not None
        tokens = self._unmark(tokens)
        changed = lazy_logits(self.model, tokens, fwd_hooks=fwd_hooks, **options)
        nll, kl = in_chunks(_nll_and_divergence, [self._clean, changed], _targets(tokens)).unbind(dim=-1)
        n_passes = [len(self._kl[name]) for name in _PASSES]
        self._kl[_PASSES[n_passes[0] > n_passes[1]]].append(kl)
        return None, nll[:, :-1] if loss_per_token else nll[:, :-1].mean()

    def run_with_cache(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return activations by the name of their hook.

        Args:
            tokens: contexts, `(batch, pos)`.
            **options: options of the model's call; `names_filter` lists the hooks.

        Returns:
            The model's output, and the activations.
        """
        output, cache = self.model.run_with_cache(self._unmark(tokens), **options)
        return output, {name: in_float32(cache[name]) for name in options["names_filter"]}

    def divergences(self, kept: Sequence[Tensor]) -> dict[str, float]:
        """Return what `run_evals` calls `kl_div_with_sae`, `kl_div_with_ablation` and `kl_div_score`.

        Args:
            kept: for each batch, True for the positions that count, `(batch, pos)`.
        """
        means = {
            name: torch.cat([kl[mask.to(kl.device)] for kl, mask in zip(parts, kept, strict=True)]).mean().item()
            for name, parts in self._kl.items()
        }
        with_sae, with_ablation = (means[name] for name in _PASSES)
        score = (with_ablation - with_sae) / with_ablation if with_ablation else float("nan")
        return {"kl_div_score": score} | means


def _targets(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Return the token that each position predicts; the last position predicts nothing, and gets any token."""
    return torch.nn.functional.pad(tokens[:, 1:], (0, 1))


def _nll_and_divergence(
    clean: Float[Tensor, "n d_vocab"], changed: Float[Tensor, "n d_vocab"], targets: Int[Tensor, " n"]
) -> Float[Tensor, "n 2"]:
    """Compute the loss of the changed model and `KL(clean || changed)` of each position, in nats, from clean log-probabilities."""
    log_probs = log_probs_of(changed)
    return torch.stack([token_nll(log_probs, targets), kl_divergence(clean, log_probs)], dim=-1)
