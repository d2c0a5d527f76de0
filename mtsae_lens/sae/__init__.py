"""Define the architecture: temporal front end, losses, inference and training classes. Nothing here depends on language models or text."""

import sae_lens  # noqa: F401 - first, so that the architecture is registered before a module of this package is half loaded
