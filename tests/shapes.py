"""Annotations of the package are checked while the tests run: types by beartype, shapes by jaxtyping."""

from __future__ import annotations

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

CHECKED = ("data", "evaluation", "splice", "unlearning", "sae")

check = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int where a float is expected, as PEP 484 has it


def install() -> None:
    """Check every module of these packages that is imported from now on."""
    install_import_hook([f"mtsae_lens.{name}" for name in CHECKED], "shapes.check")
