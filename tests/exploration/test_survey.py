"""Test that contributions sum to the pre-activation, and that a resumed pass gives the result of an uninterrupted one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import DataError
from mtsae_lens.exploration import survey as survey_module
from mtsae_lens.exploration.ablation import measure_ablation
from mtsae_lens.exploration.corpora import Corpora
from mtsae_lens.exploration.example_lists import SHOWN
from mtsae_lens.exploration.example_table import collect_example_rows
from mtsae_lens.exploration.firings import compute_features_at
from mtsae_lens.exploration.model_attribution import attribute_to_tokens
from mtsae_lens.exploration.peaks import find_strongest_peaks
from mtsae_lens.exploration.survey import Survey
from mtsae_lens.exploration.windows import WindowGatherer
from mtsae_lens.sae.contributions import offset_contributions, scale_contributions
from mtsae_lens.sealed import read_tensors, write_tensors
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice


def check_sums(survey: Survey) -> None:
    """Scales and bias, offsets and bias, sum to the pre-activation at every peak; every firing token of a window to its activation."""
    bias = survey.lm.sae.b_enc.detach()
    for examples in survey.lists.values():
        feature, slot = (examples.context >= 0).nonzero().unbind(1)
        assert len(feature) > 20
        shown = examples.at(feature, slot)
        expected = shown["hidden_pre"]
        for parts in (shown["scales"], shown["offsets"]):
            assert_close(parts.sum(dim=-1) + bias[feature], expected, atol=1e-5, rtol=1e-5)
        of_tokens = shown["token_scales"].sum(dim=-1) + bias[feature, None]
        fires = shown["activations"].nan_to_num() > 0
        assert torch.equal(~of_tokens.isnan(), fires)
        assert_close(of_tokens[fires], shown["activations"][fires], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "relu"},
        {"scale_norm": "layer_norm", "dilations": (1, 2)},
        {"scale_norm": "none", "padding": "circular"},
        {"learn_dilations": True, "dilations": (0, 1, 4)},
        {"kernel_size": 1, "dilations": (0,)},
        {"hook_name": "blocks.0.attn.hook_z", "reshape_activations": "hook_z"},
    ],
    ids=str,
)
def test_contributions_sum_to_the_pre_activation(look: Any, random_lm: Any, corpora: Corpora, settings: dict[str, Any]) -> None:
    check_sums(look(random_lm(**settings), corpora))


def test_on_the_embedded_model(embedded: Any, tokenizer: Any, look: Any) -> None:
    """float32, 128 dimensions, contexts of 128; activations as large as they are there."""
    from mtsae_lens import MTSAE, MTSAEConfig

    torch.manual_seed(0)
    sae = MTSAE(MTSAEConfig(d_in=128, d_sae=256, k=8))
    sae.cfg.metadata.hook_name = "blocks.3.hook_resid_post"
    for name, parameter in sae.named_parameters():
        torch.nn.init.normal_(parameter, std=0.5 if name == "taps" else 0.05)
    lm = HookedLM(embedded, Splice(sae), ContextCutter(tokenizer, 128))
    survey = look(lm, Corpora(("kjv",), "test", lm.cutter, 8 * 128))
    assert survey.lists["top"].key.max() > 1
    check_sums(survey)


@pytest.fixture(scope="module")
def embedded() -> Any:
    from mtsae_lens.data.language_models import load_language_model

    return load_language_model("embedded")


@pytest.mark.parametrize("part", ["scales", "offsets", "window"])
def test_the_law_can_fail(look: Any, lm: Any, corpora: Corpora, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken variant that reads the position before."""
    name = {"scales": "_scales", "offsets": "_offsets", "window": "_window"}[part]
    original = getattr(WindowGatherer, name)

    def broken(self: Any, *arguments: Any) -> Any:
        moved = [*arguments]
        if part != "window":
            moved[2] = (moved[2] - 1).clamp(min=0)
            return original(self, *moved)
        where, inside = original(self, *moved)
        return (where - 1).clamp(min=0), inside

    monkeypatch.setattr(WindowGatherer, name, broken)
    with pytest.raises(AssertionError):
        check_sums(look(lm, corpora))


def test_contributions_are_those_of_each_scale_and_offset(look: Any, lm: Any, corpora: Corpora) -> None:
    survey = look(lm, corpora)
    tokens = torch.tensor([ids for corpus in range(2) for _, ids in corpora.contexts(corpus)])
    features = torch.arange(32)
    examples = survey.lists["top"]
    for found, expected in (
        ("scales", scale_contributions(lm.sae, lm.sae_input(tokens), features)),
        ("offsets", offset_contributions(lm.sae, lm.sae_input(tokens), features)),
    ):
        feature, slot = (examples.context >= 0).nonzero().unbind(1)
        at = (examples.context[feature, slot].long(), examples.position[feature, slot].long())
        assert_close(examples.at(feature, slot)[found], expected[*at, :, feature], atol=1e-5, rtol=1e-4)


def state_of(survey: Survey, path: Path) -> bytes:
    survey.save(path)
    return path.read_bytes()


@pytest.mark.parametrize("architecture", ["mtsae", "topk"])
@pytest.mark.parametrize("stopped_after", [1, 3])
def test_a_pass_carried_on_ends_like_one_that_was_not_stopped(
    look: Any, random_lm: Any, corpora: Corpora, architecture: str, stopped_after: int, tmp_path: Path
) -> None:
    lm = random_lm(architecture)
    whole = look(lm, corpora)
    first = Survey(lm, whole.plan, 2, 1)
    for batch in corpora.batches(4):
        if batch.number < stopped_after:
            first.add(batch)
    first.save(tmp_path / "a")
    second = Survey(lm, whole.plan, 2, 1)
    second.load(tmp_path / "a")
    assert second.n_batches == stopped_after
    for batch in corpora.batches(4, second.n_batches):
        second.add(batch)
    assert state_of(second, tmp_path / "b") == state_of(whole, tmp_path / "c")
    other = Survey(lm, dataclasses.replace(whole.plan, seed=1), 2, 1)
    for batch in corpora.batches(4):
        other.add(batch)
    assert state_of(other, tmp_path / "d") != state_of(whole, tmp_path / "c")  # the draws matter, so equality says something


