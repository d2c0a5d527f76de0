"""Test that the harness's requests are answered as the model with the edit answers each of them alone.

Where lm-evaluation-harness is installed, its own classes are used; elsewhere `lm_eval_stand_in` is.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lm_eval_stand_in
import pytest
import torch

from mtsae_lens.commands import lm_eval as command
from mtsae_lens.data.batch_sizes import contexts_at_once
from mtsae_lens.errors import ConfigError, DataError, ModelError, MTSAEWarning
from mtsae_lens.splice import hooked_lm
from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.scoring import score_continuations

IS_INSTALLED = importlib.util.find_spec("lm_eval") is not None
ALL = tuple(range(32))
SEA = "The storm wave and the salt rope of the deep blue harbour"
LAND = "The old red king and the queen sat under the tree"
PAIRS = [
    (SEA, " sank the anchor"),
    (LAND, " with bread"),
    ("", "The ship"),
    ("The ", "cat"),
    (SEA + " " + SEA, " fish"),
    ("a", " ship in a storm with north wind blue deep"),
    ("", "x"),
]


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness's model class for edits."""
    if not IS_INSTALLED:
        lm_eval_stand_in.install(monkeypatch)
        command.model_class.cache_clear()
    return command.model_class()


def sums(lm: HookedLM, text: str, weights: torch.Tensor, decay: float) -> float:
    """Return the largest evidence of a gate in a text."""
    tokens = lm.model.to_tokens(text, prepend_bos=True)
    evidence, largest = 0.0, 0.0
    for acts in lm.feature_acts(tokens)[0]:
        evidence = decay * evidence + float(((acts > 0) * weights).sum())
        largest = max(largest, evidence)
    return largest


@pytest.fixture(scope="module")
def edit(lm: HookedLM) -> FeatureEdit:
    """All features, behind a gate that opens in texts on the sea and stays closed in those on the land."""
    rates = [(lm.feature_acts(lm.model.to_tokens(text, prepend_bos=True))[0] > 0).float().mean(dim=0) for text in (SEA, LAND)]
    weights = (rates[0] - rates[1]).clamp(min=0)
    of_sea, of_land = (sums(lm, text + more, weights, 0.9) for text, more in ((SEA, ""), (LAND, " with bread")))
    assert of_sea > 1.2 * of_land
    return FeatureEdit(ALL, 3.0, RunningEvidenceGate(torch.tensor(ALL), weights, decay=0.9, threshold=(of_sea + of_land) / 2))


