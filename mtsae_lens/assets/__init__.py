"""Files that ship with the package: the embedded language models, their texts and their people."""

from pathlib import Path

from mtsae_lens.errors import ModelError, nearest

ASSETS_DIR = Path(__file__).parent
EMBEDDED_MODELS = ("embedded", "embedded-retrained")
TEXTS_FILE = ASSETS_DIR / "texts.parquet"
PEOPLE_FILE = ASSETS_DIR / "people.json"


def embedded_model_dir(name: str) -> Path:
    """Return the folder of an embedded language model, in Hugging Face layout.

    Args:
        name: `embedded` or `embedded-retrained`.

    Raises:
        ModelError: there is no embedded model of this name.
    """
    if name not in EMBEDDED_MODELS:
        raise ModelError(f"expected an embedded model, got {name!r}.{nearest(name, EMBEDDED_MODELS)}")
    return ASSETS_DIR / name
