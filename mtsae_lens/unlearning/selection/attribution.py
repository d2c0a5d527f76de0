"""What ablating one feature really does to the loss on a corpus: the exact counterpart of `mtsae_lens.splice.attribution`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.effects import measure_edits


def single_feature_effects(
    lm: HookedLM, table: TokenTable, features: Sequence[int], multiplier: float = 0.0
) -> Float[Tensor, " feature"]:
    """Measure feature by feature the `nll_delta` of `FeatureEdit((i,), multiplier)` everywhere, in nats per counted token.

    One rerun of the later layers for each feature, on the contexts in which it fires.
    """
    effects = measure_edits(lm, table, [FeatureEdit((feature,), multiplier) for feature in features])
    return torch.tensor([effect.nll_delta for effect in effects], device=lm.sae.device)
