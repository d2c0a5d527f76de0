"""Features of an MTSAE by the time scale that drives them: the token, the phrase or the sentence.

    lift_i(s) = E[c_si | e_i > 0] - E[c_si],        share_i(s) = lift_i(s) / sum_s' lift_i(s')

with `c_si` what scale s adds to the pre-activation of feature i (`scale_contributions`; with `b_enc` the scales sum to it exactly).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import track
from mtsae_lens.sae.contributions import tap_parts
from mtsae_lens.sae.lift import Lift
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.selection.evidence import FeatureScore, SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import only


@torch.no_grad()
def driven_by(lm: HookedLM, table: TokenTable) -> Float[Tensor, "d_sae n_scales"]:
    """Compute the share of each scale in what lifts each feature's pre-activation where it fires, beyond its mean over the corpus.

    Rows sum to 1; a share may be negative. All zero for a feature that never fires or is not lifted. One pass (`mtsae_lens.sae.lift`).

    Raises:
        ConfigError: an SAE without time scales.
    """
    lift = Lift(_temporal(lm))
    for tokens in track(lm.batches(table), f"finding scales on {table.corpus}", "batch"):
        h, kept = lm.activations(tokens), ~lm.masked(tokens)
        rows, features = (lm.feature_acts(tokens, h).flatten(0, 1) > 0).nonzero().unbind(dim=1)
        lift.add(tap_parts(lift.sae, lift.sae.process_sae_in(lm.sae_input(tokens, h))), kept, rows, features)
    return lift.scale_shares.float().to(lm.sae.device)


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
        """Keep the score where the summed share of the chosen scales on the forget corpus is at least `min_share`."""
        available = list(_temporal(evidence.lm).cfg.dilations)
        unknown = [dilation for dilation in self.dilations if dilation not in available]
        if unknown:
            raise ConfigError(f"the SAE has no scale of dilation {unknown[0]}; it has {', '.join(map(str, available))}")
        chosen = [place for place, dilation in enumerate(available) if dilation in self.dilations]
        share = driven_by(evidence.lm, evidence.forget)[:, chosen].sum(dim=1)
        return only(share >= self.min_share, self.score(evidence))
