"""Repeat the paper and its failure from Python, as `mtsae paper` does: `python examples/reproduce_paper.py [--quick]`."""

import sys
from pathlib import Path

from mtsae_lens.experiments.paper.run import run_paper
from mtsae_lens.experiments.paper.settings import PaperSettings

if __name__ == "__main__":
    settings = PaperSettings(out=Path("runs/paper"), quick="--quick" in sys.argv[1:])
    result, _ = run_paper(settings)
    assert result.reproduction is not None
    print(f"{result.reproduction.n_steps} steps; report: {settings.out / 'report.html'}")
