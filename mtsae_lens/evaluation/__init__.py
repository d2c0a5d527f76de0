"""How good an SAE is, on text that it was not trained on."""
