"""The whole package can be imported under beartype: every annotation is one that a type checker at run time understands."""

from __future__ import annotations

import subprocess
import sys

IMPORT_ALL = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")
from beartype import BeartypeConf
from beartype.claw import beartype_package
beartype_package("mtsae_lens", conf=BeartypeConf(is_pep484_tower=True))
import mtsae_lens
for _, name, _ in pkgutil.walk_packages(mtsae_lens.__path__, "mtsae_lens."):
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len([name for name in sys.modules if name.startswith("mtsae_lens")]))
"""


def test_every_module_can_be_imported_under_beartype() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 150
