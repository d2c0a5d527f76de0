"""What `cache.py` and `ranks.py` share: the options of the trainings that they time, and how they report repeats."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mtsae_lens.commands.cache_settings import CacheSettings
from mtsae_lens.training.settings import TrainSettings


def add_options(parser: argparse.ArgumentParser, architecture: str, batch_size_tokens: int, out: str) -> None:
    """Add the options of a training, with these defaults."""
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--hook-name", default="blocks.3.hook_resid_post")
    parser.add_argument("--dataset", default="embedded")
    parser.add_argument("--architecture", default=architecture)
    parser.add_argument("--tokens", type=int, default=163_840)
    parser.add_argument("--batch-size-tokens", type=int, default=batch_size_tokens)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(out))


def make_settings(args: argparse.Namespace, out: Path, k: int | None = None, **changes: Any) -> TrainSettings:
    """Make the settings of one training, without checkpoints and with few rows in its log."""
    return TrainSettings(
        model=args.model,
        hook_name=args.hook_name,
        dataset=args.dataset,
        architecture=args.architecture,
        d_sae=args.d_sae,
        training_tokens=args.tokens,
        batch_size_tokens=args.batch_size_tokens,
        checkpoint_every_n_steps=10**6,
        log_every_n_steps=100,
        sae={"k": args.k if k is None else k},
        out=out,
        **changes,
    )


def make_cache_settings(args: argparse.Namespace, out: Path) -> CacheSettings:
    """Make the settings of the cache that these trainings read."""
    return CacheSettings(model=args.model, hook_name=(args.hook_name,), dataset=args.dataset, n_tokens=args.tokens, out=out)


def print_row(name: str, values: Sequence[float]) -> None:
    """Print median, lowest and highest of the repeats as a row of a table."""
    print(f"| {name} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |")


def write_results(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Write the settings and the results as JSON."""
    args.out.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: str(value) for name, value in vars(args).items() if name != "out"}
    args.out.write_text(json.dumps({"settings": settings} | content, indent=1) + "\n")
