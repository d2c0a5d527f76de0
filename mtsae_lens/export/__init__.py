"""Export edited models: with the edit attached by a hook, or with weights that imitate it."""
