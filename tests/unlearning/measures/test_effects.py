"""Test effects of edits: none for an empty edit, otherwise those of a forward pass with a hook."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import AlwaysOpen, RunningEvidenceGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.splicing import Splice
from mtsae_lens.unlearning.measures import effects, predictions
from mtsae_lens.unlearning.measures.effects import (
    as_logits,
    edit_losses,
    max_identity_error,
    mean_loss,
    measure_edits,
    measure_model,
    measure_with_controls,
)

HOOKS = [
    "blocks.0.hook_resid_post",
    "blocks.1.hook_resid_post",
    "blocks.0.hook_mlp_out",
    "blocks.0.attn.hook_z",
    "ln_final.hook_normalized",
    "blocks.1.hook_resid_pre",
    "blocks.0.hook_resid_pre",
]
EDITS = [
    FeatureEdit((0, 3, 7), 0.0),
    FeatureEdit((0, 3, 7, 8, 9, 10), 2.0),
    FeatureEdit(tuple(range(20)), 1.0, RunningEvidenceGate(torch.arange(16), torch.ones(16), 0.9, 8.0)),
]


def random_lm(model: Any, cutter: Any, hook_name: str, reshape: str = "none") -> HookedLM:
    torch.manual_seed(1)
    metadata = SAEMetadata(hook_name=hook_name)
    sae = MTSAE(MTSAEConfig(d_in=32, d_sae=32, k=8, context_size=32, metadata=metadata, reshape_activations=reshape))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return HookedLM(model, Splice(sae), cutter, batch_size=3)


@pytest.fixture(scope="module")
def table(cutter: Any, text_file: Path, sea_file: Path) -> TokenTable:
    """Four documents, one of them in two places, and a separator in the middle of a context."""
    parts = [read_tokens(str(path), "test", cutter, 4) for path in (text_file, sea_file)]
    tokens = torch.cat([part.tokens for part in parts])
    tokens[2, 17] = 0
    return TokenTable("mixed", tokens, ("a", "b", "b", "c", "d", "a", "a", "b"))


@torch.no_grad()
def naive(lm: HookedLM, table: TokenTable, edit: FeatureEdit) -> dict[str, list[float]]:
    """Per document `[n, clean, edited, kl]`, context by context, token by token, hooks on a whole forward pass."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    for pieces, row in zip(table.pieces.of_token, table.tokens, strict=True):
        masked = row == 0
        masked[0] = True

        def hook(h: torch.Tensor, hook: Any, masked: torch.Tensor = masked) -> torch.Tensor:
            seen = h.clone()
            seen[0, masked] = 0  # walls, as in training
            e = lm.sae.encode(seen if lm.sae.cfg.reshape_activations == "hook_z" else seen.reshape(1, len(masked), -1))
            e[0, masked] = 0
            changed = e.clone()
            changed[..., list(edit.features)] *= -edit.multiplier
            closed = masked | ~edit.gate.open_from(e, None)[0][0]
            changed[0, closed] = e[0, closed]
            return h + (lm.sae.decode(changed) - lm.sae.decode(e)).reshape(h.shape)

        clean = lm.model(row[None], prepend_bos=False)[0].log_softmax(-1)
        edited = lm.model.run_with_hooks(row[None], fwd_hooks=[(lm.splice.hook_name, hook)], prepend_bos=False)[0].log_softmax(
            -1
        )
        for t in range(len(row) - 1):
            target = row[t + 1]
            if target != 0:
                kl = (clean[t].exp() * (clean[t] - edited[t])).sum().item()
                for place, value in enumerate((1.0, -clean[t, target].item(), -edited[t, target].item(), kl)):
                    sums[table.pieces.documents[pieces[t + 1]]][place] += value
    return dict(sums)


@pytest.mark.parametrize("hook_name", HOOKS)
def test_effects_are_those_of_a_whole_forward_pass_with_hooks(
    hook_name: str, tiny_model: Any, cutter: Any, table: TokenTable
) -> None:
    lm = random_lm(tiny_model, cutter, hook_name)
    for edit, effect in zip(EDITS, measure_edits(lm, table, EDITS), strict=True):
        expected = naive(lm, table, edit)
        assert effect.corpus == "mixed"
        assert effect.documents == table.documents
        columns = (effect.n_tokens, effect.nll_clean, effect.nll_edited, effect.kl)
        got = torch.stack([effect.by_document(column) for column in columns], dim=1)
        torch.testing.assert_close(got.float(), torch.tensor([expected[d] for d in "abcd"]), atol=5e-3, rtol=1e-4)
        assert effect.mean(effect.kl) > 1e-4  # the edit did something, so equality says something
    assert effect.n_tokens.sum().item() == 8 * 31 - 1


