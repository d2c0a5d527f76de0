"""Whether a tokenizer fits its model, and a second model the tokens of a first: else numbers mean nothing, or work ends in the middle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import ModelError

_PROBE = "In the beginning, 1776: def f(x): return x"


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> None:
    """Raise `ModelError` for a tokenizer with tokens that the model has no embedding for.

    Added tokens that no context holds, such as padding, may lie beyond it.
    """
    added, in_contexts = tokenizer.get_added_vocab(), (tokenizer.bos_token, tokenizer.eos_token)
    beyond = [
        token
        for token, number in tokenizer.get_vocab().items()
        if number >= n_embeddings and (token not in added or token in in_contexts)
    ]
    if beyond:
        raise ModelError(
            f"{name}: the model has embeddings for {n_embeddings:,} tokens, its tokenizer has {len(tokenizer):,} ({beyond[0]!r} is "
            "beyond); save the tokenizer that the model was trained with beside it"
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    """BOS, EOS and padding."""
    return {kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "pad_token")}


def undo_invented_tokens(tokenizer: PreTrainedTokenizerBase, own: Mapping[str, str | None]) -> None:
    """Take back the EOS that TransformerLens gives a tokenizer without one, and makes its BOS and padding too.

    It is a token that the model has no embedding for, or the one for unknown text. Where a tokenizer has an EOS of its own, and no BOS,
    the EOS serves as BOS, in TransformerLens, in SAELens and here.

    Args:
        tokenizer: as TransformerLens left it.
        own: its `special_tokens` before.
    """
    if own["eos_token"] is None:
        for kind, token in own.items():
            if token is None:
                setattr(tokenizer, kind, None)


def token_texts(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> list[str]:
    """The text of each token as it stands inside a text: decoded alone, a SentencePiece token would lose the space before it."""

    def decode(numbers: list[int]) -> str:
        return str(tokenizer.decode(numbers, clean_up_tokenization_spaces=False))

    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = decode(before)
    after_it = ((token, decode([*before, token])) for token in tokens)
    return [text.removeprefix(start) if text.startswith(start) else decode([token]) for token, text in after_it]


def check_reads(model: AnyHookedModel, cutter: ContextCutter) -> None:
    """Raise `ModelError` unless a model can read the contexts that a cutter makes."""
    name = model.cfg.model_name
    if cutter.context_size > model.cfg.n_ctx:
        raise ModelError(
            f"{name} has a context of {model.cfg.n_ctx} positions, but the SAE was trained on {cutter.context_size}"
        )
    assert model.tokenizer is not None
    if not _same_tokens(model.tokenizer, cutter.tokenizer):
        raise ModelError(
            f"{name} has another tokenizer, so its loss on the same tokens means nothing; give a model with the same one"
        )


def check_reference(reference: AnyHookedModel, model: AnyHookedModel, cutter: ContextCutter) -> None:
    """Raise `ModelError` unless a reference reads the same contexts as a model, and says how likely the same tokens are."""
    check_reads(reference, cutter)
    if reference.cfg.d_vocab != model.cfg.d_vocab:
        raise ModelError(
            f"{reference.cfg.model_name} has logits for {reference.cfg.d_vocab:,} tokens, {model.cfg.model_name} for "
            f"{model.cfg.d_vocab:,}, so they cannot be compared; give a reference whose vocabulary is padded alike"
        )


def _same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """A text is cut alike, and no number means one token here and another there; either may have more tokens."""
    if one is other:
        return True
    if one(_PROBE, add_special_tokens=False)["input_ids"] != other(_PROBE, add_special_tokens=False)["input_ids"]:
        return False
    named = {number: token for token, number in one.get_vocab().items()}
    return all(named.get(number, token) == token for token, number in other.get_vocab().items())
