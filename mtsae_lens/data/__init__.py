"""Texts -> documents -> contexts of tokens -> hooked language model -> sequence activations. Knows no SAE."""
