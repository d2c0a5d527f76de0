"""Change a model through an SAE: edits of features, and the gates that decide where they apply."""
