"""Features of an MTSAE by the time scale that drives them: the token, the phrase or the sentence.

    lift_i(s) = E[c_si | e_i > 0] - E[c_si],        share_i(s) = lift_i(s) / sum_s' lift_i(s')

with `c_si` what scale s adds to the pre-activation of feature i (`scale_contributions`; with `b_enc` the scales sum to it exactly).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.selection.evidence import FeatureScore, SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import only


@torch.no_grad()
def driven_by(lm: HookedLM, table: TokenTable) -> Float[Tensor, "d_sae n_scales"]:
    """Of what lifts each feature's pre-activation where it fires, beyond its mean over the corpus, the share of each scale.

    Rows sum to 1; a share may be negative. All zero for a feature that never fires or is not lifted. One pass; memory of `W_enc`: since
    contributions are linear in `z_s`, summing `z_s` over the positions where a feature fires is enough.

    Raises:
        ConfigError: an SAE without time scales.
    """
    sae = _temporal(lm)
    at_active = torch.zeros_like(_by_scale(sae), dtype=torch.float64, device="cpu")
    total = torch.zeros(at_active.shape[:2], dtype=torch.float64)
    fired, n_tokens = torch.zeros(sae.cfg.d_sae, dtype=torch.float64), 0
    for tokens in lm.batches(table):
        h, kept = lm.activations(tokens), ~lm.masked(tokens)
        fires = (lm.feature_acts(tokens, h)[kept] > 0).to(h)
        z = sae.encode_scales(sae.process_sae_in(lm.sae_input(tokens, h)))[kept]
        at_active += torch.einsum("tsd,tf->sdf", z, fires).double().cpu()
        total += z.sum(dim=0).double().cpu()
        fired += fires.sum(dim=0).double().cpu()
        n_tokens += int(kept.sum())
    beyond_mean = at_active / fired.clamp(min=1) - (total / max(n_tokens, 1)).unsqueeze(-1)
    lift = (beyond_mean * _by_scale(sae).double().cpu()).sum(dim=1)
    whole = lift.sum(dim=0)
    share = torch.where((fired > 0) & (whole > 0), lift / whole, 0.0)
    return share.T.float().to(sae.device)


def _by_scale(sae: TemporalEncoder) -> Float[Tensor, "n_scales d_in d_sae"]:
    return rearrange(sae.W_enc.detach(), "(scale d_in) d_sae -> scale d_in d_sae", scale=len(sae.cfg.dilations))


def _temporal(lm: HookedLM) -> TemporalEncoder:
    if not isinstance(lm.sae, TemporalEncoder):
        raise ConfigError(
            f"a {lm.sae.cfg.architecture()!r} SAE reads one position, so its features have no time scales; train one with --architecture mtsae"
        )
    return lm.sae


@dataclass(frozen=True)
class FromScales:
    """Any score, restricted to features driven by chosen scales.

    `FromScales(Attribution(), dilations=(4, 8), min_share=0.5)` takes features of which at least half the lift comes from the two longest
    scales; dilation 0 is the token alone. With learned dilations a scale is named by the dilation that it began with.

    Raises:
        ConfigError: (when called) an SAE without time scales, or without one of these.
    """

    score: FeatureScore
    dilations: tuple[int, ...]
    min_share: float = 0.5

    @property
    def name(self) -> str:
        """Name of the score and its scales."""
        return f"{self.score.name} from scales {', '.join(map(str, self.dilations))}"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """The score where the summed share of the chosen scales on the forget corpus is at least `min_share`."""
        available = list(_temporal(evidence.lm).cfg.dilations)
        unknown = [dilation for dilation in self.dilations if dilation not in available]
        if unknown:
            raise ConfigError(f"the SAE has no scale of dilation {unknown[0]}; it has {', '.join(map(str, available))}")
        chosen = [place for place, dilation in enumerate(available) if dilation in self.dilations]
        share = driven_by(evidence.lm, evidence.forget)[:, chosen].sum(dim=1)
        return only(share >= self.min_share, self.score(evidence))
