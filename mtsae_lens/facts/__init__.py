"""Declare, read and inspect the facts about features: the folder that `mtsae explore` writes, and its columns."""
