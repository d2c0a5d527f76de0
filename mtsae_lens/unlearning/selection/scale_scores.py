"""Choose features of an MTSAE by the time scale that drives them: the token, the phrase or the sentence.

    lift_i(s) = E[c_si | e_i > 0] - E[c_si],    share_i(s) = lift_i(s) / sum_s' lift_i(s')

where `c_si` is what scale s adds to the pre-activation of feature i (`scale_contributions`; the scales and `b_enc` sum to it exactly).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import track
from mtsae_lens.sae.contributions import tap_parts
from mtsae_lens.sae.lift import Lift
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.selection.evidence import FeatureScore, SelectionEvidence
from mtsae_lens.unlearning.selection.frequency_scores import keep_eligible


@torch.no_grad()
def driven_by(lm: HookedLM, table: TokenTable) -> Float[Tensor, "d_sae n_scales"]:
    """Compute the share of each scale in a feature's lift: what it adds to the pre-activation where the feature fires, beyond its mean
    over the corpus.

    It takes one pass over the text (`mtsae_lens.sae.lift`).

    Args:
        lm: the model with an MTSAE.
        table: the text.

    Returns:
        Shares `(d_sae, n_scales)`. Rows sum to 1, and a share may be negative. A row is zero if the feature never fires or has no lift.

    Raises:
        ConfigError: the SAE has no time scales.
    """
    lift = Lift(_temporal(lm))
    for tokens in track(lm.batches(table), f"finding scales on {table.corpus}", "batch"):
        h, kept = lm.activations(tokens), ~lm.masked(tokens)
        rows, features = (lm.feature_acts(tokens, h).flatten(0, 1) > 0).nonzero().unbind(dim=1)
        lift.add(tap_parts(lift.sae, *lift.sae.read_contexts(lm.sae_input(tokens, h))), kept, rows, features)
    return lift.scale_shares.float().to(lm.sae.device)


def _temporal(lm: HookedLM) -> TemporalEncoder:
    if not isinstance(lm.sae, TemporalEncoder):
        raise ConfigError(
            f"expected an SAE with time scales, got a {lm.sae.cfg.architecture()!r} SAE, which reads one position; train one with "
            "--architecture mtsae"
        )
    return lm.sae


@dataclass(frozen=True)
class FromScales:
    """Any score, restricted to features that are driven by chosen scales.

    `FromScales(Attribution(), dilations=(4, 8), min_share=0.5)` keeps features with at least half of their lift from the scales of
    dilation 4 and 8. Dilation 0 is the token alone. With learned dilations, a scale is named by its initial dilation.

    Args:
        score: the score to restrict.
        dilations: dilations of the scales.
        min_share: smallest summed share of these scales in a feature's lift.

    Raises:
        ConfigError: (when called) the SAE has no time scales, or lacks one of these.
    """

    score: FeatureScore
    dilations: tuple[int, ...]
    min_share: float = 0.5

    @property
    def name(self) -> str:
        """Return the name of the score and its scales."""
        return f"{self.score.name} from scales {', '.join(map(str, self.dilations))}"

    def __call__(self, evidence: SelectionEvidence) -> Float[Tensor, " d_sae"]:
        """Keep the score of features for which the chosen scales have a summed share of at least `min_share` on the forget corpus.

        Args:
            evidence: SELECT text of the corpora.
        """
        available = list(_temporal(evidence.lm).cfg.dilations)
        unknown = [dilation for dilation in self.dilations if dilation not in available]
        if unknown:
            raise ConfigError(
                f"expected dilations out of {', '.join(map(str, available))}, got {unknown[0]}; give dilations of this SAE"
            )
        chosen = [place for place, dilation in enumerate(available) if dilation in self.dilations]
        share = driven_by(evidence.lm, evidence.forget)[:, chosen].sum(dim=1)
        return keep_eligible(share >= self.min_share, self.score(evidence))
