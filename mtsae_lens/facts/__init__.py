"""Facts of features: the folder that `mtsae explore` writes, its columns, and the one reader of it."""
