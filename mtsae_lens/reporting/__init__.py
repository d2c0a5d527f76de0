"""Turn records into self-contained pages. Nothing here knows about models or SAEs, only numbers and names."""
