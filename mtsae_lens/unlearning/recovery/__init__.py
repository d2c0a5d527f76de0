"""Attack a model with an edit in place, by perturbing the residual stream at the hook."""
