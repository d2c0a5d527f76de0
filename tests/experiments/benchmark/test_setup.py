"""Test the setup of a cell: models, tables, and the distance to the reference."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mtsae_lens.data.questions import read_questions
from mtsae_lens.data.token_tables import read_tokens
from mtsae_lens.opening import open_sae


def mean_nll(model: Any, table: Any) -> float:
    log_probs = model(table.tokens, prepend_bos=False)[:, :-1].log_softmax(dim=-1)
    targets = table.tokens[:, 1:]
    nll = -log_probs.gather(-1, targets[..., None])[..., 0]
    return float(nll[targets != 0].mean())


def test_the_goal_is_what_the_reference_loses_more_on_tune(make_setup: Any, text_task: Any) -> None:
    setup = make_setup(text_task)
    table = setup.task.table(setup.task.forget, "tune", setup.lm.cutter)
    expected = mean_nll(setup.reference, table) - mean_nll(setup.lm.model, table)
    assert abs(expected) > 0.1
    assert setup.goal == pytest.approx(expected, abs=1e-4)


def test_without_a_reference_there_is_no_goal(make_setup: Any, text_task: Any) -> None:
    setup = make_setup(text_task, None)
    assert setup.reference is None
    assert setup.goal is None


def test_the_text_is_cut_as_the_sae_was_trained(make_setup: Any, text_task: Any, tiny_sae_dir: Path) -> None:
    setup, (lm, _) = make_setup(text_task), open_sae(tiny_sae_dir)
    assert (setup.lm.cutter.context_size, setup.lm.cutter.prepend_bos) == (lm.cutter.context_size, lm.cutter.prepend_bos)
    assert setup.lm.splice.hook_name == lm.splice.hook_name
    assert setup.lm.sae.W_dec.equal(lm.sae.W_dec)


def test_methods_that_change_weights_learn_from_no_text_that_is_measured(
    make_setup: Any, text_task: Any, people_task: Any
) -> None:
    setup = make_setup(text_task)
    table = setup.training_table(text_task.forget_training)
    assert table.tokens.equal(read_tokens(text_task.forget_training, "train", setup.lm.cutter, 12).tokens)
    held_out = {name for s in ("tune", "test") for name in setup.task.table(setup.task.forget, s, setup.lm.cutter).documents}
    assert not held_out & set(table.documents)
    asked = make_setup(people_task)
    learned = asked.training_table("facts:forget:known")
    assert learned.tokens.equal(read_questions("facts:forget:known", "select", asked.lm.cutter, 120).tokens)


def test_a_subject_goes_to_another_process_before_anything_is_loaded(make_setup: Any, text_task: Any) -> None:
    setup = make_setup(text_task)
    other = pickle.loads(pickle.dumps(partial(print, setup))).args[0]
    assert other == setup
    assert other.task == text_task.task(4)
