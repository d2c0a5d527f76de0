"""Evaluate an SAE on text that it was not trained on."""
