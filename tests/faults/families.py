"""List every family of trials."""

from __future__ import annotations

from faults import bad_activations, bad_commands, bad_records, bad_settings, bad_texts, damage, kills, pairs
from faults.runner import Family

FAMILIES: tuple[Family, ...] = (
    *kills.FAMILIES,
    *damage.FAMILIES,
    *pairs.FAMILIES,
    *bad_commands.FAMILIES,
    *bad_settings.FAMILIES,
    *bad_records.FAMILIES,
    *bad_texts.FAMILIES,
    *bad_activations.FAMILIES,
)


def select(patterns: list[str]) -> list[Family]:
    """Return the families whose name begins with one of the patterns, or all families if there are no patterns."""
    return [family for family in FAMILIES if not patterns or any(family.name.startswith(pattern) for pattern in patterns)]
