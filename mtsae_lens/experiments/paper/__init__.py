"""The paper's own run repeated, and which of its settings made the difference: `mtsae paper`."""
