"""Which positions and contexts `evaluate_fidelity` measures on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CONTEXT, HOOK
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from torch import Tensor

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.evaluation.fidelity import HeldOutTokens, evaluate_fidelity
from mtsae_lens.upstream import SAEMetadata

N_CONTEXTS = 8


@pytest.fixture(scope="module")
def without_bos(tokenizer: Any) -> ContextCutter:
    return ContextCutter(tokenizer, CONTEXT, prepend_bos=False)


@pytest.fixture(scope="module")
def table(without_bos: ContextCutter, text_file: Path) -> TokenTable:
    table = read_tokens(str(text_file), "test", without_bos, N_CONTEXTS)
    assert not without_bos.special_positions(table.tokens[:, :1]).any()
    return table


def make_exact(d_in: int, temporal: bool) -> SAE[Any]:
    """Build an SAE that reconstructs every position exactly, except that position 0 is a wall if it is temporal."""
    cfg: dict[str, Any] = {"d_in": d_in, "d_sae": 2 * d_in, "metadata": SAEMetadata(hook_name=HOOK)}
    sae: SAE[Any]
    if temporal:
        sae = MTSAE(
            MTSAEConfig(**cfg, dilations=(1,), kernel_size=1, scale_norm="none", activation="relu", context_size=CONTEXT)
        )
        sae.taps.data.fill_(1.0)
    else:
        sae = StandardSAE(StandardSAEConfig(**cfg))
    eye = torch.eye(d_in)
    sae.W_enc.data.copy_(torch.cat([eye, -eye], dim=1))
    sae.W_dec.data.copy_(torch.cat([eye, -eye]))
    return sae.requires_grad_(False)


@torch.no_grad()
def nll(model: Any, tokens: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(
        model(tokens, prepend_bos=False)[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none"
    )


@pytest.mark.parametrize("temporal", [False, True])
def test_an_exact_sae_loses_nothing_without_bos(
    temporal: bool, tiny_model: Any, without_bos: ContextCutter, table: TokenTable
) -> None:
    sae = make_exact(tiny_model.cfg.d_model, temporal)
    metrics = evaluate_fidelity(sae, tiny_model, without_bos, table, batch_size=4)
    expected = {"explained_variance": 1, "explained_variance_without_massive": 1, "ce_loss_score": 1, "kl_div_score": 1}
    expected |= {"cossim": 1, "mse": 0, "kl_div_with_sae": 0}
    assert {name: metrics[name] for name in expected} == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("temporal", [False, True])
def test_every_architecture_is_measured_at_the_positions_that_are_not_masked(
    temporal: bool, tiny_model: Any, without_bos: ContextCutter, table: TokenTable
) -> None:
    sae = make_exact(tiny_model.cfg.d_model, temporal)
    sae.W_dec.data *= 0.5
    tokens = table.tokens.clone()
    tokens[:, 9] = without_bos.special_token_ids[0]
    metrics = evaluate_fidelity(sae, tiny_model, without_bos, TokenTable(table.corpus, tokens, table.documents), batch_size=4)
    kept = torch.ones_like(tokens, dtype=torch.bool)
    kept[:, [0, 9]] = False
    h = tiny_model.run_with_cache(tokens, names_filter=[HOOK], prepend_bos=False)[1][HOOK]
    x = h[kept]
    assert metrics["n_tokens"] == len(x)
    assert metrics["l0"] == pytest.approx((x != 0).sum(dim=-1).float().mean().item(), rel=1e-5)
    assert metrics["mse"] == pytest.approx((x / 2).pow(2).sum(dim=-1).mean().item(), rel=1e-4)
    variance = (x - x.mean(dim=0)).pow(2).sum()
    assert metrics["explained_variance"] == pytest.approx(1 - float((x / 2).pow(2).sum() / variance), rel=1e-4)
    assert metrics["ce_loss_without_sae"] == pytest.approx(nll(tiny_model, tokens)[kept[:, :-1]].mean().item(), rel=1e-5)
    replaced = torch.where(kept.unsqueeze(-1), h / 2, h)
    with tiny_model.hooks(fwd_hooks=[(HOOK, lambda h, hook: replaced)]):
        with_sae = nll(tiny_model, tokens)[kept[:, :-1]].mean().item()
    assert metrics["ce_loss_with_sae"] == pytest.approx(with_sae, rel=1e-5)


@pytest.mark.parametrize(
    ("n_contexts", "sizes"), [(17, [9, 8]), (31, [16, 15]), (32, [16, 16]), (16, [16]), (3, [3]), (35, [12, 12, 11])]
)
def test_a_pass_has_every_context_in_batches_of_nearly_equal_size(n_contexts: int, sizes: list[int]) -> None:
    tokens = torch.arange(n_contexts).unsqueeze(1)
    held_out = HeldOutTokens(TokenTable("numbers", tokens, ("",) * n_contexts), 16)
    for _ in range(2):
        read = [held_out.get_batch_tokens(16) for _ in range(held_out.n_batches)]
        assert [len(batch) for batch in read] == sizes
        assert torch.equal(torch.cat(read), tokens)
        assert torch.equal(held_out.current, read[-1])


def test_every_context_is_measured(tiny_model: Any, without_bos: ContextCutter, table: TokenTable) -> None:
    """The numbers are those of one batch, whatever the size of a batch."""
    sae = make_exact(tiny_model.cfg.d_model, temporal=True)
    sae.W_dec.data *= 0.5
    whole, parts = (evaluate_fidelity(sae, tiny_model, without_bos, table, batch_size=size) for size in (N_CONTEXTS, 5))
    assert parts["n_contexts"] == N_CONTEXTS
    assert parts["n_tokens"] == N_CONTEXTS * (CONTEXT - 1)
    for name in ("explained_variance", "explained_variance_without_massive", "mse", "ce_loss_with_sae", "kl_div_with_sae"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name
