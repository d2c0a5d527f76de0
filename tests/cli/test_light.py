"""Test in separate processes that help imports neither torch nor SAELens, and that the architecture is registered in any order of imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "sae_lens", "transformers", "transformer_lens", "datasets", "numpy")


def run(code: str | Path) -> str:
    words = [str(code)] if isinstance(code, Path) else ["-c", code]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--help"], ["unlearn-benchmark", "--help"]], ids=" ".join
)
def test_help_and_version_load_nothing_heavy(words: list[str]) -> None:
    shown = run(
        f"import sys\nsys.argv = ['mtsae', *{words}]\nfrom mtsae_lens.cli import main\ntry:\n    main()\nexcept SystemExit as stop:\n"
        f"    assert not stop.code\nprint('heavy:', [name for name in {HEAVY} if name in sys.modules])"
    )
    assert shown.splitlines()[-1] == "heavy: []"
    assert "mtsae" in shown


@pytest.mark.parametrize(
    "imports",
    [
        "import mtsae_lens; from sae_lens import SAE",
        "from sae_lens import SAE; import mtsae_lens",
        "import mtsae_lens.sae.config; from sae_lens import SAE",
        "import mtsae_lens.data.language_models; from sae_lens import SAE",
        "import mtsae_lens, importlib; from sae_lens import SAE; importlib.reload(mtsae_lens)",
    ],
)
def test_the_architecture_is_registered_whatever_is_imported_first(imports: str) -> None:
    code = (
        f"{imports}\nfrom sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY\n"
        "print(SAE_CLASS_REGISTRY['mtsae'][0].__name__, SAE_TRAINING_CLASS_REGISTRY['mtsae'][0].__name__)"
    )
    assert run(code) == "MTSAE MTTrainingSAE\n"


def test_the_architecture_is_registered_in_a_spawned_worker(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing\nimport mtsae_lens\nfrom sae_lens import SAE\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.apply(SAE.get_sae_class_for_architecture, ('mtsae',)).__name__)\n"
    )
    assert run(tmp_path / "script.py") == "MTSAE\n"


def test_names_of_the_package_are_listed_and_loaded_at_their_first_use() -> None:
    code = (
        "import sys, mtsae_lens\nassert 'torch' not in sys.modules\nnames = set(mtsae_lens.__all__)\nassert names <= set(dir(mtsae_lens))\n"
        "assert all(getattr(mtsae_lens, name).__name__ == name for name in names)\nfrom mtsae_lens import *\nprint(MTSAE.__name__, len(names))"
    )
    assert run(code) == "MTSAE 53\n"
