"""Test the stream of activations: which positions are masked, and that it can start at any step."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.activations import ActivationReader, SequenceActivations
from mtsae_lens.data.contexts import ContextCutter, ContextStream
from mtsae_lens.data.documents import read_documents
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import DataError
from mtsae_lens.sae.temporal import gather_reads

HOOK = "blocks.0.hook_resid_post"
POS, BATCH, BLOCK = 16, 2, 3


@pytest.fixture(scope="module")
def stream(tiny_model: Any, text_file: Path) -> SequenceActivations:
    contexts = ContextStream(partial(read_documents, str(text_file), "train"), ContextCutter(tiny_model.tokenizer, POS), seed=3)
    return SequenceActivations(ActivationReader(tiny_model, HOOK), contexts, BATCH, BLOCK, lm_batch_size_sequences=4, seed=3)


def sorted_columns(h: torch.Tensor) -> torch.Tensor:
    """Equal for the same rows in another order, and steady under rounding."""
    return h.sort(dim=0).values


def sorted_rows(h: torch.Tensor) -> list[list[float]]:
    return sorted(h.tolist())


def test_a_block_is_the_activations_of_its_contexts(stream: SequenceActivations, tiny_model: Any) -> None:
    tokens = torch.tensor(list(islice(iter(stream.contexts), 2 * BATCH * BLOCK)))[BATCH * BLOCK :]  # of the second block
    _, cache = tiny_model.run_with_cache(tokens, prepend_bos=False)
    walls = stream.cutter.special_positions(tokens)
    walls[:, 0] = True
    expected = cache[HOOK].masked_fill(walls.unsqueeze(-1), 0.0).flatten(0, 1)
    got = torch.cat(list(islice(stream.sequences(BLOCK), BLOCK)))
    torch.testing.assert_close(sorted_columns(got), sorted_columns(expected), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, expected)  # shuffled
    assert got.view(-1, POS, 32)[:, 0].eq(0).all()


def test_contexts_stay_whole(stream: SequenceActivations, tiny_model: Any) -> None:
    tokens = torch.tensor(list(islice(iter(stream.contexts), BATCH * BLOCK)))
    _, cache = tiny_model.run_with_cache(tokens, prepend_bos=False)
    rows = torch.cat(list(islice(stream.sequences(), BLOCK))).view(-1, POS, 32)[:, 1:]
    kept = ~stream.cutter.special_positions(tokens)[:, 1:].unsqueeze(-1)
    distance = torch.cdist(rows.flatten(1), (cache[HOOK][:, 1:] * kept).flatten(1))
    assert sorted(distance.argmin(dim=1).tolist()) == list(range(BATCH * BLOCK))
    assert distance.amin(dim=1).max() < 1e-3


def test_separators_inside_a_context_are_zero_and_nothing_else_is(tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text('{"text": "A short one of eight tokens."}\n' * 200)
    contexts = ContextStream(partial(read_documents, str(path), "train"), ContextCutter(tiny_model.tokenizer, POS))
    tokens = torch.tensor(list(islice(iter(contexts), 6)))
    n_special = contexts.cutter.special_positions(tokens).sum().item()
    assert n_special > 6  # more than the BOS of each
    stream = SequenceActivations(ActivationReader(tiny_model, HOOK), contexts, BATCH, BLOCK)
    rows = torch.cat(list(islice(stream.sequences(), BLOCK)))
    assert (rows == 0).all(dim=-1).sum().item() == n_special


def test_blocks_say_which_positions_are_masked(stream: SequenceActivations) -> None:
    block = next(stream.blocks(0))
    tokens = torch.tensor(list(islice(stream.contexts, BATCH * BLOCK)))
    assert torch.equal(block.masked, stream.cutter.masked(tokens))
    assert torch.equal(block.masked, (block.h == 0).all(dim=-1))


def test_position_0_is_zero_without_bos_too(stream: SequenceActivations) -> None:
    cutter = ContextCutter(stream.cutter.tokenizer, POS, prepend_bos=False)
    without = replace(stream, contexts=replace(stream.contexts, cutter=cutter))
    rows = next(without.sequences()).view(-1, POS, 32)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:] != 0).any(dim=-1).all()


@pytest.mark.parametrize("kind", ["sequences", "mixed"])
def test_the_stream_can_be_entered_at_any_step(stream: SequenceActivations, kind: str) -> None:
    batches = getattr(stream, kind)
    straight = list(islice(batches(), 3 * BLOCK + 1))
    for first_step in range(2 * BLOCK + 2):
        entered = list(islice(batches(first_step), BLOCK + 1))
        for got, expected in zip(entered, straight[first_step:], strict=False):
            assert torch.equal(got, expected), f"step {first_step}"
    assert not torch.equal(straight[0], straight[1])
    assert not torch.equal(straight[0], straight[BLOCK])


def test_the_stream_goes_on_beyond_an_epoch(tiny_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the river ran over the old stone bridge and under the moon\n" * 8)
    contexts = ContextStream(partial(read_documents, str(path), "train"), ContextCutter(tiny_model.tokenizer, POS))
    stream = SequenceActivations(ActivationReader(tiny_model, HOOK), contexts, BATCH, BLOCK)
    straight = list(islice(stream.sequences(), 12))
    assert torch.equal(next(stream.sequences(11)), straight[11])


def test_the_last_block_holds_what_the_run_needs(stream: SequenceActivations) -> None:
    n_batches = 2 * BLOCK + 1
    run = replace(stream, n_batches=n_batches)
    assert [len(block.h) for block in run.blocks(0)] == [BATCH * BLOCK, BATCH * BLOCK, BATCH]
    straight = list(run.mixed())
    assert len(straight) == n_batches
    assert all(torch.equal(a, b) for a, b in zip(straight[: 2 * BLOCK], stream.mixed(), strict=False))
    for first_step in range(n_batches):
        assert all(torch.equal(a, b) for a, b in zip(run.mixed(first_step), straight[first_step:], strict=True))


def test_a_block_that_was_read_already_is_used_once(stream: SequenceActivations, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(stream, n_batches=2 * BLOCK)
    expected = list(run.blocks(0))
    run = replace(run, read_already=[expected[0]])
    read, sizes = ActivationReader.read, []
    monkeypatch.setattr(ActivationReader, "read", lambda reader, tokens: sizes.append(len(tokens)) or read(reader, tokens))
    for place in range(2):
        assert all(torch.equal(block.h, expected[block.number].h) for block in run.blocks(0))
        assert sum(sizes) == (8, 20)[place]  # contexts 6 to 11, then 0 to 11, in whole forward passes of four
    assert run.read_already == []


@pytest.mark.parametrize("kind", ["sequences", "mixed"])
def test_the_seed_decides_the_order_within_a_block(stream: SequenceActivations, kind: str) -> None:
    other = SequenceActivations(stream.reader, stream.contexts, BATCH, BLOCK, seed=4)
    same, changed = (torch.cat(list(islice(getattr(s, kind)(), BLOCK))) for s in (stream, other))
    torch.testing.assert_close(sorted_columns(same), sorted_columns(changed), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(same, changed, atol=1e-5)


def test_mixed_rows_are_the_unmasked_rows_of_the_same_block_mixed(stream: SequenceActivations) -> None:
    for block in (0, 2):
        sequences = torch.cat(list(islice(stream.sequences(block * BLOCK), BLOCK)))
        batches = list(islice(stream.mixed(block * BLOCK), BLOCK))
        tokens = torch.cat(batches)
        kept = sequences[(sequences != 0).any(dim=-1)]
        assert (tokens != 0).any(dim=-1).all()
        assert sorted_rows(tokens) == sorted_rows(kept)
        assert not torch.equal(tokens, kept)
        assert max(map(len, batches)) - min(map(len, batches)) <= 1
        assert max(map(len, batches)) <= stream.batch_size_tokens


def test_a_mixed_row_may_bring_along_what_a_temporal_sae_reads(stream: SequenceActivations) -> None:
    offsets = [0, -1, -3]
    plain = list(islice(stream.mixed(2), BLOCK))
    wide = list(islice(stream.mixed(2, partial(gather_reads, offsets=offsets, padding="causal")), BLOCK))
    contexts = torch.cat([torch.cat(list(islice(stream.sequences(b * BLOCK), BLOCK))).view(-1, POS, 32) for b in range(2)])
    for own, row in zip(torch.cat(plain), torch.cat(wide), strict=True):
        (place,) = (contexts == own).all(dim=-1).nonzero()  # where in which context this row stands
        for read, offset in zip(row.view(len(offsets), -1), offsets, strict=True):
            start = int(place[1]) + offset
            between = contexts[place[0], max(start, 0) : int(place[1]) + 1]
            blocked = start < 0 or bool((between == 0).all(dim=-1).any())  # by the context's start or a wall
            assert torch.equal(read, torch.zeros(32) if blocked else contexts[place[0], start])


def test_heads_are_flattened_or_one_is_taken(tiny_model: Any) -> None:
    tokens = torch.arange(2 * POS).view(2, POS) + 5
    _, cache = tiny_model.run_with_cache(tokens, prepend_bos=False)
    z = cache["blocks.1.attn.hook_z"]
    assert torch.equal(ActivationReader(tiny_model, "blocks.1.attn.hook_z").read(tokens), z.flatten(2))
    assert torch.equal(ActivationReader(tiny_model, "blocks.1.attn.hook_z", head_index=1).read(tokens), z[:, :, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_activations_that_are_not_finite_are_refused(stream: SequenceActivations, tiny_model_dir: Path, value: float) -> None:
    model = load_language_model(str(tiny_model_dir))
    model.blocks[0].mlp.b_out.data[3] = value
    broken = SequenceActivations(ActivationReader(model, HOOK), stream.contexts, BATCH, BLOCK)
    with pytest.raises(DataError, match=f"expected finite activations at {HOOK}"):
        next(broken.sequences())
