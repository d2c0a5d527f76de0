"""The architecture: temporal front end, losses, inference and training classes. Knows no language model and no text."""

import sae_lens  # noqa: F401 - first, so that the architecture is registered before a module of this package is half loaded
