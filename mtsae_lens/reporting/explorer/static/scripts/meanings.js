// What each number means, in one line: shown as a title and in the legend.
(function () {
  "use strict";
  const meanings = {
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
      "Change of the next token's loss, in nats, when it is set to zero: the mean of a few peaks, which may differ widely. Positive: it helped.",
    ablation_rest_nll: "The same for the mean loss of the tokens after the next one.",
    attribution: "First-order change of the corpus's loss, in nats per token, if it were removed everywhere.",
    scale_shares: "Each time scale's share of what lifts the pre-activation where the feature fires. Shares sum to 1.",
    kernel: "The same lift, told apart by the exact position that was read: how many tokens back.",
    persistence: "How often the feature still fires so many tokens later, given that it fires now.",
    cosine: "Cosine of the two decoder directions.",
    phi: "Phi coefficient of firing on the same tokens: 1 always together, 0 unrelated.",
    quantile: "Where this peak stands among all firings of the feature, read off their histogram.",
    taps: "What the encoder read at each token, as a part of the pre-activation at the peak: exact.",
    model: "Gradient times input embedding of the pre-activation at the peak, back through the language model: first order.",
  };

  // As the list and a feature's page call them, for the help.
  const NAMES = {
    "Top token": "top_token", Promotes: "promoted_tokens", Density: "density", "Fired on": "n_active", Max: "max_activation", Mean: "mean_activation",
    "Time scale": "main_dilation", Scales: "scale_shares", Context: "context_share", "Tokens back": "kernel", "Run, run length": "mean_run_length",
    "Staying on": "persistence", Selectivity: "selectivity", "Ablation, next": "ablation_next_nll", "Ablation, rest": "ablation_rest_nll",
    Attribution: "attribution",
  };

  MT.meanings = meanings;
  MT.glossary = Object.entries(NAMES).map(([name, field]) => [name, meanings[field]]);
})();
