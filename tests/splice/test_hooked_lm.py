"""Test the input checks and the representation of a `HookedLM`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.errors import ConfigError, DataError, ModelError
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures.effects import edited_logits

METHODS = ("masked", "left_padding", "attention_options", "activations", "sae_input", "feature_acts", "generate")


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("the sea", r"got a str; give lm\.model\.to_tokens\(text\)"),
        ([1, 2, 3], "got a list"),
        (torch.tensor([1, 2, 3]), r"got shape \(3,\)"),
        (torch.ones(1, 5_000, dtype=torch.long), r"at most \d+ positions, got 5000; cut the text"),
        (["the sea", "the ship"], "got a list"),
        (torch.ones(1, 4), r"dtype torch\.int64, got torch\.float32"),
        (torch.ones(1, 4, dtype=torch.bool), r"got torch\.bool"),
        (torch.ones(1, 4, dtype=torch.int32), r"got torch\.int32"),
        (torch.ones(1, 0, dtype=torch.long), r"at least one token, got shape \(1, 0\)"),
        (torch.ones(0, 4, dtype=torch.long), r"got shape \(0, 4\)"),
        (torch.tensor([[1, 4096]]), r"tokens from 0 to 4095, got 4096"),
        (torch.tensor([[-1, 5]]), r"got -1"),
    ],
    ids=str,
)
def test_what_are_no_tokens_is_refused(lm: HookedLM, method: str, tokens: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        getattr(lm, method)(tokens)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("method", ["sae_input", "feature_acts", "logits_from"])
def test_activations_of_other_tokens_are_refused(lm: HookedLM, method: str) -> None:
    tokens = torch.tensor([[0, 11, 12, 13]])
    with pytest.raises(DataError, match=r"activations of shape \(1, 3\) and a width, got shape \(1, 4, 32\)"):
        getattr(lm, method)(tokens[:, :3], lm.activations(tokens))


def test_it_prints_as_one_line(lm: HookedLM) -> None:
    assert repr(lm).startswith("HookedLM(")
    assert "mtsae at blocks." in repr(lm)
    assert len(repr(lm)) < 120


def test_an_sae_is_no_splice(lm: HookedLM) -> None:
    with pytest.raises(ConfigError, match=r"expected a Splice, got a MTSAE"):
        HookedLM(lm.model, lm.sae, lm.cutter)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected a HookedLM or a Splice, got a MTSAE; give load_edit\(path, lm\)"):
        load_edit("edit.json", lm.sae)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"expected a HookedLM or a Splice, got a MTSAE; give save_edit\(path, edit, lm\)"):
        save_edit("edit.json", FeatureEdit((1,)), lm.sae)  # type: ignore[arg-type]


def test_a_source_is_no_table(lm: HookedLM) -> None:
    with pytest.raises(DataError, match=r"got a str; give read_tokens\(source, split, lm\.cutter, 64\)"):
        lm.batches("kjv")  # type: ignore[arg-type]


def test_a_hook_that_the_model_lacks(lm: HookedLM) -> None:
    sae = copy.deepcopy(lm.sae)
    sae.cfg.metadata.hook_name = "blocks.77.hook_resid_post"
    with pytest.raises(ModelError, match=r"'blocks\.77\.hook_resid_post', got .* without it\. Did you mean 'blocks\."):
        HookedLM(lm.model, Splice(sae), lm.cutter)


@pytest.mark.parametrize(
    ("bos", "prompt", "padding"),
    [
        (True, [0, 7, 8, 9], [0, 0, 0, 0]),
        (True, [0, 0, 0, 9], [1, 1, 0, 0]),
        (True, [0, 7, 0, 0], [0, 0, 0, 0]),
        (True, [0, 0, 0, 0], [1, 1, 1, 0]),
        (False, [0, 0, 8, 9], [1, 1, 0, 0]),
        (False, [7, 0, 8, 0], [0, 0, 0, 0]),
        (False, [0, 0, 0, 0], [0, 0, 0, 0]),
    ],
    ids=["BOS alone", "padding and BOS", "padding at the end", "only BOS is left", "no BOS", "inner", "nothing else"],
)
def test_left_padding(lm: HookedLM, bos: bool, prompt: list[int], padding: list[int]) -> None:
    """The tokenizer's padding token, 0, is also its BOS token; the context begins with the last one."""
    assert lm.cutter.tokenizer.pad_token_id == lm.cutter.tokenizer.bos_token_id == 0
    lm = replace(lm, cutter=replace(lm.cutter, prepend_bos=bos))
    found = lm.left_padding(torch.tensor([prompt]))
    assert found.int().tolist() == [padding]
    first = sum(padding)
    assert lm.masked(torch.tensor([prompt]))[0, : first + 1].all()


@pytest.fixture(scope="module", params=["", "bridge:"], ids=["hooked", "bridge"])
def opened(request: pytest.FixtureRequest, tiny_sae_dir: Path, tiny_model_dir: Path) -> HookedLM:
    lm = open_sae(tiny_sae_dir, model=f"{request.param}{tiny_model_dir}")[0]
    lm.sae.cfg.metadata.hook_name = "blocks.0.hook_mlp_in"  # the model has it and, with its default settings, does not run it
    return lm


def _run_with_edit(lm: HookedLM, tokens: torch.Tensor) -> None:
    with lm.splice.attached(lm.model, FeatureEdit((1,)), lm.masked(tokens)):
        lm.model(tokens, prepend_bos=False)


@pytest.mark.parametrize(
    "use",
    [
        lambda lm, tokens: lm.activations(tokens),
        lambda lm, tokens: lm.feature_acts(tokens),
        lambda lm, tokens: lm.logits_from(tokens, torch.zeros(*tokens.shape, 32)),
        lambda lm, tokens: lm.generate(tokens, FeatureEdit((1,)), max_new_tokens=2),
        _run_with_edit,
    ],
    ids=["activations", "feature_acts", "logits_from", "generate", "attached"],
)
def test_a_hook_that_never_runs_is_an_error(use: Any, opened: HookedLM) -> None:
    """A bridge is refused before it is run, a `HookedTransformer` after it has run without the hook."""
    with pytest.raises(ModelError, match=r"got blocks\.0\.hook_mlp_in, where an edit changes nothing"):
        use(HookedLM(opened.model, Splice(opened.sae), opened.cutter), torch.tensor([[0, 11, 12, 13]]))


def test_an_edit_is_attached_for_a_block(lm: HookedLM) -> None:
    tokens = torch.tensor([[0, 11, 12, 13]])
    edit = FeatureEdit(tuple(range(lm.sae.cfg.d_sae)), 2.0)
    clean = lm.model(tokens, prepend_bos=False)
    with lm.splice.attached(lm.model, edit, lm.masked(tokens)):
        edited = lm.model(tokens, prepend_bos=False)
    torch.testing.assert_close(edited, edited_logits(lm, edit)(tokens))
    assert not torch.allclose(edited, clean, atol=1e-3)
    assert torch.equal(lm.model(tokens, prepend_bos=False), clean)