def test_packed_contexts_are_summed_document_by_document(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, HOOKS[0])
    spans = [(("a", 0), ("b", 9), ("c", 18)), (("c", 0), ("d", 31)), (("d", 0), ("a", 18))]
    packed = TokenTable("packed", table.tokens[:3], ("a", "c", "d"), spans=tuple(spans))
    never = RunningEvidenceGate(torch.arange(16), torch.ones(16), 0.9, 1e9)
    first = dataclasses.replace(EDITS[2], gate=RunningEvidenceGate(torch.arange(16), torch.ones(16), 0.9, 40.0))
    for edit in (*EDITS, first, dataclasses.replace(EDITS[2], gate=never)):
        (effect,) = measure_edits(lm, packed, [edit])
        expected = naive(lm, packed, edit)
        columns = (effect.n_tokens, effect.nll_clean, effect.nll_edited, effect.kl)
        got = torch.stack([effect.by_document(column) for column in columns], dim=1)
        torch.testing.assert_close(got.float(), torch.tensor([expected[d] for d in "abcd"]), atol=5e-3, rtol=1e-4)
        assert effect.documents == ("a", "b", "c", "c", "d", "d", "a")
    other = measure_model(as_logits(tiny_model), tiny_model, cutter, packed)
    torch.testing.assert_close(other.n_tokens, effect.n_tokens)
    torch.testing.assert_close(other.nll_clean, effect.nll_clean, atol=1e-3, rtol=1e-4)


def test_the_suffix_of_each_piece() -> None:
    hits = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    counted = torch.tensor([[1, 1, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1]], dtype=torch.bool)
    piece = torch.tensor([[0, 0, 1, 1, 1, 1], [2, 2, 2, 2, 3, 3]])
    assert predictions.longest_suffix(hits, counted, piece).tolist() == [2, 2, 2, 0]