@pytest.fixture
def model(harness: Any, lm: HookedLM, edit: FeatureEdit, tiny_sae_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """`model(edit)`: the harness's model, from a saved edit; `model("off")` without one."""

    def make(given: Any = edit, **arguments: Any) -> Any:
        path = given
        if not isinstance(given, str):
            path = str(tmp_path / "edit.json")
            save_edit(path, given, lm)
        return harness.create_from_arg_string(f"sae={tiny_sae_dir},edit={path}", {"batch_size": 3} | arguments)

    return make


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def alone(lm: HookedLM, tokens: Sequence[int], edit: Any) -> torch.Tensor:
    """Return log-probabilities of one text, computed by TransformerLens with the splice's hook."""
    row = torch.tensor([tokens])
    hooks = [] if edit is None or len(tokens) == 1 else [lm.splice.hook(edit, lm.masked(row))]
    with torch.no_grad():
        return lm.model.run_with_hooks(row, fwd_hooks=hooks, prepend_bos=False)[0].log_softmax(dim=-1)


def expected(lm: HookedLM, before: Sequence[int], after: Sequence[int], edit: Any) -> tuple[float, bool]:
    log_probs = alone(lm, [*before, *after][:-1], edit)[-len(after) :]
    chosen = log_probs.gather(1, torch.tensor(after)[:, None])
    return float(chosen.sum()), log_probs.argmax(dim=1).tolist() == list(after)


def token_pairs(lm: HookedLM, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Tokenize as the harness does: a space at the end of a context belongs to the continuation."""

    def encode(text: str) -> list[int]:
        return lm.model.to_tokens(text, prepend_bos=True)[0].tolist()

    kept = [(before.rstrip(), before[len(before.rstrip()) :] + after) for before, after in pairs]
    return [
        (encode(before) if before else [0], encode(before + after)[len(encode(before) if before else [0]) :])
        for before, after in kept
    ]


def test_batches_of_long_requests_are_smaller(model: Callable[..., Any], lm: HookedLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request may be longer than the contexts of the SAE's training, so the limit on memory is that of the requests."""
    limit = 4 * 2 * 60 * lm.model.cfg.d_vocab  # two requests of 60 tokens
    monkeypatch.setattr(hooked_lm, "contexts_at_once", partial(contexts_at_once, max_bytes=limit))
    read, run = list[torch.Size](), HookedLM.activations
    monkeypatch.setattr(HookedLM, "activations", lambda lm, tokens: read.append(tokens.shape) or run(lm, tokens))
    edited = model(batch_size=16)
    pairs = [([0, *range(20, 20 + n)], [7]) for n in (57, 55, 53, *[5] * 12)]
    edited._loglikelihood_tokens([(None, *pair) for pair in pairs])
    assert [tuple(shape) for shape in read] == [(2, 58), (2, 54), (11, 6)]
    read.clear()
    generated, generate = list[torch.Size](), HookedLM.generate
    monkeypatch.setattr(
        HookedLM,
        "generate",
        lambda lm, tokens, *args, **options: generated.append(tokens.shape) or generate(lm, tokens, *args, **options),
    )
    texts = [lm.cutter.tokenizer.decode(range(20, 20 + n)) for n in (50, 49, 48, *[5] * 12)]
    edited.generate_until(requests(*((text, {"max_gen_toks": 1}) for text in texts)))
    assert all(4 * rows * positions * lm.model.cfg.d_vocab <= limit for rows, positions in generated)
    assert max(rows for rows, _ in generated) >= 11


@pytest.mark.parametrize("edited", [True, False])
def test_log_likelihoods_are_those_of_each_request_alone(
    model: Callable[..., Any], lm: HookedLM, edit: FeatureEdit, edited: bool
) -> None:
    given = edit if edited else None
    got = (model() if edited else model("off")).loglikelihood(requests(*PAIRS))
    for (value, is_greedy), (before, after) in zip(got, token_pairs(lm, PAIRS), strict=True):
        wanted, greedy = expected(lm, before, after, given)
        assert value == pytest.approx(wanted, abs=1e-4)
        assert is_greedy == greedy


def test_the_edit_changes_text_to_forget_and_leaves_text_to_keep_alone(model: Callable[..., Any]) -> None:
    """The state of the gate starts anew with each request, so the sea before the land in a batch does not open it."""
    pairs = [(SEA, " sank the anchor"), (LAND, " with bread"), (SEA, " fish"), (LAND, " ran")]
    clean, edited = ([value for value, _ in model(*which).loglikelihood(requests(*pairs))] for which in (("off",), ()))
    difference = (torch.tensor(clean) - torch.tensor(edited)).abs()
    assert difference[[0, 2]].min() > 0.05
    assert difference[[1, 3]].max() < 1e-4


def test_the_likeliest_continuation_is_greedy(model: Callable[..., Any], lm: HookedLM, edit: FeatureEdit) -> None:
    prompt = lm.model.to_tokens(SEA, prepend_bos=True)
    tokens = lm.generate(prompt, edit, max_new_tokens=3, do_sample=False)[0].tolist()
    before, after = tokens[:-3], tokens[-3:]
    other = [*after[:2], (after[2] + 1) % 4096]
    first, second = score_continuations(lm, edit, [(before, after), (before, other)])
    assert first.is_greedy
    assert not second.is_greedy


def test_a_long_request_is_cut_on_the_left(model: Callable[..., Any], lm: HookedLM, edit: FeatureEdit) -> None:
    edited = model(max_length=12)
    ((value, _),) = edited.loglikelihood(requests((SEA, " sank the anchor")))
    ((before, after),) = token_pairs(lm, [(SEA, " sank the anchor")])
    kept = [*before, *after][-13:]
    assert len(before) + len(after) > 13
    assert value == pytest.approx(expected(lm, kept[: -len(after)], after, edit)[0], abs=1e-4)


def test_whole_texts_are_cut_into_windows(model: Callable[..., Any], lm: HookedLM, edit: FeatureEdit) -> None:
    """Every token is scored once; windows after the first have the tokens before them as their context."""
    text = f"{SEA}. {LAND}. {SEA}"
    tokens = lm.model.to_tokens(text, prepend_bos=False)[0].tolist()
    size, n = 16, len(tokens)
    whole, empty, short = model(max_length=size).loglikelihood_rolling(requests((text,), ("",), ("a",)))
    wanted = expected(lm, [0], tokens[:size], edit)[0]
    for start in range(size, n, size):
        end = min(start + size, n)
        wanted += expected(lm, tokens[end - size - 1 : start], tokens[start:end], edit)[0]
    assert n > 2 * size
    assert whole == pytest.approx(wanted, abs=1e-3)
    assert empty == 0.0
    assert short == pytest.approx(expected(lm, [0], lm.model.to_tokens("a", prepend_bos=False)[0].tolist(), edit)[0], abs=1e-4)


@pytest.mark.parametrize("pad", [0, 7, None])
def test_continuations_are_those_of_each_prompt_alone(
    model: Callable[..., Any], lm: HookedLM, edit: FeatureEdit, pad: int | None
) -> None:
    prompts = [SEA, LAND, "The ship", SEA + " and " + LAND]
    edited = model()
    tokenizer = copy.deepcopy(lm.cutter.tokenizer)
    tokenizer.pad_token = None if pad is None else tokenizer.convert_ids_to_tokens(pad)
    edited.tokenizer = tokenizer
    edited.lm = replace(edited.lm, cutter=replace(edited.lm.cutter, tokenizer=tokenizer))
    options = {"until": ["\n\n\n"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    got = edited.generate_until(requests(*((prompt, options) for prompt in prompts)))
    for prompt, text in zip(prompts, got, strict=True):
        tokens = lm.model.to_tokens(prompt, prepend_bos=True)
        new = lm.generate(tokens, edit, max_new_tokens=6, do_sample=False)[0, tokens.shape[1] :].tolist()
        ended = new.index(0) if 0 in new else len(new)
        assert text == tokenizer.decode(new[:ended])
    clean = model("off").generate_until(requests(*((prompt, options) for prompt in prompts)))
    assert clean[0] != got[0]
    assert clean[1] == got[1]


def test_a_continuation_ends_before_the_first_of_the_strings(model: Callable[..., Any]) -> None:
    edited = model("off")
    (whole,) = edited.generate_until(requests((LAND, {"max_gen_toks": 8})))
    end = whole[4:6]
    one, first, several = edited.generate_until(
        requests(
            (LAND, {"until": end, "max_gen_toks": 8}),
            (LAND, {"until": [whole[-1], end, ""], "max_new_tokens": 8}),
            (LAND, {"until": ["never"], "max_gen_toks": 8}),
        )
    )
    assert one == whole.split(end)[0]
    assert first == whole.split(whole[-1])[0].split(end)[0]
    assert several == whole


def test_sampling_follows_the_task(model: Callable[..., Any]) -> None:
    edited = model()
    options = {"temperature": 2.0, "top_k": 50, "max_gen_toks": 8}
    texts = set()
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        texts |= set(edited.generate_until(requests((SEA, options))))
    assert len(texts) == 2


def test_a_gate_that_reads_ahead_reads_no_padding(model: Callable[..., Any], lm: HookedLM) -> None:
    """It reads the whole request, with its continuation, and cannot generate."""
    gate = SequenceRateGate(torch.arange(8), threshold=0.3)
    rate = FeatureEdit(ALL, 3.0, gate)
    edited = model(rate)
    for (value, _), (before, after) in zip(edited.loglikelihood(requests(*PAIRS)), token_pairs(lm, PAIRS), strict=True):
        assert value == pytest.approx(expected(lm, before, after, rate)[0], abs=1e-4)
    with pytest.raises(ConfigError, match="expected a causal gate to generate"):
        edited.generate_until(requests((SEA, {"max_gen_toks": 2})))


def test_a_text_begins_with_one_bos_token(model: Callable[..., Any], lm: HookedLM) -> None:
    bos = lm.cutter.tokenizer.bos_token
    edited, bare = model(), model(add_bos_token=False)
    assert edited.tok_encode("the") == edited.tok_encode(bos + "the") == [0, *bare.tok_encode("the")]
    assert edited.tok_encode("the", add_special_tokens=False) == bare.tok_encode("the")
    assert bare.tok_encode("the", add_special_tokens=True) == edited.tok_encode("the")
    assert (edited.prefix_token_id, edited.eot_token_id, edited.max_length) == (0, 0, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_gen_toks": 64},
            "expected max_gen_toks from 1 to 63, below the model's context, got 64; give --gen_kwargs max_gen_toks=32",
        ),
        ({}, "got 256; give --gen_kwargs max_gen_toks=32"),
        ({"max_gen_toks": 4, "num_beams": 2}, "got 'num_beams'; leave it out of the task's generation_kwargs"),
    ],
)
def test_options_of_generation_that_cannot_be(model: Callable[..., Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model("off").generate_until(requests((SEA, options)))


def test_what_cannot_be_scored(model: Callable[..., Any], lm: HookedLM) -> None:
    for pair in (([], [1]), ([1], []), ([1], [2] * 65)):
        with pytest.raises(DataError, match="expected a context of 1 token or more and a continuation of 1 to 64 tokens, got"):
            score_continuations(lm, None, [pair])
    with pytest.raises(ConfigError, match="expected max_length from 1 to 64, the model's context, got 65"):
        model("off", max_length=65)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected an SAE and an edit in --model_args, got one of them or neither"),
        ({"sae": "runs/sae"}, "expected an SAE and an edit in --model_args, got one of them or neither"),
        ({"sae": "a", "edit": "b", "pretrained": "c"}, "in --model_args, got 'pretrained'; leave it out"),
        ({"sae": "a", "edit": "b", "batch_size": "many"}, "expected a number of requests, or auto, as batch_size, got 'many'"),
        ({"sae": "a", "edit": "b", "batch_size": 0}, "expected a number of requests, or auto, as batch_size, got 0"),
    ],
)
def test_arguments_that_cannot_be(harness: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        harness(**arguments)


def test_another_language_model_is_refused_unless_allowed(
    harness: Any, lm: HookedLM, tiny_sae_dir: Path, tmp_path: Path, save_neox: Callable[..., Path]
) -> None:
    save_edit(tmp_path / "edit.json", FeatureEdit((1,)), lm)
    arguments = {"sae": str(tiny_sae_dir), "edit": str(tmp_path / "edit.json"), "batch_size": "auto"}
    other = str(save_neox(tmp_path / "other", initializer_range=0.1))
    assert harness(**arguments).lm.batch_size == 16
    with pytest.raises(ModelError, match="the language model that the edit was made on, got other"):
        harness(**arguments, model=other)
    with pytest.warns(MTSAEWarning, match="this other is another model"):
        assert harness(**arguments, model=other, allow_other_model=True).edit == FeatureEdit((1,))


def test_without_a_gpu_the_harness_default_device_is_replaced(
    harness: Any, tiny_sae_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(MTSAEWarning, match="no CUDA device was found; running on the CPU"):
        opened = harness(sae=str(tiny_sae_dir), edit="off", device="cuda:0")
    assert str(opened.lm.model.cfg.device) == "cpu"


def test_the_command_registers_the_model(
    harness: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("mtsae") is harness
    monkeypatch.setattr(sys, "argv", ["mtsae-lm-eval", "--model", "mtsae", "--model_args", "sae=a", "--tasks", "arc_easy"])
    monkeypatch.setattr(importlib.import_module("lm_eval.__main__"), "cli_evaluate", lambda: print(*sys.argv[1:]))
    command.main()
    assert capsys.readouterr().out == "--model mtsae --model_args sae=a --tasks arc_easy\n"


def test_a_missing_harness_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "model_class", command.model_class.__wrapped__)  # without its cache
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "lm_eval", raising=False)
    with pytest.raises(SystemExit) as stop:
        command.main()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: expected lm-evaluation-harness, got no package lm_eval; run: pip install 'mtsae-lens[lm-eval]'\n"
