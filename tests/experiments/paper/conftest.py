from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.experiments.paper.setup import PaperSetup


@pytest.fixture(scope="session")
def setup(tiny_model: Any, tiny_model_dir: Path, text_file: Path) -> PaperSetup:
    """The tiny model and text in the place of the paper's."""
    return PaperSetup(tiny_model, str(tiny_model_dir), "blocks.0.hook_resid_post", str(text_file), context_size=32)
