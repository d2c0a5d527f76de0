"""SAEBench's core and sparse probing on trained SAEs, offline: its own functions, on the embedded model and local text.

    JAXTYPING_DISABLE=1 python examples/saebench/run.py runs/demo/mtsae runs/demo/topk --out runs/saebench.json

SAEBench's runners load models and data sets from the hub by name. So this calls the functions below them: `evals.core.main.run_evals` with a
store of local tokens, and `evals.sparse_probing.main.run_eval_single_dataset` with a local data set registered in the place of a named one
(the domain of a text, one against the others). Without JAXTYPING_DISABLE, SAEBench's own annotations of probe training contradict each other
under current versions of jaxtyping and beartype.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import sae_bench.evals.core.main as core
import sae_bench.evals.sparse_probing.main as probing
import torch
from sae_bench.evals.core.eval_config import CoreEvalConfig
from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig
from sae_bench.sae_bench_utils import dataset_info, dataset_utils

from mtsae_lens.data.documents import Split
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import DataError
from mtsae_lens.evaluation.fidelity import HeldOutTokens
from mtsae_lens.files import write_json
from mtsae_lens.interop.saebench import SAEBenchAdapter
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.hooked_lm import HookedLM

DOMAINS = ("kjv", "milton", "shakespeare", "sotu")


def run_core(adapter: SAEBenchAdapter, lm: HookedLM, n_contexts: int) -> dict[str, Any]:
    """Fidelity, sparsity and densities on held-out text of several domains."""
    tokens = torch.cat([read_tokens(domain, "test", lm.cutter, n_contexts // len(DOMAINS)).tokens for domain in DOMAINS])
    store = HeldOutTokens(TokenTable("mixed", tokens, ("",) * len(tokens)), 16)
    config = CoreEvalConfig(
        batch_size_prompts=16,
        n_eval_reconstruction_batches=store.n_batches,
        n_eval_sparsity_variance_batches=store.n_batches,
        exclude_special_tokens_from_reconstruction=True,
        compute_kl=True,
        compute_ce_loss=True,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=False,  # an MTSAE's encoder has other rows
    )
    with adapter.special_tokens_as_walls(lm.model):
        scalars, densities = core.run_evals(
            adapter, store, lm.model, config, ignore_tokens=set(lm.cutter.special_token_ids.tolist())
        )
    dead = sum(density == 0 for density in densities["feature_density"])
    return {name: value for group in scalars.values() for name, value in group.items()} | {"dead_features": dead}


def local_texts(lm: HookedLM, n_train: int, n_test: int) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Passages of each domain, as SAEBench holds a data set: texts by class."""

    def passages(domain: str, split: Split, n: int) -> list[str]:
        tokens = read_tokens(domain, split, lm.cutter, n).tokens
        return [lm.cutter.tokenizer.decode(row[1:], skip_special_tokens=True) for row in tokens]

    train = {domain: passages(domain, "train", n_train) for domain in DOMAINS}
    return train, {domain: passages(domain, "test", n_test) for domain in DOMAINS}


def run_probing(adapter: SAEBenchAdapter, lm: HookedLM, n_train: int, n_test: int, context_length: int) -> dict[str, float]:
    """Sparse probes for the domain of a text: accuracy with the best 1, 2 and 5 features."""
    data = local_texts(lm, n_train, n_test)
    dataset_info.chosen_classes_per_dataset["local"] = list(DOMAINS)
    dataset_utils.get_multi_label_train_test_data = lambda *_: data
    tokenizer = lm.model.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # padding is special, and so a wall
    config = SparseProbingEvalConfig(
        model_name=adapter.cfg.model_name,
        dataset_names=["local"],
        probe_train_set_size=n_train,
        probe_test_set_size=n_test,
        context_length=context_length,
        llm_batch_size=16,
        llm_dtype="float32",
        k_values=[1, 2, 5],
    )
    torch.manual_seed(config.random_seed)
    with tempfile.TemporaryDirectory() as artifacts:
        results, _ = probing.run_eval_single_dataset(
            "local", config, adapter, lm.model, adapter.cfg.hook_layer, adapter.cfg.hook_name, "cpu", artifacts, False
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("saes", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n-contexts", type=int, default=64)
    parser.add_argument("--n-train", type=int, default=100)
    parser.add_argument("--n-test", type=int, default=50)
    parser.add_argument("--context-length", type=int, default=64)
    args = parser.parse_args()
    results = {}
    for folder in args.saes:
        lm, _ = open_sae(folder, model=None, device="cpu", batch_size=16)
        adapter = SAEBenchAdapter(lm.sae, lm.cutter)
        results[folder.name] = {
            "core": run_core(adapter, lm, args.n_contexts),
            "sparse_probing": run_probing(adapter, lm, args.n_train, args.n_test, args.context_length),
        }
        try:
            adapter.encode(torch.zeros(3, adapter.cfg.d_in))
        except DataError as error:
            results[folder.name]["single_positions"] = str(error)
    write_json(args.out, results)


if __name__ == "__main__":
    main()
