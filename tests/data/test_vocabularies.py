"""Test the checks that a tokenizer fits its model, and that two models read the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.data.vocabularies import check_reads, check_reference, token_texts
from mtsae_lens.errors import ModelError
from mtsae_lens.experiments.benchmark.arms import BenchmarkTask
from mtsae_lens.experiments.benchmark.setup import BenchmarkSetup
from mtsae_lens.unlearning.task import Corpus

TEXT = "In the beginning, 1776: def f(x): return x. And the earth was without form, and void. "


def save_tokenizer(folder: Path, n_tokens: int, text: str = TEXT, **special: str) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    names = sorted(set(special.values()))
    trainer = trainers.BpeTrainer(
        vocab_size=n_tokens, special_tokens=names, initial_alphabet=alphabet, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator([text] * 9, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture
def save(tmp_path: Path, save_neox: Callable[..., Path]) -> Callable[..., str]:
    """Save a tiny model with a given number of embeddings, and its tokenizer."""

    def call(name: str, n_embeddings: int, n_tokens: int, text: str = TEXT, **special: str) -> str:
        folder = save_neox(tmp_path / name, vocab_size=n_embeddings, bos_token_id=None, eos_token_id=None)
        save_tokenizer(folder, n_tokens, text, **special)
        return str(folder)

    return call


ENDS = {"eos_token": "<end>"}


@pytest.mark.parametrize("prefix", ["", "bridge:"])
def test_a_tokenizer_larger_than_the_model_is_refused(save: Callable[..., str], prefix: str) -> None:
    with pytest.raises(ModelError, match=r"at most 270 tokens.* got 28\d .*trained with"):
        load_language_model(prefix + save("small", 270, 280, **ENDS))
    assert load_language_model(prefix + save("padded", 290, 280, **ENDS)).cfg.d_vocab == 290


def test_added_padding_beyond_the_model_is_no_trouble_but_an_added_end_is(save: Callable[..., str]) -> None:
    folder = save("added", 280, 280, **ENDS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    assert len(tokenizer) == 280
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert load_language_model(folder).tokenizer.pad_token_id == 280  # type: ignore[union-attr]
    tokenizer.add_special_tokens({"eos_token": "<another end>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="'<another end>' has no embedding"):
        load_language_model(folder)


@pytest.mark.parametrize("prefix", ["", "bridge:"])
@pytest.mark.parametrize("special", [{}, {"unk_token": "<unk>"}], ids=["none", "unknown"])
def test_no_special_token_is_invented(save: Callable[..., str], prefix: str, special: dict[str, str]) -> None:
    """TransformerLens would make the token for unknown text, or one beyond the model, BOS, EOS and padding."""
    tokenizer = load_language_model(prefix + save("plain", 280, 280, **special)).tokenizer
    assert tokenizer is not None
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, None, None)
    assert ContextCutter(tokenizer, 8, prepend_bos=False).special_token_ids.tolist() == []


@pytest.mark.parametrize("prefix", ["", "bridge:"])
def test_an_end_of_its_own_serves_as_bos(save: Callable[..., str], prefix: str) -> None:
    tokenizer = load_language_model(prefix + save("ends", 280, 280, **ENDS)).tokenizer
    assert tokenizer is not None
    assert tokenizer.bos_token == tokenizer.pad_token == "<end>"


def test_tokenizers_that_agree_on_a_probe_but_name_other_tokens_differ(save: Callable[..., str]) -> None:
    loaded = []
    for word in ("earth", "heaven"):
        folder = save(word, 290, 280, **ENDS)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        tokenizer.add_tokens([word + "ly"])
        tokenizer.save_pretrained(folder)
        loaded.append(load_language_model(folder))
    one, other = loaded
    assert one.tokenizer(TEXT)["input_ids"] == other.tokenizer(TEXT)["input_ids"]
    with pytest.raises(ModelError, match="same tokenizer"):
        check_reads(other, ContextCutter(one.tokenizer, 8))


def test_a_tokenizer_that_was_extended_is_the_same(save: Callable[..., str]) -> None:
    folder = save("extended", 290, 280, **ENDS)
    model = load_language_model(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    assert model.tokenizer is not None
    check_reads(load_language_model(folder), ContextCutter(model.tokenizer, 8))


def test_a_reference_with_more_logits_is_refused(save: Callable[..., str], tmp_path: Path) -> None:
    """Or distances of distributions would fail after all the work."""
    model, wide = (load_language_model(save(f"m{n}", n, 280, **ENDS)) for n in (280, 296))
    assert model.tokenizer is not None
    cutter = ContextCutter(model.tokenizer, 8)
    check_reference(model, model, cutter)
    with pytest.raises(ModelError, match="m296 to have 280 logits like m280, got 296"):
        check_reference(wide, model, cutter)


def test_the_benchmark_checks_its_reference(lm: Any, save: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of a reference with a different tokenizer cannot be compared."""
    monkeypatch.setattr(BenchmarkSetup, "lm", property(lambda _: replace(lm)))
    corpora = (Corpus("kjv", "forget"), Corpus("sotu", "far"))
    task = BenchmarkTask("own", corpora, "kjv", ("sotu",))
    subject = BenchmarkSetup(task, 4, "unused", save("stranger", 4096, 280, **ENDS), Path("unused"))
    with pytest.raises(ModelError, match="same tokenizer, got stranger"):
        _ = subject.reference


def sentencepiece(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer that marks the space before a word, of one of three decoders that drop a leading one."""
    text = [TEXT] * 9
    if name == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))  # type: ignore[call-arg]
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece(cleanup=False)
        trainer: Any = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["<unk>"], show_progress=False)
    elif name == "metaspace":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=60, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
        trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>"], max_token_length=6, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@pytest.mark.parametrize("name", ["metaspace", "llama", "wordpiece"])
def test_tokens_keep_the_space_before_them(name: str) -> None:
    tokenizer = sentencepiece(name)
    ids = tokenizer(TEXT)["input_ids"]
    assert "".join(token_texts(tokenizer, ids)).strip() == tokenizer.decode(ids).strip()
    assert "".join(tokenizer.decode([token]) for token in ids).count(" ") < tokenizer.decode(ids).count(" ")


def test_tokens_of_bytes_are_decoded_as_they_are(lm: Any) -> None:
    tokenizer = lm.cutter.tokenizer
    assert token_texts(tokenizer, range(4096)) == [tokenizer.decode([token]) for token in range(4096)]
