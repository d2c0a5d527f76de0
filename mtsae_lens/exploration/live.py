"""Read a typed text through model and SAE, and explain which features fire and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.prompts import encode_prompt
from mtsae_lens.data.vocabularies import token_texts
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.exploration.firings import BatchReading, read_batch
from mtsae_lens.sae.lift import encoder_by_scale
from mtsae_lens.splice.feature_indices import check_features
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True)
class Contributions:
    """Exact decomposition of a pre-activation: the scales and the bias sum to it, and so do the offsets and the bias."""

    hidden_pre: float
    bias: float | None
    scales: dict[float, float]  # by dilation; empty for a pointwise SAE
    offsets: dict[int, float]


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """The tokens of a text, the features that fire on each token, and the loss of each token."""

    tokens: tuple[str, ...]
    feature_acts: Float[Tensor, "pos d_sae"]
    nll: Float[Tensor, " pos"]  # loss of each token given the tokens before it, in nats; NaN for the first
    reading: BatchReading
    lm: HookedLM

    def __repr__(self) -> str:
        n_firing = int((self.feature_acts > 0).any(dim=0).sum())
        return f"TextFeatures({len(self.tokens)} tokens, {n_firing} of {self.feature_acts.shape[1]} features fire: {''.join(self.tokens)!r})"

    def strongest(self, position: int, n: int = 8) -> list[tuple[int, float]]:
        """Return the features that fire most on a token, with their activations.

        Args:
            position: index of the token.
            n: how many features, at most.
        """
        values, features = self.feature_acts[position].topk(min(n, self.feature_acts.shape[1]))
        return [(f, v) for f, v in zip(features.tolist(), values.tolist(), strict=True) if v > 0]

    def strongest_anywhere(self, n: int = 8) -> list[tuple[int, float]]:
        """Return the features that fire most anywhere in the text, with their highest activations.

        Args:
            n: how many features, at most.
        """
        values, features = self.feature_acts.amax(dim=0).topk(min(n, self.feature_acts.shape[1]))
        return [(f, v) for f, v in zip(features.tolist(), values.tolist(), strict=True) if v > 0]

    def activations(self, feature: int) -> list[float]:
        """Return the activation of a feature on every token.

        Args:
            feature: number of the feature.

        Raises:
            ConfigError: the SAE has no such feature.
        """
        check_features([feature], self.feature_acts.shape[1])
        return self.feature_acts[:, feature].tolist()

    def contributions(self, feature: int, position: int) -> Contributions:
        """Compute what each scale and each offset adds to a feature's pre-activation on a token, whether or not it fires there.

        Args:
            feature: number of the feature.
            position: index of the token.

        Raises:
            ConfigError: the SAE has no such feature, or the text no such token.
        """
        check_features([feature], self.feature_acts.shape[1])
        if not 0 <= position < len(self.tokens):
            raise ConfigError(
                f"expected a position between 0 and {len(self.tokens) - 1}, got {position}; give the index of a token"
            )
        hidden_pre = self.reading.hidden_pre[0, position, feature].item()
        b_enc = getattr(self.lm.sae, "b_enc", None)
        bias = None if b_enc is None else b_enc[feature].item()
        sae = self.reading.temporal
        if sae is None or self.reading.z is None:
            return Contributions(hidden_pre, bias, {}, {})
        W_enc = encoder_by_scale(sae)[:, feature]
        scales = (self.reading.z[0, position] * W_enc).sum(dim=-1).tolist()
        offsets = dict.fromkeys(sae.read_offsets, 0.0)
        for part in self.reading.parts:
            offsets[sae.read_offsets[part.place]] += (part.vector[0, position] @ W_enc[part.scale]).item()
        return Contributions(hidden_pre, bias, dict(zip(sae.dilations, scales, strict=True)), offsets)


@torch.no_grad()
def explain(lm: HookedLM, text: str) -> TextFeatures:
    """Run a text through model and SAE.

    Args:
        lm: model and SAE.
        text: the text, at most one context long.

    Returns:
        The tokens, with the features that fire on each and its loss.

    Raises:
        DataError: the text is empty, or longer than a context.
    """
    ids = encode_prompt(lm.cutter, text)
    if len(ids) < 2:
        raise DataError("expected at least one token after the first position, got none; give a longer text")
    if len(ids) > lm.cutter.context_size:
        raise DataError(
            f"expected at most {lm.cutter.context_size} tokens, the context size of the SAE, got {len(ids)}; give a shorter one"
        )
    tokens = torch.tensor([ids], device=lm.model.cfg.device)
    h = lm.activations(tokens)
    reading = read_batch(lm, tokens, h)
    nll = lm.lazy_logits_from(tokens, h)[:, :-1].nll(tokens[:, 1:])
    nll = torch.nn.functional.pad(nll, (1, 0), value=torch.nan)[0]
    texts = tuple(token_texts(lm.cutter.tokenizer, tokens[0].tolist()))
    return TextFeatures(texts, reading.feature_acts[0].float().cpu(), nll.float().cpu(), reading, lm)
