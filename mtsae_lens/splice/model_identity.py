"""Recognize a language model by its predictions.

They are the same for every implementation of a model (bridge or not, converted weights or not, any device), nearly the same in every dtype,
and different for other weights. A digest of config and weights has none of these properties but the last: it would refuse the same model
behind a bridge, in another dtype, or saved in other files.

The difference between two models is the mean difference of their log-probabilities over a fixed row of tokens. Measured: 0.0000 nats between
a `HookedTransformer` and a bridge; 0.002 and 0.010 between float32 and float16, 0.019 and 0.080 between float32 and bfloat16 (the embedded
model and SmolLM2-135M); 1.67 between the embedded model and the one retrained without a text; 0.28 after 20 steps of finetuning SmolLM2 with
a learning rate of 1e-5, but only 0.017 after a single step. So a change of the weights that small is not noticed, nor is a larger one if one of
the two models is in bfloat16.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field

N_TOKENS = 16
_TOLERANCE = {
    "float32": 0.02,
    "float64": 0.02,
    "float16": 0.05,
}  # nats; at least three times the differences measured between dtypes
_BFLOAT16_TOLERANCE = 0.25

Finite = Annotated[float, Field(allow_inf_nan=False)]


class ModelIdentity(BaseModel):
    """The name of a language model, and the log-probabilities that it assigns to a fixed row of tokens."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")

    name: str
    dtype: str
    tokens: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=2, max_length=1024)
    log_probs: tuple[Finite, ...]

    def difference(self, model: Any) -> float | None:
        """Compare a model with this one.

        Args:
            model: a language model with hooks.

        Returns:
            The mean difference in log-probability, in nats, if it is larger than between two implementations of one model, or infinity if
            the model cannot read the tokens; else None.
        """
        if max(self.tokens) >= model.cfg.d_vocab or len(self.tokens) > model.cfg.n_ctx:
            return float("inf")
        given = _log_probs(model, list(self.tokens))
        if len(given) != len(self.log_probs):
            return float("inf")
        differences = [abs(ours - theirs) for ours, theirs in zip(given, self.log_probs, strict=True)]
        mean = sum(differences) / len(differences)
        dtypes = (self.dtype, str(model.cfg.dtype).removeprefix("torch."))
        tolerance = max(_TOLERANCE.get(dtype, _BFLOAT16_TOLERANCE) for dtype in dtypes)
        return None if mean <= tolerance else mean


def identify(model: Any) -> ModelIdentity:
    """Record the identity of a language model with hooks, from one forward pass over a few tokens.

    Args:
        model: a language model with hooks.
    """
    tokens = [(7919 * place + 13) % model.cfg.d_vocab for place in range(min(N_TOKENS, model.cfg.n_ctx))]
    dtype = str(model.cfg.dtype).removeprefix("torch.")
    return ModelIdentity(
        name=model.cfg.model_name, dtype=dtype, tokens=tuple(tokens), log_probs=tuple(_log_probs(model, tokens))
    )


@torch.no_grad()
def _log_probs(model: Any, tokens: list[int]) -> list[float]:
    row = torch.tensor([tokens], device=model.cfg.device)
    log_probs = model(row)[0].float().log_softmax(dim=-1)
    found = log_probs[:-1].gather(-1, row[0, 1:, None].to(log_probs.device)).flatten()
    return [round(value, 5) for value in found.clamp(min=-1e4).tolist()]
