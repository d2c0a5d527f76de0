"""Declare the columns of a folder of facts, one record class per table.

A field is a column: its annotation gives the type in the Parquet file, and its `Column` says what the value means. The Parquet schemas, the
explorer's legend and tooltips, and the tables of the documentation are all made from these declarations.

A field with a default may be absent from a folder that was written before the column existed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mtsae_lens.facts.columns import Column


@dataclass(frozen=True)
class FeatureFacts:
    """What is known about one feature. A value that does not exist, such as the maximum of a feature that never fired, is None or empty."""

    feature: Annotated[int, Column("Number of the feature: its row in the decoder.")]
    top_token: Annotated[
        str | None, Column("The most common token at the peaks of its strongest examples.", "Top token", in_list=True)
    ]
    promoted_tokens: Annotated[
        tuple[str, ...],
        Column(
            "Tokens whose logits the feature's decoder direction raises most, read directly off the unembedding.",
            "Promotes",
            detail="The gain of the last norm is applied, and the mean over the vocabulary is subtracted.",
            in_list=True,
        ),
    ]
    promoted_logits: Annotated[
        tuple[float, ...], Column("How much it raises the logits of these tokens, up to a constant factor.", neutral="0")
    ]
    suppressed_tokens: Annotated[
        tuple[str, ...], Column("Tokens whose logits the decoder direction lowers most.", "Suppresses")
    ]
    suppressed_logits: Annotated[
        tuple[float, ...], Column("How much it lowers the logits of these tokens, up to a constant factor.", neutral="0")
    ]
    density: Annotated[
        float,
        Column(
            "Share of the explored tokens on which the feature fires.",
            "Density",
            neutral="mean over all features: L0 / `d_sae`",
            shown_as="percent",
            in_list=True,
        ),
    ]
    n_active: Annotated[
        int,
        Column(
            "Number of explored tokens on which the feature fires.",
            "Fired on",
            neutral="0: never fired on this text",
            shown_as="count",
            in_list=True,
            n_bits=64,
        ),
    ]
    max_activation: Annotated[float | None, Column("Its highest activation.", "Max", shown_as="number", in_list=True)]
    mean_activation: Annotated[
        float | None, Column("Its mean activation over the tokens on which it fires.", "Mean", shown_as="number")
    ]
    histogram: Annotated[
        tuple[int, ...],
        Column(
            "Number of firings by activation. Both axes are logarithmic.",
            "Activations",
            detail="`histogram_edges` in `explore.json` holds the edges of the bins.",
            n_bits=64,
        ),
    ]
    corpus_density: Annotated[tuple[float, ...], Column("Its density in each corpus.", "Density by corpus")]
    main_dilation: Annotated[
        float | None,
        Column(
            "The time scale with the largest share of the lift. Token alone: the scale that reads no context.",
            "Time scale",
            neutral="0: token alone",
            shown_as="dilation",
            in_list=True,
        ),
    ]
    scale_shares: Annotated[
        tuple[float, ...],
        Column(
            "Share of the lift by time scale. The lift is what the encoder adds to the pre-activation when the feature fires, beyond what "
            "it adds on average. The shares sum to 1.",
            "Time scales",
            detail="A scale that holds the feature back has a negative share.",
            neutral="1, 0, 0, ...: no context",
            in_list=True,
        ),
    ]
    context_share: Annotated[
        float | None,
        Column(
            "Share of the lift that comes from earlier tokens, not from the current token.",
            "Context",
            detail="With an encoder that reads ahead, later tokens count too.",
            neutral="0: token alone; 1: context alone",
            shown_as="share",
            in_list=True,
        ),
    ]
    kernel: Annotated[
        tuple[float, ...],
        Column(
            "Share of the lift by the token that the encoder read: how many tokens back.",
            "Tokens back",
            detail="`offsets` in `explore.json` lists the positions.",
            neutral="1, 0, 0, ...: no context",
        ),
    ]
    mean_run_length: Annotated[
        float | None,
        Column(
            "Mean number of consecutive tokens on which it fires.",
            "Run length",
            neutral="1 / (1 - density), if firings were independent",
            shown_as="fixed",
            digits=2,
            in_list=True,
        ),
    ]
    persistence: Annotated[
        tuple[float | None, ...],
        Column(
            "How often the feature also fires a given number of tokens later, when it fires now.",
            "Staying on",
            detail="`persistence_lags` in `explore.json` lists the numbers of tokens. A value is missing where no firing has a token that "
            "far behind it.",
            neutral="its density",
        ),
    ]
    selectivity: Annotated[
        float | None,
        Column(
            "log2 of its density in the first corpus over its highest density in any other corpus.",
            "Selectivity",
            detail="Half a count is added to each. It is missing if there is one corpus.",
            neutral="0: equally dense; +1: twice as dense",
            shown_as="signed",
            digits=1,
            in_list=True,
        ),
    ]
    ablation_next_nll: Annotated[
        float | None,
        Column(
            "Change of the next token's loss, in nats, when the feature is set to zero: the mean over a few peaks, which may differ widely. "
            "Positive: the feature helped.",
            "Ablation, next",
            detail="The peaks are those of its strongest examples. The error term is kept, and the measurement is exact.",
            neutral="0",
            shown_as="signed",
            digits=3,
            in_list=True,
        ),
    ]
    ablation_rest_nll: Annotated[
        float | None,
        Column(
            "Change of the mean loss of the tokens after the next one, in nats, when the feature is set to zero at the same peaks.",
            "Ablation, rest",
            neutral="0",
            shown_as="signed",
            digits=3,
        ),
    ]
    n_ablated: Annotated[int, Column("Number of peaks in the two means of the ablation.")]
    attribution: Annotated[
        float | None,
        Column(
            "First-order change of the loss, in nats per token of the text, if the feature were removed everywhere. Positive: it helps.",
            "Attribution",
            neutral="0",
            shown_as="signedNumber",
            digits=2,
        ),
    ]
    neighbours: Annotated[
        tuple[int, ...],
        Column(
            "Features whose decoder directions have the highest cosine with this one.",
            "Nearest decoder directions",
        ),
    ]
    neighbour_cosines: Annotated[
        tuple[float, ...],
        Column(
            "Cosine of the two decoder directions.",
            neutral="the nearest of 1,024 random directions in 128 dimensions: 0.28",
        ),
    ]
    cofiring: Annotated[
        tuple[int, ...],
        Column(
            "Features that fire on the same tokens, with the phi coefficient: 1 always together, 0 unrelated.",
            "Fires together with",
            detail="Measured on about 100,000 tokens.",
        ),
    ]
    cofiring_scores: Annotated[
        tuple[float, ...], Column("Phi coefficient of firing on the same tokens.", neutral="0: unrelated; 1: always together")
    ]
    next_persistence: Annotated[
        float | None,
        Column(
            "Persistence: how often it also fires at the next token, when it fires now.",
            "Stays on",
            detail="The first entry of `persistence`.",
            neutral="its density",
            shown_as="share",
            in_list=True,
        ),
    ] = None
    next_persistence_control: Annotated[
        float | None,
        Column(
            'How often it fires at the next position of another text, when it fires at this position of this one. Only what "Stays on" has '
            "beyond that is due to the text.",
            "Stays on elsewhere",
            detail="The other text is the next context of the batch. It is missing if every batch has one context.",
            neutral="`next_persistence`: the position alone decides",
            shown_as="share",
        ),
    ] = None
    carried_over: Annotated[
        float | None,
        Column(
            "How much of what the feature adds to the output at a token is added again at the next one, by a decoder with memory: the ratio "
            "of the two norms.",
            "Carried over",
            detail="The first entry of `impulse_response`. It is missing if the decoder has no memory.",
            neutral="0: nothing",
            shown_as="share",
            in_list=True,
        ),
    ] = None
    impulse_response: Annotated[
        tuple[float, ...] | None,
        Column(
            "How long one firing lasts in the output of a decoder with memory: norm of what it adds a given number of tokens later, over the "
            "norm of what it adds at its own token.",
            "Impulse response",
            detail="`impulse_lags` in `explore.json` lists the numbers of tokens. The past ends at special tokens and at tokens without an "
            "active feature.",
            neutral="0: nothing is carried over",
        ),
    ] = None


@dataclass(frozen=True)
class Example:
    """One firing of a feature, with the tokens around it."""

    feature: Annotated[int, Column("Number of the feature.")]
    kind: Annotated[str, Column("`top` for the strongest firings, `sampled` for firings drawn uniformly from all of them.")]
    rank: Annotated[int, Column("Place among the examples of its kind, from the highest activation down.")]
    corpus: Annotated[int, Column("Number of the corpus in the list of `explore.json`.")]
    document: Annotated[str, Column("Document of the peak's token.")]
    position: Annotated[int, Column("Position of the peak in its context.")]
    tokens: Annotated[tuple[str, ...], Column("Text of the tokens around the peak.")]
    activations: Annotated[tuple[float, ...], Column("Activation of the feature at each of these tokens.")]
    peak: Annotated[int, Column("Index of the peak in `tokens`.")]
    bias: Annotated[float | None, Column("Encoder bias `b_enc` of the feature, if the SAE has one.")]
    hidden_pre: Annotated[float, Column("Pre-activation at the peak.")]
    scale_contributions: Annotated[
        tuple[float, ...],
        Column("Part of that pre-activation by time scale: with the bias, the parts sum to it. Empty for a pointwise SAE."),
    ]
    offset_contributions: Annotated[
        tuple[float, ...],
        Column("Part of the pre-activation at the peak that the encoder read from each token. The parts are exact."),
    ]
    token_scale_contributions: Annotated[
        tuple[float, ...],
        Column("Part by time scale at every token, token by token; NaN where the feature does not fire."),
    ]
    model_attribution: Annotated[
        tuple[float, ...],
        Column(
            "Gradient times input embedding of the pre-activation at the peak, for each token, through the language model: a first-order "
            "estimate."
        ),
    ]


@dataclass(frozen=True)
class TextFacts:
    """One context of the text view."""

    corpus: Annotated[int, Column("Number of the corpus in the list of `explore.json`.")]
    document: Annotated[str, Column("Document in which the context begins.")]
    tokens: Annotated[tuple[str, ...], Column("Text of its tokens.")]
    features: Annotated[tuple[tuple[int, ...], ...], Column("The strongest features of each token, the strongest first.")]
    activations: Annotated[tuple[tuple[float, ...], ...], Column("The activations of these features.")]
    nll: Annotated[
        tuple[float | None, ...], Column("Loss of each token given the tokens before it, in nats; missing for the first.")
    ]
