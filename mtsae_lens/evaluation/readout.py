"""A language model in half precision as SAELens's `run_evals` should read it: what it gives, in float32.

`run_evals` takes losses, KL, norms and means in the numbers that a model gives. The mean of a thousand norms in bfloat16 has two digits, and so
has a loss.
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
    """The three ways in which `run_evals` calls a model, and its tokenizer; the model itself computes as ever."""

    def __init__(self, model: AnyHookedModel) -> None:
        self.model = model
        self.tokenizer = model.tokenizer

    def __call__(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> tuple[Tensor, Tensor]:
        """Compute the logits and their loss."""
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
        """Compute the same with hooks, which see the model's own dtype."""
        logits = in_float32(self.model.run_with_hooks(tokens, fwd_hooks=list(fwd_hooks), return_type="logits", **options))
        nll = token_nll(log_probs_of(logits[:, :-1]), tokens[:, 1:])
        return logits, nll if loss_per_token else nll.mean()

    def run_with_cache(self, tokens: Int[Tensor, "batch pos"], **options: Any) -> tuple[Any, dict[str, Tensor]]:
        """Return activations by the name of their hook."""
        output, cache = self.model.run_with_cache(tokens, **options)
        return output, {name: in_float32(cache[name]) for name in options["names_filter"]}
