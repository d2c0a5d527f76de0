"""Test the low-rank fine-tune: it approaches the edited model, changes only its matrices, and is reproducible."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.export.base_models import open_base
from mtsae_lens.export.low_rank import LowRankSettings, train_low_rank
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM

EDIT = FeatureEdit(tuple(range(20)), 1.0)
HOOK = "blocks.1.hook_resid_pre"


@pytest.fixture(scope="module")
def tables(cutter: Any, text_file: Path, sea_file: Path) -> list[TokenTable]:
    return [read_tokens(str(path), "train", cutter, 8) for path in (sea_file, text_file)]


@torch.no_grad()
def kl_to_hook(lm: HookedLM, model: Any, table: TokenTable) -> float:
    tokens = table.tokens
    hooks = [lm.splice.hook(EDIT, lm.masked(tokens))]
    edited = lm.model.run_with_hooks(tokens, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)
    student = model(tokens).logits.log_softmax(-1)
    return float((edited.exp() * (edited - student)).sum(-1)[:, :-1].mean())


@pytest.mark.parametrize("family", ["neox", "gpt2"])
def test_training_goes_towards_the_hook(
    family: str, make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tables: list[TokenTable], tmp_path: Path
) -> None:
    lm = make_lm(family, HOOK)
    base = open_base(model_dirs[family])
    clean = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    before = [kl_to_hook(lm, base.model, table) for table in tables]
    losses = train_low_rank(base, lm, EDIT, tables[0], tables[1:], LowRankSettings(rank=2, n_steps=30, batch_size=4, lr=0.05))
    after = [kl_to_hook(lm, base.model, table) for table in tables]
    assert losses[0] == pytest.approx(sum(before) / 2, rel=0.2)  # the student starts as the clean model
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert all(b < 0.75 * a for a, b in zip(before, after, strict=True))

    merged = base.model.state_dict()
    assert set(merged) == set(clean)
    changed = {name for name in merged if not torch.equal(merged[name], clean[name])}
    layers = {"neox": "gpt_neox.layers.1.", "gpt2": "transformer.h.1."}[family]
    assert len(changed) == 4
    for name in changed:
        assert name.startswith(layers)
        assert torch.linalg.matrix_rank(merged[name] - clean[name], rtol=1e-4) <= 2
    base.save(tmp_path)
    with torch.no_grad():
        expected = base.model(tables[0].tokens).logits.log_softmax(-1)
        got = load_language_model(str(tmp_path))(tables[0].tokens, prepend_bos=False).log_softmax(-1)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["neox", "llama", "gpt2"])
def test_the_change_of_a_bridge_is_that_of_the_hooked_transformer(
    family: str, make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tables: list[TokenTable]
) -> None:
    hooked = make_lm(family, HOOK)
    bridged = replace(hooked, model=load_language_model(f"bridge:{model_dirs[family]}"))
    settings = LowRankSettings(rank=2, n_steps=8, batch_size=4, lr=0.05)
    losses, weights = [], []
    for lm, prefix in ((hooked, ""), (bridged, "bridge:")):
        base = open_base(f"{prefix}{model_dirs[family]}")
        losses.append(train_low_rank(base, lm, EDIT, tables[0], tables[1:], settings))
        weights.append(base.model.state_dict())
    assert losses[0][-1] != pytest.approx(losses[0][0], rel=0.02)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, atol=2e-3, rtol=0)


def test_a_seed_says_it_all(make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tables: list[TokenTable]) -> None:
    lm = make_lm("neox", HOOK)

    def losses(seed: int) -> list[float]:
        settings = LowRankSettings(rank=2, n_steps=3, batch_size=4, seed=seed)
        return train_low_rank(open_base(model_dirs["neox"]), lm, EDIT, tables[0], tables[1:], settings)

    torch.manual_seed(5)
    first = losses(1)
    torch.manual_seed(6)
    assert losses(1) == first
    assert losses(2) != first


def test_texts_of_different_lengths_and_padding_count_by_token(
    make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tables: list[TokenTable]
) -> None:
    lm = make_lm("neox", HOOK)
    short = TokenTable("short", tables[0].tokens[:, :12], tables[0].documents)
    padded = TokenTable("padded", torch.nn.functional.pad(short.tokens, (0, 8)), tables[0].documents)  # 0 is special
    settings = LowRankSettings(rank=2, n_steps=1, batch_size=4)
    losses = [
        train_low_rank(open_base(model_dirs["neox"]), lm, EDIT, forget, tables[1:], settings) for forget in (short, padded)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_settings_that_cannot_work_are_refused(
    make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tables: list[TokenTable]
) -> None:
    with pytest.raises(ConfigError, match="expected positive rank, n_steps and lr, and batch_size of at least 2"):
        LowRankSettings(rank=0)
    with pytest.raises(DataError, match="give --retain"):
        train_low_rank(open_base(model_dirs["neox"]), make_lm("neox", HOOK), EDIT, tables[0], [], LowRankSettings())
