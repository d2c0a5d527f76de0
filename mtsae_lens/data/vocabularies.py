"""Check that a tokenizer fits its model, and that a second model reads the same tokens as a first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from transformers import PreTrainedTokenizerBase

from mtsae_lens.data.bridges import AnyHookedModel
from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.errors import ModelError

_PROBE = "In the beginning, 1776: def f(x): return x"


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, n_embeddings: int) -> None:
    """Check that a model has an embedding for every token of its tokenizer that can occur in a context.

    Added tokens that no context contains, such as padding, may lie beyond the embeddings.

    Args:
        name: name of the model, for the error.
        tokenizer: its tokenizer.
        n_embeddings: number of tokens that the model has embeddings for.

    Raises:
        ModelError: the tokenizer has tokens without an embedding.
    """
    added, in_contexts = tokenizer.get_added_vocab(), (tokenizer.bos_token, tokenizer.eos_token)
    beyond = [
        token
        for token, number in tokenizer.get_vocab().items()
        if number >= n_embeddings and (token not in added or token in in_contexts)
    ]
    if beyond:
        raise ModelError(
            f"{name}: expected a tokenizer of at most {n_embeddings:,} tokens, as the model has embeddings, got {len(tokenizer):,} "
            f"({beyond[0]!r} has no embedding); save the tokenizer that the model was trained with in its folder"
        )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str | None]:
    """Return the BOS, EOS and padding tokens of a tokenizer; None for a token that it does not have.

    Args:
        tokenizer: the tokenizer.
    """
    return {kind: getattr(tokenizer, kind) for kind in ("bos_token", "eos_token", "pad_token")}


def remove_placeholder_tokens(tokenizer: PreTrainedTokenizerBase, own: Mapping[str, str | None]) -> None:
    """Remove the EOS token that TransformerLens gives a tokenizer without one, and also uses as its BOS and padding token.

    The model has no embedding for that token, or it is the token for unknown text. If a tokenizer has its own EOS token and no BOS
    token, the EOS token serves as BOS, in TransformerLens, in SAELens and here.

    Args:
        tokenizer: the tokenizer as TransformerLens left it, changed in place.
        own: its `special_tokens` before.
    """
    if own["eos_token"] is None:
        for kind, token in own.items():
            if token is None:
                setattr(tokenizer, kind, None)


def token_texts(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[int]) -> list[str]:
    """Return the text of each token as it reads inside a text; decoded alone, a SentencePiece token would lose the space before it.

    Args:
        tokenizer: the tokenizer.
        tokens: token ids.
    """

    def decode(numbers: list[int]) -> str:
        return str(tokenizer.decode(numbers, clean_up_tokenization_spaces=False))

    before = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = decode(before)
    after_it = ((token, decode([*before, token])) for token in tokens)
    return [text.removeprefix(start) if text.startswith(start) else decode([token]) for token, text in after_it]


def check_reads(model: AnyHookedModel, cutter: ContextCutter) -> None:
    """Check that a model can read the contexts that a cutter makes.

    Args:
        model: the language model.
        cutter: the tokenizer and the length of a context.

    Raises:
        ModelError: the context is too long for the model, or the model has a different tokenizer.
    """
    name = model.cfg.model_name
    if cutter.context_size > model.cfg.n_ctx:
        raise ModelError(
            f"expected a model with at least {cutter.context_size} positions, as the SAE was trained on, got {name} with "
            f"{model.cfg.n_ctx}; give a model with a longer context"
        )
    assert model.tokenizer is not None
    if not _same_tokens(model.tokenizer, cutter.tokenizer):
        raise ModelError(
            f"expected a model with the same tokenizer, got {name} with a different one, so losses on the same tokens cannot be compared; "
            "give a model with the same tokenizer"
        )


def check_reference(reference: AnyHookedModel, model: AnyHookedModel, cutter: ContextCutter) -> None:
    """Check that a reference reads the same contexts as a model, and has logits for the same vocabulary.

    Args:
        reference: the reference model.
        model: the model it is compared with.
        cutter: the tokenizer and the length of a context.

    Raises:
        ModelError: see `check_reads`; or the number of logits differs.
    """
    check_reads(reference, cutter)
    if reference.cfg.d_vocab != model.cfg.d_vocab:
        raise ModelError(
            f"expected {reference.cfg.model_name} to have {model.cfg.d_vocab:,} logits like {model.cfg.model_name}, got "
            f"{reference.cfg.d_vocab:,}; give a reference whose vocabulary has the same padding"
        )


def _same_tokens(one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    """Return whether two tokenizers cut text the same way and give no id to different tokens; either may have more tokens."""
    if one is other:
        return True
    if one(_PROBE, add_special_tokens=False)["input_ids"] != other(_PROBE, add_special_tokens=False)["input_ids"]:
        return False
    named = {number: token for token, number in one.get_vocab().items()}
    return all(named.get(number, token) == token for token, number in other.get_vocab().items())
