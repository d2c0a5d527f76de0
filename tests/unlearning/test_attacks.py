"""Test attacks: relearning curves against a plain loop, diluted tables, and rounding by output channel."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate
from mtsae_lens.unlearning.attacks import dilute, quantize, relearn
from mtsae_lens.unlearning.finetuning.batches import mixed_batches, sample_documents
from mtsae_lens.unlearning.finetuning.clones import clone_model
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, finetune
from mtsae_lens.unlearning.finetuning.losses import GradientAscent
from mtsae_lens.unlearning.measures.effects import as_logits, measure_edits, measure_model

EDITS: list[Edit] = [
    FeatureEdit(tuple(range(16)), 2.0),
    FeatureEdit(tuple(range(32)), 1.0, RunningEvidenceGate(torch.arange(32), torch.ones(32), 0.9, 8.0)),
    FeatureClamp((0, 1, 2), (-3.0, -3.0, -3.0), "any_fires"),
    DirectionEdit(orthonormal_rows(torch.eye(32)[:2]), torch.zeros(32)),
]
SETTINGS = FinetuneSettings(lr=3e-3, n_steps=4, batch_size=3, snapshots=(0, 2, 4), seed=3)


@pytest.fixture(scope="module")
def learned(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "train", cutter, 6)


@pytest.fixture(scope="module")
def measured(cutter: Any, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "test", cutter, 5)


@pytest.fixture(scope="module")
def questions(cutter: Any) -> TokenTable:
    return read_questions("facts:forget:known", "tune", cutter, 40)


def plain_relearning(lm: Any, learned: TokenTable, measured: TokenTable, edit: Edit, through: bool) -> float:
    """The loss on `measured`, edit in place, after four steps of a plain loop."""
    model = clone_model(lm.model)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.lr, weight_decay=0.0)

    def nll(tokens: torch.Tensor, hooked: bool) -> torch.Tensor:
        hooks = [lm.splice.hook(edit, lm.masked(tokens))] if hooked else []
        log_probs = model.run_with_hooks(tokens, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)[:, :-1]
        picked = -log_probs.gather(-1, tokens[:, 1:, None])[..., 0]
        counted = tokens[:, 1:] != 0
        return (picked * counted).sum() / counted.sum()

    for batch in islice(mixed_batches([learned], lm.cutter, 3, seed=3), 4):
        optimizer.zero_grad()
        nll(batch.tokens, through).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    lm.sae.zero_grad()
    with torch.no_grad():
        return nll(measured.tokens, True).item()


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_relearning_is_a_plain_loop_through_the_hook_or_past_it(
    edit: Edit, lm: Any, learned: TokenTable, measured: TokenTable
) -> None:
    before = {name: value.clone() for name, value in lm.model.named_parameters()}
    ends = []
    for through in (True, False):
        points = relearn(lm, learned, [measured], SETTINGS, edit=edit, hook_while_learning=through)
        assert [point.step for point in points] == [0, 2, 4]
        (clean,) = measure_edits(lm, measured, [edit])
        torch.testing.assert_close(points[0].effects[0].nll_edited, clean.nll_edited, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(points[-1].effects[0].nll_clean, clean.nll_clean)
        assert points[-1].nll[0] == pytest.approx(plain_relearning(lm, learned, measured, edit, through), abs=1e-3)
        ends.append(points[-1].nll[0])
    assert ends[0] != pytest.approx(ends[1], abs=5e-3)
    assert all(torch.equal(value, before[name]) for name, value in lm.model.named_parameters())
    assert all(parameter.grad is None for parameter in lm.sae.parameters())


def test_weights_that_forgot_learn_again(lm: Any, learned: TokenTable, measured: TokenTable) -> None:
    (forgot,) = finetune(lm.model, GradientAscent(), learned, [], lm.cutter, FinetuneSettings(3e-3, 4, 4))
    before = measure_model(as_logits(forgot.model), lm.model, lm.cutter, measured)
    start = {name: value.clone() for name, value in forgot.model.named_parameters()}
    points = relearn(lm, learned, [measured, learned], dataclasses.replace(SETTINGS, snapshots=()), weights=forgot.model)
    assert [point.step for point in points] == [0, 4]
    torch.testing.assert_close(points[0].effects[0].nll_edited, before.nll_edited)
    assert len(points[0].exact_recall) == 2
    for place in (0, 1):
        assert points[1].nll[place] < points[0].nll[place] - 0.1
    assert all(torch.equal(value, start[name]) for name, value in forgot.model.named_parameters())


def test_with_nothing_forgotten_there_is_nothing_to_relearn(lm: Any, learned: TokenTable) -> None:
    with pytest.raises(ConfigError, match="expected a model that forgot or an edit"):
        relearn(lm, learned, [learned], SETTINGS)
    with pytest.raises(ConfigError, match="at most n_steps=1"):
        relearn(lm, learned, [learned], dataclasses.replace(SETTINGS, n_steps=1), weights=lm.model)


def test_dilution_puts_filler_before_text_and_counts_the_text(
    cutter: Any, learned: TokenTable, questions: TokenTable, sea_file: Path
) -> None:
    filler = read_tokens(str(sea_file), "test", cutter, 4)
    for table, n in ((learned, 12), (sample_documents(questions, 8), 32 - questions.tokens.shape[1])):
        diluted = dilute(table, filler, cutter, n, seed=0)
        counted, before = diluted.counted(cutter), table.counted(cutter)
        assert diluted.tokens.shape[1] == min(32, table.tokens.shape[1] + n)
        assert diluted.documents == table.documents
        for row in range(len(table)):
            assert diluted.tokens[row, 0] == table.tokens[row, 0] == 0
            assert any(torch.equal(diluted.tokens[row, 1 : n + 1], whole[1 : n + 1]) for whole in filler.tokens)
            assert torch.equal(diluted.tokens[row, n + 1 :], table.tokens[row, 1 : diluted.tokens.shape[1] - n])
        assert not counted[:, :n].any()
        assert torch.equal(counted[:, n:], before[:, : counted.shape[1] - n])
        assert counted.any(dim=1).all()
    packed = TokenTable("packed", learned.tokens[:1], ("a",), spans=((("a", 0), ("b", 10), ("c", 25)),))
    assert dilute(packed, filler, cutter, 12, seed=0).spans == ((("a", 0), ("b", 22)),)  # the third no longer fits
    last = int(questions.answers.nonzero()[:, 1].max())
    assert dilute(questions, filler, cutter, 31 - last).counted(cutter).sum() == questions.counted(cutter).sum()
    for n in (32 - last, 30):
        with pytest.raises(DataError, match="questions that fit into 32 tokens"):
            dilute(questions, filler, cutter, n)
    with pytest.raises(DataError, match="n_filler_tokens from 1 to 31, got 32"):
        dilute(learned, filler, cutter, 32)


def test_rounding_is_to_the_nearest_level_of_each_output_channel(tiny_model: Any) -> None:
    rounded = dict(quantize(tiny_model, 4).named_parameters())
    touched = set()
    for name, weight in tiny_model.named_parameters():
        kind = name.split(".")[-1].lstrip("_")
        if not kind.startswith("W_") or kind in ("W_E", "W_U", "W_pos"):
            assert torch.equal(rounded[name], weight), name
            continue
        touched.add(kind)
        if kind in ("W_Q", "W_K", "W_V"):  # (head, d_model, d_head): a channel is a head's component
            channels = [(h, slice(None), c) for h in range(weight.shape[0]) for c in range(weight.shape[2])]
        elif kind == "W_O":  # (head, d_head, d_model)
            channels = [(slice(None), slice(None), c) for c in range(weight.shape[2])]
        else:
            channels = [(slice(None), c) for c in range(weight.shape[1])]
        for channel in channels:
            scale = weight[channel].abs().max() / 7
            levels = torch.arange(-7, 8) * scale
            nearest = levels[(weight[channel][..., None] - levels).abs().argmin(dim=-1)]
            torch.testing.assert_close(rounded[name][channel], nearest)
    assert touched == {"W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"}


def test_more_bits_change_less_and_zero_weights_stay(tiny_model: Any) -> None:
    tokens = torch.arange(1, 21)[None]
    clean = tiny_model(tokens, prepend_bos=False)
    errors = [(quantize(tiny_model, bits)(tokens, prepend_bos=False) - clean).abs().max().item() for bits in (4, 8, 16)]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    empty = clone_model(tiny_model)
    empty.blocks[0].mlp.W_in.zero_()
    assert not quantize(empty, 4).blocks[0].mlp.W_in.any()
    with pytest.raises(ConfigError, match="at least 2"):
        quantize(tiny_model, 1)
