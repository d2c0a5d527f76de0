"""Repeat the paper and its failure from Python, as `mtsae paper` does: `python examples/reproduce_paper.py [--quick]`."""

import sys
from pathlib import Path

from mtsae_lens.experiments.paper.run import PaperSettings, run_paper

if __name__ == "__main__":
    settings = PaperSettings(out=Path("runs/paper"), quick="--quick" in sys.argv[1:])
    metrics, _ = run_paper(settings)
    print(f"{metrics['reproduction']['n_steps']} steps; report: {settings.out / 'report.html'}")
