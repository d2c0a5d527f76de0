"""Test that `run_evals` gets float32 from a model in half precision, and losses and divergences that were computed in chunks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sae_lens import run_evals

from mtsae_lens.data import lazy_logits
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.evaluation import readout
from mtsae_lens.evaluation.fidelity import HeldOutTokens, evaluate_fidelity, masked_as_walls
from mtsae_lens.evaluation.readout import ChunkedReadout
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.upstream import ActivationScaler, EvalConfig


@pytest.fixture(scope="module")
def table(half_lm: HookedLM, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "test", half_lm.cutter, 8)


def evaluated(lm: HookedLM, table: TokenTable) -> dict[str, float]:
    return evaluate_fidelity(lm.sae, lm.model, lm.cutter, table, batch_size=4)


@torch.no_grad()
def test_losses_and_norms_are_those_of_what_the_model_gives_in_float32(
    half_lm: HookedLM, table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, kept = half_lm.model(table.tokens, prepend_bos=False).float(), ~half_lm.cutter.special_positions(table.tokens)
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), table.tokens[:, 1:], reduction="none")
    norms = half_lm.activations(table.tokens).float().norm(dim=-1)[kept]
    expected = pytest.approx((nll[kept[:, :-1]].mean().item(), norms.mean().item()), abs=1e-4)

    def measured() -> tuple[float, float]:
        metrics = evaluated(half_lm, table)
        return metrics["ce_loss_without_sae"], metrics["l2_norm_in"]

    assert measured() == expected
    monkeypatch.setattr(readout, "in_float32", lambda values: values)
    for module in (lazy_logits, readout):
        monkeypatch.setattr(module, "log_probs_of", lambda logits: logits.log_softmax(dim=-1))
    assert measured() != expected


def test_metrics_are_near_those_of_the_float32_model(lm: HookedLM, half_lm: HookedLM, table: TokenTable) -> None:
    full, half = evaluated(lm, table), evaluated(half_lm, table)
    assert full.keys() == half.keys()
    for name in ("ce_loss_without_sae", "ce_loss_with_sae", "explained_variance", "l2_ratio", "l0", "future_leak"):
        assert half[name] == pytest.approx(full[name], rel=0.01, abs=0.01), name


@torch.no_grad()
@pytest.mark.parametrize("bridge", [False, True])
def test_losses_and_divergences_are_those_of_run_evals(
    lm: HookedLM, table: TokenTable, bridge: bool, tiny_sae_dir: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that SAELens computes from whole logits, whatever the size of a chunk; special tokens are in the text."""
    if bridge:
        lm = open_sae(tiny_sae_dir, model=f"bridge:{tiny_model_dir}")[0]
    tokens = table.tokens.clone()
    tokens[:, 20] = lm.cutter.special_token_ids[0]
    table = replace(table, tokens=tokens)
    config = EvalConfig(batch_size_prompts=4, n_eval_reconstruction_batches=2, compute_kl=True, compute_ce_loss=True)
    held_out = HeldOutTokens(table, 4)
    with masked_as_walls(lm.sae, lm.cutter, held_out):
        groups, _ = run_evals(
            lm.sae,
            held_out,  # type: ignore[arg-type]
            lm.model,
            ActivationScaler(),
            config,
            exclude_special_tokens=lm.cutter.special_token_ids.tolist(),
        )
    expected = groups["model_behavior_preservation"] | groups["model_performance_preservation"]
    assert len(expected) == 7
    for size in (lazy_logits.CHUNK_BYTES, 4 * 4 * 4096):
        monkeypatch.setattr(lazy_logits, "CHUNK_BYTES", size)
        monkeypatch.setattr(lazy_logits, "REMEMBERED_BYTES", size)
        found = evaluated(lm, table)
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-5), name


def test_whole_logits_never_stand_in_memory(lm: HookedLM, table: TokenTable, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(lazy_logits, "CHUNK_BYTES", 4 * 8 * 4096)
    monkeypatch.setattr(lazy_logits, "REMEMBERED_BYTES", 4 * 8 * 4096)
    handle = lm.model.unembed.register_forward_hook(lambda module, arguments, logits: sizes.append(logits.numel() // 4096))
    try:
        evaluated(lm, table)
    finally:
        handle.remove()
    assert max(sizes) == 8  # of 128 positions in a batch


def test_the_readout_runs_to_the_hook(lm: HookedLM, table: TokenTable) -> None:
    name = lm.splice.hook_name
    _, cache = ChunkedReadout(lm.model).run_with_cache(table.tokens, names_filter=[name], prepend_bos=False)
    assert torch.equal(cache[name], lm.activations(table.tokens))
