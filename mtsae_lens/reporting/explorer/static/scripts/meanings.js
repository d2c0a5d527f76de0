// What each number means, in one line: shown as a title and in the legend.
(function () {
  "use strict";
  MT.meanings = {
    feature: "The feature's number: its row in the decoder.",
    top_token: "The commonest token at the peaks of its strongest examples.",
    promoted_tokens: "Tokens whose logits the feature's decoder direction raises most, read directly off the unembedding.",
    density: "Share of the tokens looked at on which the feature fires.",
    n_active: "How many tokens it fired on.",
    mean_activation: "Its mean activation where it fires.",
    max_activation: "Its strongest activation.",
    main_dilation: "The time scale that does most of the lifting; token alone reads no context.",
    context_share: "Share of the lift that comes from earlier tokens rather than the token itself.",
    mean_run_length: "Mean number of consecutive tokens for which it stays on.",
    selectivity: "log2 of its density in the first corpus over its highest density in any other.",
    ablation_next_nll:
      "Change of the next token's loss, in nats, when it is set to zero at the peaks of its strongest examples. Positive: it helped.",
    ablation_rest_nll: "The same for the mean loss of the tokens after the next one.",
    attribution: "First-order change of the corpus's loss, in nats per token, if it were removed everywhere.",
    scale_shares: "Each time scale's share of what lifts the pre-activation where the feature fires. Shares sum to 1.",
    kernel: "The same lift, told apart by the exact position that was read: how many tokens back.",
    persistence: "How often the feature still fires so many tokens later, given that it fires now.",
    cosine: "Cosine of the two decoder directions.",
    phi: "Phi coefficient of firing on the same tokens: 1 always together, 0 unrelated.",
    quantile: "Share of the feature's firings that are no stronger than this peak.",
    taps: "What the encoder read at each token, as a part of the pre-activation at the peak: exact.",
    model: "Gradient times input embedding of the pre-activation at the peak, back through the language model: first order.",
  };
})();