def test_heads_may_be_reshaped_by_the_sae(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    by_us, by_sae = (
        measure_edits(random_lm(tiny_model, cutter, "blocks.0.attn.hook_z", reshape), table, EDITS)
        for reshape in ("none", "hook_z")
    )
    for one, other in zip(by_us, by_sae, strict=True):
        torch.testing.assert_close(one.nll_edited, other.nll_edited)


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_post", "blocks.0.hook_mlp_out", "blocks.0.attn.hook_z"])
def test_an_edit_of_nothing_does_nothing(hook_name: str, tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, hook_name)
    never = RunningEvidenceGate(torch.arange(4), torch.ones(4), 0.9, float("inf"))
    for effect in measure_edits(
        lm, table, [FeatureEdit(()), FeatureEdit((1, 2), -1.0), FeatureEdit(tuple(range(32)), 3.0, never)]
    ):
        assert effect.nll_delta == pytest.approx(0, abs=1e-6)
        assert effect.mean(effect.kl) == pytest.approx(0, abs=1e-6)
    assert effect.gate_open == 0
    assert max_identity_error(lm, table) < 1e-4


def test_the_identity_error_finds_a_splice_that_is_none(
    tiny_model: Any, cutter: Any, table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    monkeypatch.setattr(Splice, "edited", lambda self, h, edit, masked=None, where=None: h + torch.linspace(0, 1, 32))
    assert max_identity_error(lm, table) > 1e-4


def test_gate_open_is_the_share_of_unmasked_positions(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    always, gated = measure_edits(lm, table, [FeatureEdit((1,), 1.0, AlwaysOpen()), EDITS[2]])
    assert always.gate_open == pytest.approx(1.0)
    opened = n = 0
    for tokens in lm.batches(table):
        kept = ~lm.masked(tokens)
        opened += int((EDITS[2].gate.open_from(lm.feature_acts(tokens), None)[0] & kept).sum())
        n += int(kept.sum())
    assert 0 < gated.gate_open < 1
    assert gated.gate_open == pytest.approx(opened / n)


def test_the_size_of_a_batch_changes_nothing(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    one, other = (measure_edits(dataclasses.replace(lm, batch_size=n), table, EDITS)[1] for n in (1, 8))
    torch.testing.assert_close(one.nll_edited, other.nll_edited)
    assert one.gate_open == other.gate_open


def test_edits_come_in_a_list(lm: HookedLM, table: TokenTable) -> None:
    edit = FeatureEdit((1,))
    with pytest.raises(ConfigError, match=r"got a FeatureEdit; give \[edit\]"):
        measure_edits(lm, table, edit)  # type: ignore[arg-type]
    (effect,) = measure_edits(lm, table, [edit])
    assert repr(effect).startswith(f"EditEffect({table.corpus}: {effect.nll_delta:+.4f} nats per token")


LATE = dataclasses.replace(EDITS[2], gate=RunningEvidenceGate(torch.arange(16), torch.ones(16), 0.9, 40.0))


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_post", "blocks.0.hook_mlp_out"])
def test_predictions_before_the_first_change_are_not_made_again(
    hook_name: str, tiny_model: Any, cutter: Any, table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = random_lm(tiny_model, cutter, hook_name)
    made: list[int] = []

    def count(clean: Any, edited: Any, selected: Any = slice(None)) -> torch.Tensor:
        if edited is not None:
            assert len(edited.states) == len(clean.nll[selected])
            made.append(len(edited.states))
        return predictions.sum_measures(clean, edited, selected)

    monkeypatch.setattr(effects, "sum_measures", count)
    (cut,) = measure_edits(lm, table, [LATE])
    n_from_the_first = 0
    for tokens in lm.batches(table):
        opened = LATE.gate.open_from(lm.feature_acts(tokens), None)[0] & ~lm.masked(tokens)
        n_from_the_first += int(((opened.cumsum(dim=1) > 0)[:, :-1] & (tokens[:, 1:] != 0)).sum())
    assert sum(made) == n_from_the_first
    assert 0 < n_from_the_first < table.tokens.numel() // 2

    made.clear()
    monkeypatch.setattr(effects, "is_causal", lambda model: False)
    (whole,) = measure_edits(lm, table, [LATE])
    assert sum(made) > n_from_the_first
    assert not torch.equal(whole.nll_edited, whole.nll_clean)
    for name in ("n_tokens", "nll_clean", "nll_edited", "kl", "agreements", "hits", "suffix"):
        torch.testing.assert_close(getattr(cut, name), getattr(whole, name), atol=1e-4, rtol=1e-5)


def test_a_model_that_reads_later_positions_is_measured_whole(
    tiny_model: Any, cutter: Any, table: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_model.cfg, "attention_dir", "bidirectional")
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    (effect,) = measure_edits(lm, table, [LATE])
    expected = naive(lm, table, LATE)
    got = torch.stack([effect.by_document(column) for column in (effect.nll_clean, effect.nll_edited, effect.kl)], dim=1)
    torch.testing.assert_close(got.float(), torch.tensor([expected[d][1:] for d in "abcd"]), atol=5e-3, rtol=1e-4)
    assert 0 < effect.gate_open < 0.5


def test_controls_are_measured_beside_edits(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    of_edits, of_controls = measure_with_controls(lm, table, EDITS[:2], [EDITS[2], LATE])
    pairs = [*zip(of_edits, measure_edits(lm, table, EDITS[:2]), strict=True)]
    pairs += zip(of_controls, edit_losses(lm, table, [EDITS[2], LATE]), strict=True)
    for found, alone in pairs:
        assert type(found) is type(alone)
        for field in dataclasses.fields(found):
            one, other = getattr(found, field.name), getattr(alone, field.name)
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, field.name
    for found, whole in zip(of_controls, measure_edits(lm, table, [EDITS[2], LATE]), strict=True):
        torch.testing.assert_close(found.nll_edited, whole.nll_edited)


def test_the_mean_loss_of_a_model(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    asked = dataclasses.replace(table, answers=torch.rand(table.tokens.shape, generator=torch.Generator().manual_seed(0)) > 0.5)
    for measured in (table, asked):
        effect = measure_model(as_logits(tiny_model), tiny_model, cutter, measured)
        loss = mean_loss(as_logits(tiny_model), cutter, measured, batch_size=3)
        assert loss == pytest.approx(effect.mean(effect.nll_edited), rel=1e-5)


def test_another_model_is_measured_as_an_edit_is(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    edit = EDITS[1]

    def edited(tokens: torch.Tensor) -> torch.Tensor:
        return tiny_model.run_with_hooks(tokens, fwd_hooks=[lm.splice.hook(edit, lm.masked(tokens))], prepend_bos=False)

    (by_edit,) = measure_edits(lm, table, [edit])
    by_model = measure_model(edited, tiny_model, cutter, table, batch_size=3)
    unchanged = measure_model(as_logits(tiny_model), tiny_model, cutter, table, batch_size=5)
    for name in ("n_tokens", "nll_clean", "nll_edited", "kl", "agreements", "hits", "suffix"):
        torch.testing.assert_close(getattr(by_model, name), getattr(by_edit, name), atol=5e-3, rtol=1e-4)
    assert unchanged.nll_delta == 0
    assert unchanged.top1_agreement == 1
    assert by_model.top1_agreement < 1


def test_what_greedy_decoding_gives_by_hand() -> None:
    hits = torch.tensor([[True, False, True, True], [True, True, True, True], [True, True, True, False]])
    counted = torch.tensor([[True, True, True, True], [False, True, True, False], [True, True, False, False]])
    assert predictions.longest_suffix(hits, counted).tolist() == [2, 2, 2]


def test_extraction_and_recall_are_those_of_greedy_decoding(tiny_model: Any, cutter: Any) -> None:
    """A text that the model itself continued is recalled exactly from the end of its prompt on."""
    prompt = torch.tensor([[0, 11, 12, 13]])
    tokens = tiny_model.generate(
        prompt, max_new_tokens=6, do_sample=False, verbose=False, prepend_bos=False, return_type="tokens"
    )
    answers = torch.zeros_like(tokens, dtype=torch.bool)
    answers[:, 4:] = True
    other = tokens.clone()
    other[0, 6] = (other[0, 6] + 1) % 4000 + 1  # the third of six answer tokens is another: at most the last three can be right
    texts = TokenTable("own", torch.cat([tokens, other]), ("own", "other"), torch.cat([answers, answers]))
    effect = measure_model(as_logits(tiny_model), tiny_model, cutter, texts)
    assert effect.n_tokens.tolist() == [6, 6]
    assert effect.hits[0] == effect.suffix[0] == 6
    assert effect.suffix[1] <= 3
    assert effect.exact_recall == 0.5


def test_edits_may_be_kept_to_the_positions_before_answers(tiny_model: Any, cutter: Any, table: TokenTable) -> None:
    lm = random_lm(tiny_model, cutter, "blocks.0.hook_resid_post")
    answers = torch.zeros_like(table.tokens, dtype=torch.bool)
    answers[:, -1] = True
    asked = dataclasses.replace(table, answers=answers)
    (effect,) = measure_edits(lm, asked, [EDITS[1]], answers_only=True)
    assert effect.n_tokens.tolist() == [1.0] * len(table)
    assert effect.gate_open == pytest.approx(8 / (8 * 31 - 1))
    (everywhere,) = measure_edits(lm, asked, [EDITS[1]])
    assert everywhere.gate_open == 1
    assert not torch.allclose(effect.nll_edited, everywhere.nll_edited)

    def edited_before_the_last(tokens: torch.Tensor) -> torch.Tensor:
        where = torch.zeros_like(tokens, dtype=torch.bool)
        where[:, -2] = True
        hook = lm.splice.hook(EDITS[1], lm.masked(tokens), where)
        return tiny_model.run_with_hooks(tokens, fwd_hooks=[hook], prepend_bos=False)

    by_hand = measure_model(edited_before_the_last, tiny_model, cutter, asked)
    torch.testing.assert_close(effect.nll_edited, by_hand.nll_edited, atol=5e-4, rtol=1e-4)
    assert not torch.allclose(effect.nll_edited, effect.nll_clean, atol=1e-2)


def test_features_do_not_read_across_a_separator(lm: HookedLM, table: TokenTable) -> None:
    tokens = table.tokens[2:3]
    other = tokens.clone()
    other[0, 1:17] = 77
    h, other_h = lm.activations(tokens), lm.activations(other)
    other_h[:, 17:] = h[:, 17:]  # what the model itself carries across is not the point
    before, after = lm.feature_acts(tokens, h), lm.feature_acts(tokens, other_h)
    assert torch.equal(before[:, 17:], after[:, 17:])
    assert not torch.equal(before[:, 16], after[:, 16])
    assert (before[:, [0, 17]] == 0).all()
    assert torch.equal(before, lm.feature_acts(tokens))


def test_kl_and_nll_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(), torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    kl = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    torch.testing.assert_close(predictions.kl_divergence(p, q), torch.tensor([kl, 0.0]))
    torch.testing.assert_close(predictions.token_nll(p, torch.tensor([1, 0])), torch.tensor([0.5, 0.9]).log().neg())
