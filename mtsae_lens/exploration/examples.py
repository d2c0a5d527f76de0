"""Where features fire most, with the tokens around and what each scale contributed."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import torch

from mtsae_lens.data.contexts import TokenTable
from mtsae_lens.sae.contributions import scale_contributions
from mtsae_lens.sae.mtsae import TemporalEncoder
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True)
class Example:
    """One activation: the tokens up to and around it, each token's activation of the feature, and the scales' share at the peak."""

    tokens: tuple[str, ...]
    activations: tuple[float, ...]
    peak: int  # index into `tokens`
    scale_contributions: dict[int, float]  # dilation -> share of the pre-activation, bias aside; empty for a pointwise SAE


@dataclass(frozen=True)
class FeatureExamples:
    """The strongest activations of one feature on a corpus, one per context."""

    feature: int
    density: float  # share of tokens at which it fires
    n_tokens: int
    examples: tuple[Example, ...]

    @property
    def main_scale(self) -> int | None:
        """The dilation that contributes most to the examples; None for a pointwise SAE."""
        totals: dict[int, float] = {}
        for example in self.examples:
            for dilation, value in example.scale_contributions.items():
                totals[dilation] = totals.get(dilation, 0.0) + value
        return max(totals, key=totals.__getitem__) if totals else None


@torch.no_grad()
def top_examples(
    lm: HookedLM, table: TokenTable, features: Sequence[int], *, n_examples: int = 5, before: int = 20, after: int = 6
) -> list[FeatureExamples]:
    """The `n_examples` contexts in which each feature is strongest; memory does not grow with the corpus.

    Args:
        lm: model and SAE.
        table: the corpus to look through.
        features: indices of features.
        n_examples: contexts per feature.
        before: tokens shown before the peak.
        after: tokens shown after it.
    """
    index = torch.tensor(list(features), device=lm.sae.device)
    heaps: list[list[tuple[float, int, Example]]] = [[] for _ in features]
    fired = torch.zeros(len(features), device=lm.sae.device)
    n_tokens, order = 0, count()
    for tokens in lm.batches(table):
        masked = lm.masked(tokens)
        h = lm.activations(tokens)
        acts = lm.feature_acts(tokens, h)[..., index]
        fired += (acts > 0).sum(dim=(0, 1))
        n_tokens += int((~masked).sum())
        contributions = None
        if isinstance(lm.sae, TemporalEncoder):
            contributions = scale_contributions(lm.sae, lm.sae_input(tokens, h), index)
        peaks, positions = acts.max(dim=1)
        for row in range(tokens.shape[0]):
            for place in range(len(features)):
                value, position = peaks[row, place].item(), int(positions[row, place])
                heap = heaps[place]
                if value <= 0 or (len(heap) == n_examples and value <= heap[0][0]):
                    continue
                start, end = max(0, position - before), min(tokens.shape[1], position + after + 1)
                shares: dict[int, float] = {}
                if contributions is not None:
                    values = contributions[row, position, :, place].tolist()
                    shares = dict(zip(lm.sae.cfg.dilations, values, strict=True))
                example = Example(
                    tokens=tuple(str(lm.cutter.tokenizer.decode([token])) for token in tokens[row, start:end].tolist()),
                    activations=tuple(acts[row, start:end, place].tolist()),
                    peak=position - start,
                    scale_contributions=shares,
                )
                push = heapq.heappushpop if len(heap) == n_examples else heapq.heappush
                push(heap, (value, next(order), example))
    return [
        FeatureExamples(
            feature,
            fired[place].item() / max(n_tokens, 1),
            n_tokens,
            tuple(e for _, _, e in sorted(heaps[place], reverse=True)),
        )
        for place, feature in enumerate(features)
    ]
