"""The architecture: temporal front end, losses, inference and training classes. Knows no language model and no text."""
