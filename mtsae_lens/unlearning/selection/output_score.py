"""Score features by what they make the model predict, not by what activates them (Arad et al. 2025, arXiv 2505.20063).

For each feature, the logit lens gives the tokens that its decoder row promotes most. Then the feature is amplified at the last position
of neutral prompts, and

    output score = (1 - r / d_vocab) * p,   r, p = best rank (from 0) and highest probability of those tokens afterwards

averaged over prompts. It lies between 0 and 1; near 1, the feature makes the model predict what its decoder row promotes.

There are three differences to the paper. The amplification is `factor` times the feature's own mean activation where it fires on the
forget corpus; the paper uses 10 times the largest activation of any feature at that position. Several prompts are used, of which the
paper's is the first. Biases are left out of the lens, so that it ranks what the feature writes and not what is frequent in general.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtsae_lens.data.lazy_logits import LazyLogits, in_chunks
from mtsae_lens.data.precision import in_float32
from mtsae_lens.data.prompts import encode_prompt
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import track
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.selection.evidence import FeatureScore, SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import FrequencyRatio, keep_eligible

NEUTRAL_PROMPTS = ("From my experience,", "I think that", "It is")
N_LENS_TOKENS = 20  # as in the paper
_WRITES_TO_RESIDUAL = re.compile(r"blocks\.\d+\.hook_(resid_(pre|mid|post)|attn_out|mlp_out)$")


@torch.no_grad()
def lens_tokens(lm: HookedLM, n_tokens: int = N_LENS_TOKENS) -> Int[Tensor, "d_sae n_tokens"]:
    """Find for each feature the tokens whose logits its decoder row raises most, through the final norm and the unembedding, without
    biases.

    Args:
        lm: the model with its SAE.
        n_tokens: tokens per feature.

    Returns:
        Token ids `(d_sae, n_tokens)`, the most promoted first.

    Raises:
        ConfigError: the decoder rows are not directions of the residual stream.
    """
    if not _WRITES_TO_RESIDUAL.match(lm.splice.decoded_hook_name) or lm.sae.cfg.metadata.hook_head_index is not None:
        raise ConfigError(
            f"expected an SAE on the residual stream for the logit lens, got one at {lm.splice.decoded_hook_name}; choose features by another "
            "score, such as 'attribution'"
        )
    rows = lm.sae.W_dec.detach()[None].to(lm.model.cfg.dtype)
    raised, zero = (
        LazyLogits(lm.model.ln_final(h)[0], lm.model.unembed, lm.model.cfg.d_vocab)
        for h in (rows, torch.zeros_like(rows[:, :1]))
    )
    floor = in_float32(zero.whole())
    return in_chunks(lambda logits: (in_float32(logits) - floor).topk(n_tokens, dim=-1).indices, [raised])


@torch.no_grad()
def output_scores(
    lm: HookedLM,
    amounts: Float[Tensor, " d_sae"],
    *,
    prompts: tuple[str, ...] = NEUTRAL_PROMPTS,
    n_lens_tokens: int = N_LENS_TOKENS,
    features_at_once: int = 256,
) -> Float[Tensor, " d_sae"]:
    """Compute the output score of every feature; see the module docstring for the formula.

    Args:
        lm: the model with its SAE at a hook of the residual stream.
        amounts: amount added to each feature's activation, `(d_sae,)`.
        prompts: neutral texts; the intervention is at the last token of each.
        n_lens_tokens: number of lens tokens per feature.
        features_at_once: contexts per batch, which bounds the memory.

    Returns:
        One score per feature, between 0 and 1.

    Raises:
        ConfigError: see `lens_tokens`.
    """
    promised = lens_tokens(lm, n_lens_tokens)
    scores = torch.zeros_like(amounts)
    for prompt in prompts:
        tokens = _prompt_tokens(lm, prompt)
        h = lm.activations(tokens)
        feature_acts = lm.feature_acts(tokens, h)
        groups = torch.arange(len(amounts), device=amounts.device).split(features_at_once)
        for features in track(groups, "amplifying features", "group"):
            logits = _amplified_logits(lm, tokens, h, feature_acts, features, amounts[features])
            scores[features] += in_chunks(_rank_weighted_probability, [logits], promised[features]) / len(prompts)
    return scores


def _prompt_tokens(lm: HookedLM, prompt: str) -> Int[Tensor, "1 pos"]:
    return torch.tensor([encode_prompt(lm.cutter, prompt, "a neutral prompt")], dtype=torch.long, device=lm.model.cfg.device)


def _amplified_logits(
    lm: HookedLM,
    tokens: Int[Tensor, "1 pos"],
    h: Tensor,
    feature_acts: Float[Tensor, "1 pos d_sae"],
    features: Int[Tensor, " feature"],
    amounts: Float[Tensor, " feature"],
) -> LazyLogits:
    """Give the logits after the last token, with one feature amplified there in each row."""
    edited = feature_acts.repeat(len(features), 1, 1)
    edited[torch.arange(len(features)), -1, features] += amounts
    delta = lm.splice.sae_state(h, feature_acts).decode_change(edited)
    at_end = torch.zeros(len(features), tokens.shape[1], dtype=torch.bool, device=tokens.device)
    at_end[:, -1] = True
    many = h.expand(len(features), *h.shape[1:])
    return lm.lazy_logits_from(tokens.expand(len(features), -1), lm.splice.add_delta(many, delta, at_end))[:, -1]


def _rank_weighted_probability(
    logits: Float[Tensor, "feature d_vocab"], promised: Int[Tensor, "feature n_tokens"]
) -> Float[Tensor, " feature"]:
    """Compute `(1 - best rank / d_vocab) * highest probability`; the most likely of the tokens has both."""
    probability = in_float32(logits).softmax(dim=-1)
    best = probability.gather(-1, promised).amax(dim=-1)
    rank = (probability > best.unsqueeze(-1)).sum(dim=-1)
    return (1 - rank / logits.shape[-1]) * best


@dataclass(frozen=True)
class OutputScore:
    """The output score, for features that another score finds eligible, because it does not depend on the forget text itself.

    By default, features that fire at least as often on the forget corpus as on every retain corpus are eligible.
    """

    eligible: FeatureScore = field(default_factory=lambda: FrequencyRatio(min_ratio=1.0))
    factor: float = 10.0
    """Amplification, as a multiple of the feature's mean activation where it fires on the forget corpus."""
    prompts: tuple[str, ...] = NEUTRAL_PROMPTS

    name = "output_score"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Score the features by `output_scores`.

        Args:
            evidence: SELECT text of the corpora.
        """
        amounts = self.factor * evidence.forget_statistics.mean_activation
        return keep_eligible(self.eligible(evidence) > -torch.inf, output_scores(evidence.lm, amounts, prompts=self.prompts))
