"""Test that the lowest allowed versions are read from pyproject.toml."""

from __future__ import annotations

import tomllib

from tools.versions import ROOT, TESTS, lowest_versions, pinned_torch


def test_a_lower_bound_becomes_the_version() -> None:
    requirements = ["numpy>=1.26", "sae-lens>=6.54,<7", "torch>=2.9", "tool", "name[extra] >= 0.5.1 ; python_version > '3'"]
    assert lowest_versions(requirements) == ["numpy==1.26", "sae-lens==6.54", "name==0.5.1"]


def test_every_dependency_has_a_lower_bound() -> None:
    """A dependency without one would not be tested at its lowest version."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert len(lowest_versions(dependencies)) == len(dependencies) - 1
    assert pinned_torch().startswith("torch==")


def test_the_tests_of_the_seam_exist() -> None:
    assert all((ROOT / test).is_file() for test in TESTS)
