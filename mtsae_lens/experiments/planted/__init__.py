"""Recovery of planted features of known time scales: `mtsae planted`."""
