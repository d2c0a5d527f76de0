"""Test that an exported model can be copied, trained and given padded batches, and keeps no state between calls."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.token_tables import TokenTable
from mtsae_lens.export.base_models import open_base
from mtsae_lens.export.hooked import export_hooked
from mtsae_lens.export.low_rank import LowRankSettings, train_low_rank
from mtsae_lens.export.persistent import project_weights
from mtsae_lens.export.standalone import EditedLayer, EditState, attach, load_edited
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM

EDIT = FeatureEdit(tuple(range(40)), 2.0, RunningEvidenceGate(torch.arange(24), torch.ones(24), decay=0.8, threshold=4.0))
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
FAMILIES = ("neox", "llama", "gpt2")


@pytest.fixture
def grouped_llama_dir(save_llama: Callable[..., Path], tmp_path: Path) -> Path:
    return save_llama(tmp_path / "grouped", num_attention_heads=4, num_key_value_heads=2)


@pytest.fixture
def exported(make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    def export(family: str, side: str = "blocks.0.hook_resid_post") -> Any:
        export_hooked(tmp_path / "model", make_lm(family, hook_name=side), EDIT, model_dirs[family])
        return load_edited(tmp_path / "model")

    return export


def padded(rows: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """Pad prompts as a tokenizer does; 77 is the padding token."""
    width = max(len(row) for row in rows)
    parts = [(0, width - len(row)) if side == "right" else (width - len(row), 0) for row in rows]
    ids = torch.stack([functional.pad(row, part, value=77) for row, part in zip(rows, parts, strict=True)])
    mask = torch.stack([functional.pad(torch.ones_like(row), part) for row, part in zip(rows, parts, strict=True)])
    return {"input_ids": ids, "attention_mask": mask}


def without_dropout(model: Any) -> Any:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def edits_of(model: Any) -> list[EditedLayer]:
    hooks = model.base_model._forward_pre_hooks.values()
    return [hook.__self__ for hook in hooks if isinstance(hook.__self__, EditedLayer)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["blocks.0.hook_resid_post", "blocks.1.hook_resid_pre"])
def test_it_is_copied_and_trained(exported: Callable[..., Any], tokens: torch.Tensor, family: str, side: str) -> None:
    """A frozen copy made during training does not learn, as DPO or an average of the weights needs it."""
    model = without_dropout(exported(family, side).train())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses, before = [], copy.deepcopy(model)
    for _ in range(3):
        loss = model(input_ids=tokens, labels=tokens).loss
        frozen = copy.deepcopy(model)  # while the graph of the last call is alive
        with torch.no_grad():
            assert_close(frozen(tokens).logits, model(tokens).logits)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    with torch.no_grad():
        assert before(input_ids=tokens, labels=tokens).loss.item() == pytest.approx(losses[0])
        trained = model.eval()(tokens).logits
        before.load_state_dict(model.state_dict())
        assert_close(before.eval()(tokens).logits, trained)
    (edit,), (of_copy,) = edits_of(model), edits_of(before)
    assert edit is not of_copy
    assert not edit.state
    assert edit.masked is None


def n_in_graphs() -> int:
    """Count the tensors of this process that are part of a graph of gradients."""
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) and thing.grad_fn is not None for thing in gc.get_objects())


def test_nothing_of_a_call_stays(exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    model = exported("neox")
    before = n_in_graphs()  # other tests may have left some, such as those that compile
    for _ in range(2):
        output = model(tokens)
        del output
        assert n_in_graphs() == before


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_gradients(
    exported: Callable[..., Any], tokens: torch.Tensor, family: str
) -> None:
    model = without_dropout(exported(family).train())
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        both = [model(input_ids=part, labels=part).loss for part in (tokens, tokens[:1])]  # two graphs before one backward pass
        sum(both).backward()  # type: ignore[union-attr]
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["neox", "grouped"])
def test_padded_batches(
    make_lm: Callable[..., HookedLM],
    model_dirs: dict[str, str],
    grouped_llama_dir: Path,
    tokens: torch.Tensor,
    tmp_path: Path,
    family: str,
    implementation: str,
    side: str,
) -> None:
    folder, lm = (model_dirs["neox"] if family == "neox" else str(grouped_llama_dir)), make_lm("neox")
    lm = HookedLM(load_language_model(folder), lm.splice, lm.cutter)
    export_hooked(tmp_path / "model", lm, EDIT, folder)
    model = load_edited(tmp_path / "model", attn_implementation=implementation)
    rows = [tokens[0], tokens[1, :9], tokens[2, :3]]
    batch = padded(rows, side)
    logits = model(**batch).logits
    for row, mask, alone in zip(logits, batch["attention_mask"].bool(), rows, strict=True):
        assert_close(row[mask], model(alone[None]).logits[0], atol=1e-4, rtol=1e-4)
    if side == "right":
        return
    for options in ({}, {"use_cache": False}, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}):
        written = model.generate(**batch, **(GREEDY | options))
        for row, alone in zip(written, rows, strict=True):
            mask = torch.ones_like(alone[None])
            expected = model.generate(alone[None], attention_mask=mask, **(GREEDY | options))[0]
            assert torch.equal(row[len(batch["input_ids"][0]) :], expected[len(alone) :]), options


@torch.no_grad()
@pytest.mark.parametrize("form", ["projected", "low-rank"])
@pytest.mark.parametrize("family", ["neox", "grouped"])
def test_padded_batches_of_changed_weights(
    make_lm: Callable[..., HookedLM],
    model_dirs: dict[str, str],
    grouped_llama_dir: Path,
    tokens: torch.Tensor,
    form: str,
    family: str,
) -> None:
    folder, lm = (model_dirs["neox"] if family == "neox" else str(grouped_llama_dir)), make_lm("neox")
    lm = HookedLM(load_language_model(folder), lm.splice, lm.cutter)
    base = open_base(folder)
    if form == "projected":
        project_weights(base, FeatureEdit((1, 2, 3)).as_projection(lm.sae), lm.splice.hook_name)
    else:
        table = TokenTable("t", tokens, ("a", "b", "c"))
        with torch.enable_grad():
            train_low_rank(base, lm, EDIT, table, [table], LowRankSettings(rank=2, n_steps=3, batch_size=2))
    rows = [tokens[0], tokens[1, :9], tokens[2, :3]]
    batch = padded(rows, "left")
    logits = base.model(**batch).logits
    for row, mask, alone in zip(logits, batch["attention_mask"].bool(), rows, strict=True):
        assert_close(row[mask], base.model(alone[None]).logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_low_rank_learns_the_same_of_padded_text(
    make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tokens: torch.Tensor, family: str
) -> None:
    """The first loss of a row behind padding is that of the row alone."""
    lm, row = make_lm(family), tokens[:1, :12]
    losses = []
    for text in (row, functional.pad(row, (5, 0), value=0)):  # BOS and padding are one token
        table = TokenTable("t", text, ("a",))
        settings = LowRankSettings(rank=2, n_steps=2, batch_size=2)
        losses.append(train_low_rank(open_base(model_dirs[family]), lm, EDIT, table, [table], settings))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_no_text_is_longer_than_the_context(exported: Callable[..., Any], tokens: torch.Tensor, family: str) -> None:
    model = exported(family)
    prompt = tokens[:1, :9]
    for cache in (True, False):
        options = GREEDY | {"use_cache": cache, "attention_mask": torch.ones_like(prompt)}
        assert model.generate(prompt, **(options | {"max_new_tokens": 55})).shape == (1, 64)
        with pytest.raises(ValueError, match=r"at most 64 positions, the model's context, got 65; give a shorter prompt"):
            model.generate(prompt, **(options | {"max_new_tokens": 58}))
    behind = padded([torch.full((61,), 11), prompt[0, :4]], "left")
    assert model(**behind).logits.shape[1] == 61


@torch.no_grad()
def test_the_users_cache_stays_what_it_is(exported: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path) -> None:
    """The class of the user's cache is unchanged, two edits have separate state, and outputs may be tuples."""
    from transformers import DynamicCache

    model = exported("llama")
    cache = DynamicCache()
    model(tokens[:, :9], past_key_values=cache)
    assert type(cache) is DynamicCache
    assert [type(layer).__name__ for layer in cache.layers][2:] == ["EditState"]
    whole = model(tokens).logits[:, 9:]
    assert_close(model(tokens[:, 9:], past_key_values=cache, return_dict=False)[0], whole, atol=1e-4, rtol=1e-4)
    cache.reset()
    assert_close(model(tokens, past_key_values=cache).logits[:, 9:], whole, atol=1e-4, rtol=1e-4)

    with pytest.warns(UserWarning, match="is another model"):  # as it has an edit already
        remove = attach(model, tmp_path / "model", allow_other_model=True)  # the same once more, on the same activations
    twice = model(tokens).logits[:, 9:]
    assert not torch.allclose(twice, whole, atol=1e-2)
    remove()
    assert_close(model(tokens).logits[:, 9:], whole)
    state = EditState("edit")
    state.tensors = {"x": torch.arange(6.0).view(3, 2), "n_seen": torch.tensor(4)}
    state.batch_repeat_interleave(2)
    state.reorder_cache(torch.tensor([5, 0]))
    assert state.tensors["x"].tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert int(state.tensors["n_seen"]) == 4
    state.crop(-1)
    assert not state.tensors


@pytest.mark.parametrize("name", ["past_key_values", "cache"])
def test_the_cache_is_found_under_its_name_in_each_version(
    name: str, exported: Callable[..., Any], tokens: torch.Tensor
) -> None:
    """transformers 5.24 renamed the argument and the output. A cache that is not found would drop the past without an error."""
    from transformers import DynamicCache
    from transformers.utils import ModelOutput

    model = exported("llama")
    (layer,) = {id(edit): edit for edit in edits_of(model)}.values()
    cache = DynamicCache()
    cache.update(torch.zeros(3, 1, 5, 2), torch.zeros(3, 1, 5, 2), 0)

    class Named(torch.nn.Module):
        config = model.config

        def forward(self, input_ids: Any, **kwargs: Any) -> Any:
            return input_ids

    with pytest.raises(ValueError, match="made, cut or copied without it"):
        layer.before_model(Named(), (tokens[:, :4],), {name: cache})
    layer.state = {"n_seen": torch.tensor(9)}
    layer.after_model(Named(), (), {}, ModelOutput({"last_hidden_state": tokens, name: cache}))
    assert int(cache.layers[-1].tensors["n_seen"]) == 9
