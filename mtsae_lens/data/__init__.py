"""Read text, cut it into contexts of tokens, and compute activations with a hooked language model. Nothing here depends on the SAEs."""