def test_a_damaged_state_is_refused(lm: Any, look: Any, corpora: Corpora, tmp_path: Path) -> None:
    survey = look(lm, corpora)
    (tmp_path / "bad").write_bytes(b"x" * 99)
    with pytest.raises(DataError, match=r"damaged.*delete it"):
        survey.load(tmp_path / "bad")


def test_memory_does_not_grow_with_the_text(look: Any, lm: Any, corpora: Corpora) -> None:
    short, long = (look(lm, dataclasses.replace(corpora, n_tokens=n)) for n in (4 * 32, 40 * 32))
    sizes = [
        {
            name: value.shape
            for part in (s.counts, s.lift, *s.lists.values())
            for name, value in vars(part).items()
            if torch.is_tensor(value)
        }
        for s in (short, long)
    ]
    assert sizes[0] == sizes[1]
    assert long.counts.n_tokens.sum() > 8 * short.counts.n_tokens.sum()


@pytest.mark.parametrize("architecture", ["standard", "gated", "topk", "abstopk", "jumprelu", "matching_pursuit", "temporal"])
def test_every_architecture(look: Any, random_lm: Any, corpora: Corpora, architecture: str) -> None:
    """Counts, examples and effects, without time scales."""
    lm = random_lm(architecture, n_heads=2, bottleneck_factor=4)
    survey = look(lm, corpora)
    tokens = torch.tensor([ids for corpus in range(2) for _, ids in corpora.contexts(corpus)])
    acts = torch.cat([lm.feature_acts(part) for part in tokens.split(4)])
    assert_close(survey.counts.n_active_in_all, (acts > 0).sum(dim=(0, 1)))
    assert (acts > 0).sum() > 100
    assert survey.lift is None
    examples, peaks = survey.lists["top"], find_strongest_peaks(survey, 2)
    shown = examples.at(peaks.feature, examples.order(5)[peaks.feature, peaks.rank])
    assert shown["hidden_pre"].isfinite().all()
    h = lm.activations(peaks.tokens)
    at_peaks, _ = compute_features_at(lm, peaks.tokens, h, peaks.context, peaks.position)
    assert_close(at_peaks[torch.arange(len(peaks)), peaks.feature], shown["activations"][:, 5], atol=1e-4, rtol=1e-4)
    assert measure_ablation(lm, peaks)[:, 1].nan_to_num().any()
    assert attribute_to_tokens(lm, peaks, 5, 2).nan_to_num().any()


def test_a_large_batch_is_looked_at_in_parts(look: Any, lm: Any, corpora: Corpora, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide SAE has a number per token and feature: the parts give the same examples and counts as the whole."""
    whole, sizes, original = look(lm, corpora), [], survey_module.read_batch

    def read_batch(lm: Any, tokens: Any) -> Any:
        sizes.append(len(tokens))
        return original(lm, tokens)

    monkeypatch.setattr(survey_module, "read_batch", read_batch)
    monkeypatch.setattr(survey_module, "_MAX_BYTES", 2 * 32 * 4 * lm.sae.cfg.d_sae)
    parts = look(lm, corpora)
    assert set(sizes) == {2}
    monkeypatch.setattr(survey_module, "_MAX_BYTES", 1)
    assert look(lm, corpora).counts.could_elsewhere.sum() > 20  # a context is never alone, so its control exists
    for name in ("n_active", "n_runs", "persisted", "total", "maximum"):
        assert_close(getattr(parts.counts, name), getattr(whole.counts, name))
    assert parts.held.keys() == whole.held.keys()
    everything = torch.arange(lm.sae.cfg.d_sae)
    for name, tensor in collect_example_rows(parts, everything).fields.items():
        if name != "row":  # in which order rows were laid out
            assert_close(tensor, collect_example_rows(whole, everything).fields[name], equal_nan=True)


def test_a_state_kept_by_an_earlier_version_is_carried_on(look: Any, lm: Any, corpora: Corpora, tmp_path: Path) -> None:
    """The earlier version had a row for every slot, filled or not, and no row numbers."""
    survey = look(lm, corpora)
    survey.save(tmp_path / "new.safetensors")
    tensors, metadata = read_tensors(tmp_path / "new.safetensors", "delete it")
    for kind in survey.lists:
        row = tensors.pop(f"{kind}.row").long()
        for name in SHOWN:
            rows = tensors[f"{kind}.{name}"]
            dense = torch.full((*row.shape, *rows.shape[1:]), torch.nan)
            dense[row >= 0] = rows[row[row >= 0]]
            tensors[f"{kind}.{name}"] = dense
    for name in ("could_elsewhere", "fired_elsewhere"):
        del tensors[f"counts.{name}"]
    write_tensors(tmp_path / "old.safetensors", tensors, metadata)
    loaded = Survey(lm, survey.plan, 2, 1)
    loaded.load(tmp_path / "old.safetensors")
    everything = torch.arange(lm.sae.cfg.d_sae)
    for name, tensor in collect_example_rows(survey, everything).fields.items():
        if name != "row":
            assert torch.equal(collect_example_rows(loaded, everything).fields[name].nan_to_num(), tensor.nan_to_num()), name
    assert len(collect_example_rows(loaded, everything).feature) > 100
