"""Run tiny tasks with the real lm-evaluation-harness: `pytest tests/interop/harness.py` after `pip install 'mtsae-lens[lm-eval]'`.

The file is not collected with the other tests, because the harness brings 30 more packages. Its results must be those that follow from
`score_continuations` and `HookedLM.generate`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.tasks import TaskManager

from mtsae_lens.commands import lm_eval as command
from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import FeatureActiveGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.splice.scoring import score_continuations

pytestmark = [pytest.mark.filterwarnings("default")]  # of the harness and its packages

EDIT = FeatureEdit(tuple(range(32)), 3.0, FeatureActiveGate(torch.arange(16)))
ROWS = [
    {"text": "The storm wave and the salt rope", "choices": [" sank", " anchor fish", " old king"], "answer": 1},
    {"text": "The old red king and the queen sat", "choices": [" on bread", " sail", " under the tree"], "answer": 2},
    {"text": "A ship in a storm with north wind", "choices": [" blue", " deep", " the cat"], "answer": 0},
]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
num_fewshot: 0
"""
TASKS = {
    "choose": """
task: choose
output_type: multiple_choice
doc_to_text: "{{text}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
target_delimiter: ""
metric_list: [{metric: acc}]
""",
    "perplexity": """
task: perplexity
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
""",
    "continue": """
task: continue
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["."], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}


@pytest.fixture
def arguments(lm: HookedLM, tiny_sae_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the tasks and the edit; return the model's arguments."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "tasks").mkdir()
    for name, text in TASKS.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text + COMMON.format(rows=rows))
    save_edit(tmp_path / "edit.json", EDIT, lm)
    command.model_class()
    return f"sae={tiny_sae_dir},edit={tmp_path / 'edit.json'}"


def scores(lm: HookedLM, edit: Any, pairs: list[tuple[str, str]]) -> list[float]:
    def encode(text: str) -> list[int]:
        return lm.model.to_tokens(text, prepend_bos=True)[0].tolist()

    tokens = [(encode(before) if before else [0], encode(before + after)[len(encode(before)) :]) for before, after in pairs]
    return [score.log_likelihood for score in score_continuations(lm, edit, tokens)]


@pytest.mark.parametrize("edit", [EDIT, None], ids=["edit", "off"])
def test_the_tasks_give_what_follows_from_the_model(arguments: str, lm: HookedLM, tmp_path: Path, edit: Any) -> None:
    arguments = arguments if edit else arguments.partition(",")[0] + ",edit=off"
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    found = lm_eval.simple_evaluate("mtsae", arguments, tasks=[*TASKS], task_manager=manager, batch_size=2, bootstrap_iters=0)
    assert found is not None
    for sample in found["samples"]["choose"]:
        row = sample["doc"]
        wanted = scores(lm, edit, [(row["text"], choice) for choice in row["choices"]])
        assert [float(answer[0][0]) for answer in sample["resps"]] == pytest.approx(wanted, abs=1e-4)
        assert sample["acc"] == (max(range(3), key=wanted.__getitem__) == row["answer"])
    total = sum(scores(lm, edit, [("", row["text"]) for row in ROWS]))
    n_words = sum(len(row["text"].split()) for row in ROWS)
    assert found["results"]["perplexity"]["word_perplexity,none"] == pytest.approx(math.exp(-total / n_words), rel=1e-4)
    for sample in found["samples"]["continue"]:
        tokens = lm.model.to_tokens(sample["doc"]["text"], prepend_bos=True)
        new = lm.generate(tokens, edit, max_new_tokens=5, do_sample=False)[0, tokens.shape[1] :].tolist()
        new = new[: new.index(0)] if 0 in new else new
        assert sample["resps"] == [[lm.cutter.tokenizer.decode(new).split(".")[0]]]


def test_the_command(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--model", "mtsae", "--model_args", arguments, "--include_path", str(tmp_path / "tasks"), "--tasks", "choose"]
    monkeypatch.setattr(sys, "argv", ["mtsae-lm-eval", *words, "--output_path", str(tmp_path / "out")])
    command.main()
    assert "|choose|" in capsys.readouterr().out
    (result,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(result.read_text())["results"]["choose"]["sample_len"] == len(ROWS)
