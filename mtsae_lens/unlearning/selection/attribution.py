"""Measure exactly how ablating one feature changes the loss on a corpus; `mtsae_lens.splice.attribution` is the first-order
approximation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.effects import measure_edits


def single_feature_effects(
    lm: HookedLM, table: TokenTable, features: Sequence[int], multiplier: float = 0.0, *, carried: bool = False
) -> Float[Tensor, " feature"]:
    """Measure, feature by feature, the `nll_delta` of `FeatureEdit((i,), multiplier, carried=carried)` without a gate.

    The layers after the hook run once for each feature, on the contexts in which it fires.

    Args:
        lm: the model with its SAE.
        table: the text.
        features: indices of the features.
        multiplier: strength of the edit; 0 sets the feature to zero.
        carried: whether the decoder of an SAE with memory carries the edit on.

    Returns:
        One value per feature, in nats per counted token.
    """
    effects = measure_edits(lm, table, [FeatureEdit((feature,), multiplier, carried=carried) for feature in features])
    return torch.tensor([effect.nll_delta for effect in effects], device=lm.sae.device)
