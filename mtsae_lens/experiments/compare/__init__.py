"""Compare architectures of SAEs over sparsity, from one cache of activations: `mtsae compare`."""
