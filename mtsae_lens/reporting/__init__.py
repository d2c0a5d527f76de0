"""Records in, self-contained pages out. Knows numbers and names only: no model, no SAE."""
