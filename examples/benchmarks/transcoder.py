"""Measure what context gives a transcoder: pointwise, temporal, and temporal with the past of another context, beside a table of token means.

    mtsae cache --hook-name blocks.0.hook_resid_pre --hook-name blocks.0.hook_resid_post --hook-name blocks.3.hook_attn_out \\
        --hook-name blocks.3.hook_resid_post --n-tokens 400_000 --out runs/transcoder-cache
    python examples/benchmarks/transcoder.py --cache runs/transcoder-cache --out runs/transcoder.json

Another model needs a cache of it, and `--pair FROM TO` for each pair of hooks. All arms have the same k, and are trained from one cache on the
same rows in the same order. The table of token means is fitted on the tokens of the cache. Everything is measured on TEST. Finished arms are
kept in the output file, and the same command goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from mtsae_lens import (
    ActivationCache,
    ContextCutter,
    MTTrainingTranscoder,
    MTTrainingTranscoderConfig,
    load_language_model,
    load_sae,
    read_tokens,
)
from mtsae_lens.data.activation_cache import CachedActivations
from mtsae_lens.data.massive import massive_positions, norm_limit
from mtsae_lens.evaluation.token_means import TokenMeans
from mtsae_lens.evaluation.transcoding import evaluate_transcoder
from mtsae_lens.files import write_json
from mtsae_lens.training.fit import fit
from mtsae_lens.training.options import TrainerOptions

PAIRS = (
    ("blocks.0.hook_resid_pre", "blocks.3.hook_attn_out"),
    ("blocks.0.hook_resid_post", "blocks.3.hook_attn_out"),
    ("blocks.0.hook_resid_pre", "blocks.3.hook_resid_post"),
)
ARMS = ("pointwise", "temporal", "another past")
SHOWN = ("explained_variance_without_massive", "ce_loss_score", "l0", "dead_features", "explained_variance_with_another_past")
_CONTEXTS_AT_ONCE = 64


@dataclass(frozen=True)
class OfAnotherPast(CachedActivations):
    """Rows whose reads of other positions are of another context of the block, at the same positions.

    It is half a block away, because neighbors in the text may be of one document.
    """

    @override
    def mixed(self, first_step: int = 0, gather: Any = None, *args: Any, **kwargs: Any) -> Iterator[Tensor]:
        widths = kwargs["widths"]

        def crossed(h: Tensor, masked: Tensor) -> Callable[[Tensor], Tensor]:
            own, other = gather(h, masked), gather(h.roll(len(h) // 2, dims=0), masked.roll(len(h) // 2, dims=0))

            def rows(places: Tensor) -> Tensor:
                found = own(places)
                found[:, widths[0] : -widths[1]] = other(places)[:, widths[0] : -widths[1]]
                return found

            return rows

        return super().mixed(first_step, crossed, *args, **kwargs)


def train(cache: ActivationCache, pair: tuple[str, str], arm: str, args: argparse.Namespace, seed: int) -> MTTrainingTranscoder:
    """Train one arm."""
    contents = cache.contents
    torch.manual_seed(seed)
    cfg = MTTrainingTranscoderConfig(
        d_in=contents.hooks[pair[0]],
        d_out=contents.hooks[pair[1]],
        d_sae=args.d_sae,
        k=args.k,
        context_size=contents.context_size,
        normalize_activations="expected_average_only_in",
        **({"dilations": (0,)} if arm == "pointwise" else args.temporal),
    )
    cfg.metadata.hook_name, cfg.metadata.hook_name_out = pair
    sae = MTTrainingTranscoder(cfg)
    batch_size_tokens = 512
    n_steps = args.tokens // batch_size_tokens
    stream = (OfAnotherPast if arm == "another past" else CachedActivations)(
        cache,
        pair,
        batch_size_tokens // contents.context_size,
        block_size_batches=160,
        seed=seed,
        text_seed=contents.seed,
        n_batches=n_steps,
    )
    fit(
        sae,
        stream,
        n_steps=n_steps,
        batch_size_tokens=batch_size_tokens,
        lr=args.lr,
        lr_warm_up_steps=n_steps // 20,
        lr_end=args.lr / 20,
        options=TrainerOptions(log_every_n_steps=100),
    )
    return sae


def fit_means(cache: ActivationCache, hook_name: str) -> TokenMeans:
    """Fit the mean of every token on all positions of the cache."""
    n_contexts, limit = cache.contents.n_contexts, None
    means = TokenMeans(cache.tokens(range(n_contexts)), cache.contents.hooks[hook_name])
    for first in range(0, n_contexts, _CONTEXTS_AT_ONCE):
        contexts = range(first, min(first + _CONTEXTS_AT_ONCE, n_contexts))
        y, kept = cache.read(hook_name, contexts).float(), ~cache.masked(contexts)
        limit = norm_limit(y[kept]) if limit is None else limit
        kept &= ~massive_positions(y, limit)
        means.add(cache.tokens(contexts)[kept], y[kept])
    return means


def main() -> None:
    """Train and measure all arms that are not in the output file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/transcoder.json"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--pair", nargs=2, action="append", metavar=("FROM", "TO"), help="hooks; by default three pairs of the embedded model"
    )
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--d-sae", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--n-contexts", type=int, default=96)
    parser.add_argument(
        "--temporal", type=json.loads, default={}, help='settings of the temporal arms, such as {"context_gain": 1.0}'
    )
    args = parser.parse_args()
    torch.set_num_threads(1)

    cache = ActivationCache.open(args.cache)
    contents = cache.contents
    model = load_language_model(contents.model_name)
    cutter = ContextCutter(model.tokenizer, contents.context_size, contents.prepend_bos, not contents.disable_concat_sequences)
    test = read_tokens(contents.dataset_path, "test", cutter, args.n_contexts)
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for pair in map(tuple, args.pair or PAIRS):
        means = None
        for seed in args.seeds:
            for arm in args.arms:
                name = f"{pair[0]} -> {pair[1]}, {arm}, seed {seed}"
                if name not in results:
                    means = means or fit_means(cache, pair[1])
                    folder = args.out.with_suffix("") / f"{'-to-'.join(pair)}-{arm.replace(' ', '-')}-{seed}"
                    train(cache, pair, arm, args, seed).save_inference_model(folder)
                    results[name] = evaluate_transcoder(load_sae(folder), model, cutter, test, means)  # type: ignore[arg-type]
                    write_json(args.out, results)
                row = results[name]
                print(
                    name,
                    *(f"{key} {row[key]:.4f}" for key in (*SHOWN, "explained_variance_of_token_table") if key in row),
                    flush=True,
                )


if __name__ == "__main__":
    main()
