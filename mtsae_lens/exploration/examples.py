"""Find where chosen features fire most on a corpus, in memory, without a folder of facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.exploration.columns import TokenTexts
from mtsae_lens.exploration.corpora import TextBatch
from mtsae_lens.exploration.example_table import get_encoder_biases, make_example_table
from mtsae_lens.exploration.plan import Plan
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.facts.exploration import make_examples
from mtsae_lens.facts.records import Example
from mtsae_lens.progress import track
from mtsae_lens.sae.temporal_encoder import TemporalEncoder
from mtsae_lens.splice.feature_indices import check_features
from mtsae_lens.splice.hooked_lm import HookedLM


@dataclass(frozen=True)
class FeatureExamples:
    """The strongest activations of one feature on a corpus, one per context."""

    feature: int
    density: float  # share of tokens on which it fires
    n_tokens: int
    dilations: tuple[float, ...]  # dilations of the `scale_contributions` of examples; empty for a pointwise SAE
    examples: tuple[Example, ...]

    @property
    def main_scale(self) -> float | None:
        """Return the dilation that contributes most to the examples; None for a pointwise SAE, or if there is no example."""
        if not self.dilations or not self.examples:
            return None
        totals = [sum(values) for values in zip(*(example.scale_contributions for example in self.examples), strict=True)]
        return self.dilations[totals.index(max(totals))]


def top_examples(
    lm: HookedLM, table: TokenTable, features: Sequence[int], *, n_examples: int = 5, before: int = 20, after: int = 6
) -> list[FeatureExamples]:
    """Find the contexts in which each feature fires most. Memory does not grow with the corpus.

    Args:
        lm: model and SAE.
        table: the corpus to read.
        features: numbers of the features.
        n_examples: contexts per feature, at most.
        before: tokens shown before the peak.
        after: tokens shown after the peak.

    Returns:
        The examples of each feature, in the order of `features`.

    Raises:
        ConfigError: the SAE does not have one of the features.
    """
    check_features(features, lm.sae.cfg.d_sae)
    survey = Survey(lm, Plan(n_examples, 0, before, after, n_ablated=0, n_attributed=0), n_corpora=1)
    for number, tokens in enumerate(track(table.tokens.split(lm.batch_size), f"reading {table.corpus}", "batch")):
        first = number * lm.batch_size
        survey.add(TextBatch(number, 0, first, tokens, table.all_spans[first : first + len(tokens)]))
    texts = TokenTexts(lm.cutter.tokenizer, lm.model.cfg.d_vocab)
    rows = make_example_table(survey, torch.tensor(sorted(set(features)), dtype=torch.long), texts, get_encoder_biases(lm.sae))
    examples: dict[int, list[Example]] = {feature: [] for feature in features}
    for example in make_examples(rows):
        examples[example.feature].append(example)
    n_active, n_tokens = survey.counts.n_active_in_all, int(survey.counts.n_tokens.sum())
    dilations = tuple(lm.sae.dilations) if isinstance(lm.sae, TemporalEncoder) else ()
    return [
        FeatureExamples(feature, int(n_active[feature]) / max(n_tokens, 1), n_tokens, dilations, tuple(examples[feature]))
        for feature in features
    ]
