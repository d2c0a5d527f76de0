"""Answer the requests of lm-evaluation-harness with an edit at the hook of a language model.

The harness has a model that adds steering vectors (`--model steered`), with one feature per hook, at every position. Here an edit may change
any number of features, and its gate decides where, with a state that starts anew with each request. `mtsae_lens.commands.lm_eval` opens a
saved edit and registers the model as `mtsae`.

This module does not import the harness. `EditedRequests` is the part of a model class that does not depend on it; the other part, which turns
a context and a continuation into tokens, is the harness's `TemplateLM`, so that both are scored as in its own models.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch

from mtsae_lens.data.prompts import check_text
from mtsae_lens.errors import ConfigError
from mtsae_lens.progress import track
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.scoring import batches_by_length, score_continuations

_NEW_TOKENS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SAMPLING = ("temperature", "top_k", "top_p")


class EditedRequests:
    """Log-likelihoods and continuations of a language model with an edit, as lm-evaluation-harness asks for them.

    Texts begin with a BOS token if the contexts of the SAE's training did. As everywhere, special tokens and the first position are neither
    read nor edited.

    Args:
        lm: the model with its SAE.
        edit: the edit, with its gate; None for the model without an edit.
        max_length: largest number of tokens of a request, up to the model's context; None for the model's context.
        max_gen_toks: number of new tokens if a task does not say it.
        add_bos_token: whether texts begin with a BOS token; None as in the training of the SAE.

    Raises:
        ConfigError: `max_length` exceeds the model's context, or a BOS token is wanted and the tokenizer has none.
    """

    def __init__(
        self,
        lm: HookedLM,
        edit: Edit | None,
        *,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
    ) -> None:
        super().__init__()  # the harness's class prepares its cache
        n_ctx = lm.model.cfg.n_ctx
        if max_length is not None and not 1 <= max_length <= n_ctx:
            raise ConfigError(f"expected max_length from 1 to {n_ctx}, the model's context, got {max_length}; change it")
        self.lm, self.edit = lm, edit
        self.tokenizer: Any = lm.cutter.tokenizer
        self.max_length, self.max_gen_toks = max_length or n_ctx, max_gen_toks
        self._start = lm.cutter.start_tokens if add_bos_token is None else [self.prefix_token_id] if add_bos_token else []

    @property
    def eot_token_id(self) -> int | None:
        """Return the token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """Return the token that stands before a text without a context: BOS, else EOS.

        Raises:
            ConfigError: the tokenizer has neither.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if bos is None and eos is None:
            raise ConfigError(
                "expected a tokenizer with a BOS or EOS token, got one without; choose a task whose requests have a context"
            )
        return eos if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Return the name of the tokenizer."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turn messages into a prompt with the tokenizer's template.

        Args:
            chat_history: the messages.
            add_generation_prompt: whether the prompt ends with the beginning of an answer.
        """
        ends = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
        return self.tokenizer.apply_chat_template(chat_history, tokenize=False, **ends)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Tokenize a text.

        Args:
            string: the text.
            add_special_tokens: whether a BOS token is prepended; None if `add_bos_token` says so and the text does not begin with one.
            kwargs: not used; for the harness's interface.

        Raises:
            DataError: the text is not valid Unicode.
        """
        check_text(string, "a text of the task")
        tokens = self.tokenizer(string, add_special_tokens=False, verbose=False)["input_ids"]
        if add_special_tokens is None:
            return [*([] if tokens[:1] == self._start else self._start), *tokens]
        return [*([self.prefix_token_id] if add_special_tokens else []), *tokens]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Score continuations, given as tokens after the tokens of their contexts. A request longer than `max_length` is cut on the left."""
        pairs = [(context, continuation) for _, context, continuation in requests]
        scores = score_continuations(self.lm, self.edit, pairs, self.max_length)
        for (request, _, _), score in zip(requests, scores, strict=True):
            if request is not None:
                self._remember("loglikelihood", request, (score.log_likelihood, score.is_greedy))
        return [(score.log_likelihood, score.is_greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Compute the log-likelihood of whole texts. A text longer than the context is cut into windows; the gate starts anew in each.

        Args:
            requests: the harness's requests; the first argument of each is a text.
            disable_tqdm: not used; for the harness's interface.

        Returns:
            The log-likelihood of each text, in nats.
        """
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: PLC0415

        windows, owners = list[tuple[list[int], list[int]]](), list[int]()
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0], add_special_tokens=False)
            cut = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1)
            windows += [make_disjoint_window(window) for window in cut]
            owners += [number] * (len(windows) - len(owners))
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, score_continuations(self.lm, self.edit, windows, self.max_length), strict=True):
            totals[owner] += score.log_likelihood
        for request, total in zip(requests, totals, strict=True):
            self._remember("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue prompts up to the first of the strings that end an answer.

        Args:
            requests: the harness's requests; the arguments of each are a prompt and the task's options of generation.
            disable_tqdm: not used; for the harness's interface.

        Returns:
            The continuations, without the string that ended them.

        Raises:
            ConfigError: an option is unknown, or the new tokens leave no room for a prompt.
        """
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        found = [""] * len(requests)
        keys = [_frozen(request.args[1]) for request in requests]
        for rows in track(self._generation_batches(prompts, keys), "continuing prompts", "batch"):
            options = dict(requests[rows[0]].args[1])
            for row, text in zip(rows, self.continue_prompts([prompts[row] for row in rows], options), strict=True):
                found[row] = text
                self._remember("generate_until", requests[row].args, text)
        return found

    def _generation_batches(self, prompts: Sequence[Sequence[int]], keys: Sequence[Hashable]) -> list[list[int]]:
        """Group prompts with the same options, similar lengths together; of one length if there is no token to pad with."""
        pads = self.tokenizer.pad_token_id is not None
        lengths, groups = [min(len(prompt), self.max_length) for prompt in prompts], dict[Hashable, list[int]]()
        for row, prompt in enumerate(prompts):
            groups.setdefault((keys[row], None if pads else len(prompt)), []).append(row)
        return [batch for rows in groups.values() for batch in batches_by_length(self.lm, rows, lengths)]

    def continue_prompts(self, prompts: Sequence[Sequence[int]], options: Mapping[str, Any]) -> list[str]:
        """Continue prompts with the same options. A prompt that leaves no room for the new tokens is cut on the left.

        Args:
            prompts: the tokens of each prompt.
            options: `until`, `max_gen_toks`, `do_sample`, `temperature`, `top_k` and `top_p`.

        Returns:
            The continuations, each up to the first string of `until` or the end of the text.

        Raises:
            ConfigError: an option is unknown, or the new tokens leave no room for a prompt.
        """
        until, n_new, sampling = self._options(options)
        room = self.max_length - n_new
        kept = [[*prompt][-room:] or [self.prefix_token_id] for prompt in prompts]
        width, pad = max(map(len, kept)), self.tokenizer.pad_token_id
        tokens = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in kept], device=self.lm.model.cfg.device)
        continued = self.lm.generate(tokens, self.edit, max_new_tokens=n_new, **sampling)
        return [self._text(row, until) for row in continued[:, width:].tolist()]

    def _options(self, given: Mapping[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
        """Return the strings that end an answer, the number of new tokens, and the options of sampling."""
        options = dict(given)
        until = options.pop("until", None) or []
        limits = [options.pop(name) for name in _NEW_TOKENS if name in options]
        n_new = int(next((limit for limit in limits if limit is not None), self.max_gen_toks))
        if not 0 < n_new < self.max_length:
            raise ConfigError(
                f"expected max_gen_toks from 1 to {self.max_length - 1}, below the model's context, got {n_new}; give --gen_kwargs "
                f"max_gen_toks={min(32, self.max_length // 2)}"
            )
        sampling = {name: options.pop(name) for name in _SAMPLING if options.get(name) is not None}
        do_sample = options.pop("do_sample", None)
        do_sample = sampling.get("temperature", 0) > 0 if do_sample is None else bool(do_sample)
        unknown = sorted(name for name, value in options.items() if value is not None)
        if unknown:
            raise ConfigError(
                f"expected options of generation among until, {', '.join((*_NEW_TOKENS, 'do_sample', *_SAMPLING))}, got {unknown[0]!r}; leave "
                "it out of the task's generation_kwargs"
            )
        return (
            [until] if isinstance(until, str) else list(until),
            n_new,
            {"do_sample": do_sample} | (sampling if do_sample else {}),
        )

    def _text(self, tokens: Sequence[int], until: Sequence[str]) -> str:
        """Decode new tokens up to the end of the text, and cut at the first string that ends an answer."""
        eos = self.eot_token_id
        ended = tokens.index(eos) if eos in tokens else len(tokens)
        text = self.tokenizer.decode(tokens[:ended], skip_special_tokens=True)
        for end in filter(None, until):
            text = text.split(end)[0]
        return text

    def _remember(self, kind: str, request: Any, answer: Any) -> None:
        """Put an answer into the harness's cache."""
        self.cache_hook.add_partial(kind, request, answer)  # type: ignore[attr-defined]


def _frozen(options: Mapping[str, Any]) -> str:
    """Return options of generation as a value that can be compared and hashed."""
    return repr(sorted(options.items()))
