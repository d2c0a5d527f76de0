"""Wrap a language model in half precision such that SAELens's `run_evals` reads its outputs in float32.

`run_evals` computes losses, KL, norms and means in the dtype of the model's outputs. In bfloat16, a loss or the mean of a thousand
norms has only two significant digits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.precision import in_float32, log_probs_of
from mtsae_lens.splice.attribution import token_nll


class Float32Readout:
    """A model in half precision whose outputs are cast to float32, for the three ways in which `run_evals` calls a model.

    Args:
        model: the language model, which computes in its own dtype.
    """

    def __init__(self, model: AnyHookedModel) -> None:
        self.model = model
        self.tokenizer = model.tokenizer

    def __call__(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> tuple[Tensor, Tensor]:
        """Compute the logits and their loss.

        Args:
            tokens: contexts, `(batch, pos)`.
            **options: options of the model's call.
        """
        return self.run_with_hooks(tokens, fwd_hooks=[], **options)

    def run_with_hooks(
        self,
        tokens: Int[Tensor, "batch pos"],
        *,
        fwd_hooks: Sequence[Any],
        return_type: str,
        loss_per_token: bool,
        **options: Any,
    ) -> tuple[Float[Tensor, "batch pos d_vocab"], Tensor]:
        """Compute logits and loss with hooks, which read activations in the model's own dtype.

        Args:
            tokens: contexts, `(batch, pos)`.
            fwd_hooks: the hooks.
            return_type: ignored; logits and loss are always returned.
            loss_per_token: whether the loss is returned per token, `(batch, pos - 1)`, or as its mean.
            **options: options of the model's call.

        Returns:
            Logits `(batch, pos, d_vocab)`, and the loss in nats.
        """
        logits = in_float32(self.model.run_with_hooks(tokens, fwd_hooks=list(fwd_hooks), return_type="logits", **options))
        nll = token_nll(log_probs_of(logits[:, :-1]), tokens[:, 1:])
        return logits, nll if loss_per_token else nll.mean()

    def run_with_cache(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return activations by the name of their hook.

        Args:
            tokens: contexts, `(batch, pos)`.
            **options: options of the model's call; `names_filter` lists the hooks.

        Returns:
            The model's output, and the activations.
        """
        output, cache = self.model.run_with_cache(tokens, **options)
        return output, {name: in_float32(cache[name]) for name in options["names_filter"]}
