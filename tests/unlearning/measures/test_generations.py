"""Test the measures of continuations: by hand, against single texts, and reproducible with a seed."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, DataError
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.measures.generations import (
    Continuations,
    Decoding,
    clean_log_prob,
    continue_texts,
    decode_samples,
    distinct_share,
    generation_health,
    repeated_share,
)

GREEDY = Decoding(n_prompt_tokens=6, n_new_tokens=10)
SAMPLED = dataclasses.replace(GREEDY, temperature=1.0)


@pytest.fixture(scope="module")
def table(lm: HookedLM, text_file: Path) -> TokenTable:
    return read_tokens(str(text_file), "test", lm.cutter, 6)


def strong(lm: HookedLM) -> FeatureEdit:
    return FeatureEdit(tuple(range(lm.sae.cfg.d_sae)), 8.0)


def test_distinct_and_repeated_by_hand() -> None:
    texts = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct_share(texts, 1) == pytest.approx(3 / 7)
    assert distinct_share(texts, 2) == pytest.approx(3 / 5)  # 12 21 23 of 12 21 12 12 23
    assert distinct_share(texts, 3) == 1.0
    assert distinct_share([[1]], 2) == 1.0
    assert repeated_share(texts, 2) == pytest.approx((1 / 3 + 0) / 2)  # within a text, not across texts
    assert repeated_share([[5] * 10], 4) == pytest.approx(1 - 1 / 7)
    assert repeated_share([[1, 2, 3]], 4) == 0.0


def test_the_clean_model_is_what_generate_gives(lm: HookedLM, table: TokenTable) -> None:
    clean = continue_texts(lm, table, GREEDY)
    assert torch.equal(clean.prompts, table.tokens[:, :6])
    assert clean.texts == continue_texts(lm, table, GREEDY, model=lm.model).texts
    for row, text in enumerate(clean.texts):
        tokens = table.tokens[row : row + 1, :6]
        for token in text:  # greedy decoding, by hand
            assert lm.model(tokens, prepend_bos=False)[0, -1].argmax() == token
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
    assert continue_texts(lm, table, GREEDY, edit=FeatureEdit(())).texts == clean.texts
    assert continue_texts(lm, table, GREEDY, edit=strong(lm)).texts != clean.texts


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(lm: HookedLM, table: TokenTable) -> None:
    state = torch.get_rng_state()
    one, same = (continue_texts(lm, table, SAMPLED, edit=strong(lm)).texts for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one == same
    assert one != continue_texts(lm, table, dataclasses.replace(SAMPLED, seed=1), edit=strong(lm)).texts
    torch.rand(3)
    assert one == continue_texts(lm, table, SAMPLED, edit=strong(lm)).texts


def test_the_log_probability_is_that_of_one_text_at_a_time(lm: HookedLM, table: TokenTable) -> None:
    prompts = table.tokens[:3, :6]
    continuations = Continuations(prompts, ((7, 8, 9, 10), (11,), ()))
    expected = []
    for prompt, text in zip(prompts, continuations.texts, strict=True):
        tokens = torch.cat([prompt, torch.tensor(text, dtype=torch.long)])
        log_probs = lm.model(tokens[None], prepend_bos=False)[0].log_softmax(-1)
        expected += [log_probs[place - 1, tokens[place]].item() for place in range(6, len(tokens))]
    assert len(expected) == 5
    mean = sum(expected) / 5
    assert clean_log_prob(lm, continuations) == pytest.approx(mean, abs=1e-4)
    health = generation_health(lm, continuations)
    assert health.perplexity == pytest.approx(math.exp(-mean), rel=1e-3)
    assert (health.n_texts, health.n_tokens, health.empty) == (3, 5, pytest.approx(1 / 3))
    assert json.loads(json.dumps(dataclasses.asdict(health)))["n_tokens"] == 5


def test_a_loop_and_noise_are_told_apart(lm: HookedLM, table: TokenTable) -> None:
    prompts = table.tokens[:, :6]
    generator = torch.Generator().manual_seed(0)
    noise = Continuations(prompts, tuple(tuple(torch.randint(5, 4000, (20,), generator=generator).tolist()) for _ in prompts))
    loop = Continuations(prompts, ((5, 6) * 10,) * len(prompts))
    clean, looped, noisy = (generation_health(lm, c) for c in (continue_texts(lm, table, GREEDY), loop, noise))
    assert looped.repeated > 0.8
    assert noisy.repeated == 0
    assert looped.distinct_2 < 0.05
    assert noisy.distinct_2 > 0.9
    assert noisy.perplexity > 10 * clean.perplexity  # what greedy decoding wrote is likely; noise is not


def test_texts_end_at_the_first_special_token(lm: HookedLM, table: TokenTable) -> None:
    class Ending:
        cfg, tokenizer, unembed = lm.model.cfg, lm.model.tokenizer, lm.model.unembed

        def generate(
            self,
            tokens: torch.Tensor,
            max_new_tokens=10,
            do_sample=False,
            temperature=1.0,
            stop_at_eos=False,
            verbose=False,
            **rest: Any,
        ) -> torch.Tensor:
            new = torch.tensor([[5, 6, 0, 7, 8, 9, 1, 1, 1, 1]]).expand(len(tokens), -1).clone()
            new[0, 0] = 0
            return torch.cat([tokens, new], dim=1)

    written = continue_texts(lm, table, GREEDY, model=Ending())  # type: ignore[arg-type]
    assert written.texts == ((), *[(5, 6)] * 3, (), (5, 6))  # batches of four
    with pytest.raises(DataError, match="expected continuations, got only empty ones"):
        generation_health(lm, dataclasses.replace(written, texts=((),) * 6))


def test_prompts_with_padding_are_left_out(lm: HookedLM, table: TokenTable) -> None:
    tokens = table.tokens.clone()
    tokens[1, 4:] = 0
    tokens[2, 6:] = 0  # after the prompt: no matter
    continuations = continue_texts(lm, dataclasses.replace(table, tokens=tokens), GREEDY)
    assert torch.equal(continuations.prompts, table.tokens[[0, 2, 3, 4, 5], :6])
    assert len(continuations.texts) == 5
    tokens[:, 3] = 0
    with pytest.raises(DataError, match="prompts without separators and padding"):
        continue_texts(lm, dataclasses.replace(table, tokens=tokens), GREEDY)


def test_samples_stand_side_by_side(lm: HookedLM, table: TokenTable) -> None:
    clean, edited = (continue_texts(lm, table, GREEDY, edit=edit) for edit in (None, strong(lm)))
    shown = decode_samples(lm, clean, edited, n_samples=2)
    assert len(shown) == 2
    decode = lm.cutter.tokenizer.decode
    assert shown[1].prompt == decode(table.tokens[1, 1:6].tolist())
    assert (shown[1].clean, shown[1].edited) == (decode(list(clean.texts[1])), decode(list(edited.texts[1])))
    other = dataclasses.replace(edited, prompts=edited.prompts.flip(0))
    with pytest.raises(DataError, match="of the same prompts"):
        decode_samples(lm, clean, other)


def test_what_cannot_be_generated_is_refused(lm: HookedLM, table: TokenTable) -> None:
    with pytest.raises(ConfigError, match="temperature >= 0, got 16, 48 and -1"):
        Decoding(temperature=-1)
    with pytest.raises(ConfigError, match=r"expected at most 64 tokens of prompt and continuation.* got 70"):
        continue_texts(lm, table, Decoding(10, 60))
    with pytest.raises(ConfigError, match=r"of prompt .*got .* and 40"):
        continue_texts(lm, table, Decoding(40, 5))
    with pytest.raises(ConfigError, match="expected an edit or another model, got both"):
        continue_texts(lm, table, GREEDY, edit=strong(lm), model=lm.model)
    with pytest.raises(ConfigError, match="causal gate"):
        continue_texts(lm, table, GREEDY, edit=FeatureEdit((1,), gate=SequenceRateGate(torch.tensor([1]), 0.1)))
