"""Test the seam to SAELens and TransformerLens on the lowest and on the newest versions that pyproject.toml allows.

`python -m tools.versions` makes a virtual environment for each under `.cache/versions/`, installs the package there, and runs the tests of the
seam in it. `lowest` gives every dependency the version after its `>=`; that pip can install them together shows that the bounds are right.
torch is the one of constraints.txt in both: it is large, and its lower versions have wheels for few platforms.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".cache" / "versions"
TESTS = (
    "tests/integration/test_upstream.py",
    "tests/integration/test_saelens.py",
    "tests/export/test_hooked.py",  # the stand-alone loader reads the KV cache of transformers
)
TEST_TOOLS = ("pytest", "hypothesis", "beartype")
_NOT_TESTED = ("dev", "docs", "notebook", "lm-eval")  # extras that no test of the seam needs
_BOUND = re.compile(r"^\s*([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9][^,;\s]*)")


def lowest_versions(requirements: list[str]) -> list[str]:
    """Turn lower bounds into exact versions.

    Args:
        requirements: as in pyproject.toml, such as `numpy>=1.26,<3`.

    Returns:
        `name==version` for each requirement that has a lower bound, torch left out.
    """
    bounds = [match for match in map(_BOUND.match, requirements) if match]
    return [f"{match[1]}=={match[2]}" for match in bounds if match[1] != "torch"]


def pinned_torch() -> str:
    """Return torch's line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def check_versions(which: str) -> int:
    """Make a virtual environment with the lowest or the newest versions and run the tests of the seam in it.

    Args:
        which: `lowest` or `newest`.

    Returns:
        The exit code of pip, if it fails, else of the tests.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name: needs for name, needs in project.get("optional-dependencies", {}).items() if name not in _NOT_TESTED}
    pins = [pinned_torch()]
    if which == "lowest":
        pins += lowest_versions(project["dependencies"] + [need for needs in extras.values() for need in needs])
    environment = FOLDER / which
    venv.create(environment, with_pip=True, clear=True)
    constraints = environment / "constraints.txt"
    constraints.write_text("\n".join(pins) + "\n", encoding="utf-8")
    python = str(environment / "bin" / "python")
    package = f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", str(constraints)]
    for command in (
        [*pip, pinned_torch()],
        [*pip, "-e", package, *TEST_TOOLS],
        [python, "-m", "pip", "list", "--disable-pip-version-check"],
        [python, "-m", "pytest", "-W", "default", *TESTS],  # other versions may warn of what goes
    ):
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        if code:
            return code
    return 0


def main() -> int:
    """Test the versions that are named on the command line; without a name, both."""
    parser = argparse.ArgumentParser(prog="python -m tools.versions", description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=("lowest", "newest", "both"), nargs="?", default="both")
    which = parser.parse_args().which
    codes = {name: check_versions(name) for name in ("lowest", "newest") if which in (name, "both")}
    for name, code in codes.items():
        print(f"{name}: {'passed' if code == 0 else f'failed with exit code {code}'}")
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
