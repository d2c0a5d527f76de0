"""Find out what every feature of an SAE does: one pass over text, ablations, attributions, and typed text in a notebook."""
