"""Measure how well SAEs recover planted features of known time scales: `mtsae planted`."""
