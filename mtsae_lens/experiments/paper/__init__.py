"""Repeat the paper's own run, and measure which of its settings made the difference: `mtsae paper`."""
