"""Other people's tools: one module for each partner, thin, and each says what of an SAE it can and cannot carry."""
