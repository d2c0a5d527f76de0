"""Test `mtsae export`: three forms of one edit, and a one-line error for what cannot be exported."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from mtsae_lens.commands.export import _projected
from mtsae_lens.commands.export_comparison import mean_kl
from mtsae_lens.commands.export_settings import ExportSettings
from mtsae_lens.data import language_models
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ModelError
from mtsae_lens.export.standalone import load_edited
from mtsae_lens.splice.edit_files import save_edit
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.splice.gates import RunningEvidenceGate, SequenceRateGate
from mtsae_lens.unlearning.measures.effects import edited_logits

GATE = RunningEvidenceGate(torch.arange(16), torch.ones(16), decay=0.9, threshold=2.0)
EDIT = FeatureEdit((0, 1, 2, 3, 4, 5), 1.0, GATE)


@pytest.fixture
def export(mtsae: Callable[..., Any], lm: Any, tiny_sae_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """`mtsae export` of an edit, with further arguments, into `tmp_path / "out"`."""
    save_edit(tmp_path / "edit.json", EDIT, lm.splice, {"seed": 11})

    def call(form: str, *more: Any) -> Any:
        arguments = ("--edit", tmp_path / "edit.json", "--form", form, "--out", tmp_path / "out")
        return mtsae("export", tiny_sae_dir, *arguments, *more)

    return call


@pytest.fixture
def texts(text_file: Path, sea_file: Path, tmp_path: Path) -> tuple[Any, ...]:
    (tmp_path / "few.yaml").write_text("n_contexts: 6\ntrain_contexts: 8\n")
    return ("--forget", sea_file, "--retain", text_file, "--near", "kjv", "--config", tmp_path / "few.yaml")


def naive_kl(lm: Any, table: TokenTable, model: Any) -> float:
    """Token by token."""
    divergences = []
    for row in table.tokens:
        hooks = [lm.splice.hook(EDIT, lm.masked(row[None]))]
        with torch.no_grad():
            p = lm.model.run_with_hooks(row[None], fwd_hooks=hooks, prepend_bos=False)[0].softmax(-1)
            q = model(row[None]).logits[0].softmax(-1)
        divergences += [float((p[t] * (p[t] / q[t]).log()).sum()) for t in range(len(row) - 1) if row[t + 1] != 0]
    return sum(divergences) / len(divergences)


def test_the_hooked_form(export: Callable[..., Any], texts: tuple[Any, ...], lm: Any, tmp_path: Path, sea_file: Path) -> None:
    outcome = export("hooked", *texts)
    assert outcome.code == 0, outcome.err
    assert "opened by load_edited" in outcome.out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics) == {"form", "caveat", "comparison", "numbers", "provenance"}
    report = (tmp_path / "out" / "report.html").read_text()
    assert metrics["caveat"] in report
    assert "Comparison with the edit at its hook" in report
    assert [row["role"] for row in metrics["comparison"].values()] == ["forget", "near", "far"]
    for row in metrics["comparison"].values():
        assert row["exported"]["nll_delta"] == pytest.approx(row["hook"]["nll_delta"], abs=1e-5)
        assert abs(row["exported"]["kl_from_hook"]) < 1e-6
    assert metrics["comparison"][f".../{sea_file.name}"]["hook"]["kl"] > 1e-4  # the edit does something
    for path in [path for path in (tmp_path / "out").rglob("*") if path.is_file()]:
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path
    load_edited(tmp_path / "out" / "model")
    assert '"seed": 11' in (tmp_path / "out" / "model" / "README.md").read_text()


@pytest.mark.filterwarnings("default::mtsae_lens.errors.MTSAEWarning")
def test_another_language_model_is_refused_unless_allowed(
    export: Callable[..., Any], lm: Any, tmp_path: Path, save_neox: Callable[..., Path]
) -> None:
    """The exported edit then names the model that it was exported with."""
    save_edit(tmp_path / "edit.json", EDIT, lm)
    other = ("--model", save_neox(tmp_path / "other", initializer_range=0.1))
    refused = export("hooked", *other)
    assert refused.code == 2
    assert "expected bert-t5-gemma, the language model that the edit was made on, got other" in refused.error
    assert not (tmp_path / "out" / "model").exists()
    allowed = export("hooked", *other, "--allow-other-model")
    assert allowed.code == 0
    assert "made on bert-t5-gemma, and this other is another model" in allowed.err
    assert json.loads((tmp_path / "out" / "model" / "edit.json").read_text())["model"]["name"] == "other"


@pytest.mark.parametrize(("form", "more"), [("projected", ()), ("low-rank", ("--rank", 2, "--n-steps", 3))])
def test_the_forms_in_weights(
    form: str,
    more: tuple[Any, ...],
    export: Callable[..., Any],
    texts: tuple[Any, ...],
    lm: Any,
    tmp_path: Path,
    sea_file: Path,
) -> None:
    outcome = export(form, *texts, *more)
    assert outcome.code == 0, outcome.err
    assert "opened by AutoModelForCausalLM.from_pretrained" in outcome.out
    assert ("projection at the hook" in outcome.out) == (form == "projected")
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    row = metrics["comparison"][f".../{sea_file.name}"]
    assert {"role", "n_tokens", "hook", "exported"} <= set(row)
    if form == "low-rank":
        assert (len(metrics["numbers"]["losses"]), metrics["numbers"]["rank"]) == (3, 2)
    else:
        assert metrics["numbers"]["n_directions"] == 6
        assert row["hook_projection"]["kl_from_hook"] > 0
    folder = tmp_path / "out" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder)
    table = read_tokens(str(sea_file), "test", lm.cutter, 6)
    assert row["exported"]["kl_from_hook"] == pytest.approx(naive_kl(lm, table, model), rel=1e-3)
    assert "suppression" not in (folder / "README.md").read_text()  # there is no hook to take away


def test_the_kl_of_a_model_from_itself_is_zero_and_counts_what_is_counted(lm: Any) -> None:
    tokens = torch.randint(1, 4096, (5, 16), generator=torch.Generator().manual_seed(0))
    counted = torch.zeros_like(tokens, dtype=torch.bool)
    counted[:, 9] = True
    edited, clean = edited_logits(lm, EDIT), edited_logits(lm, FeatureEdit(()))
    everywhere = TokenTable("t", tokens, tuple("abcde"))
    assert mean_kl(lm, everywhere, edited, edited) == 0
    with torch.no_grad():
        p, q = (model(tokens)[:, 8].log_softmax(-1) for model in (edited, clean))
    expected = float((p.exp() * (p - q)).sum(-1).mean())
    assert mean_kl(lm, TokenTable("t", tokens, tuple("abcde"), counted), edited, clean) == pytest.approx(expected, rel=1e-4)
    assert mean_kl(lm, everywhere, edited, clean) != pytest.approx(expected, rel=1e-2)


def test_questions_are_measured_too(export: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "few.yaml").write_text("n_contexts: 6\n")
    outcome = export("hooked", "--forget", "facts:forget:known", "--config", tmp_path / "few.yaml")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert 6 <= metrics["comparison"]["facts:forget:known"]["n_tokens"] < 60  # answers alone


def test_without_texts_it_is_written_and_nothing_is_compared(export: Callable[..., Any], tmp_path: Path) -> None:
    outcome = export("projected")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["comparison"] == {}
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_a_family_that_cannot_be_exported_is_refused_before_its_weights_are_read(
    export: Callable[..., Any], tiny_llama_dir: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_llama_dir, tmp_path / "gemma"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]})
    )
    (folder / "model.safetensors").write_bytes(b"broken")
    for prefix in ("", "bridge:"):
        outcome = export("hooked", "--model", f"{prefix}{folder}")
        assert (outcome.code, "expected a model of type gpt_neox" in outcome.error) == (
            2,
            True,
        )


def test_what_cannot_be_written_is_one_line(
    export: Callable[..., Any], mtsae: Callable[..., Any], lm: Any, tiny_sae_dir: Path, tmp_path: Path, sea_file: Path
) -> None:
    outcome = export("low-rank", "--forget", sea_file)
    assert (outcome.code, "give --forget and --retain" in outcome.error) == (2, True)
    outcome = export("melted")
    assert (outcome.code, "--form" in outcome.error) == (2, True)
    for again in ("--near", "--retain"):
        outcome = export("low-rank", "--forget", "kjv", "--retain", "sotu", again, "kjv")
        assert (outcome.code, "got two for kjv" in outcome.error) == (2, True)
    outcome = export("hooked", "--forget", "no such text")
    assert outcome.code == 2
    outcome = export("low-rank", "--forget", sea_file, "--retain", "kjv", "--rank", 0)
    assert (outcome.code, "setting rank" in outcome.error) == (2, True)
    save_edit(tmp_path / "edit.json", FeatureEdit((1,), 1.0, SequenceRateGate(torch.arange(3), 0.1)), lm.splice)
    outcome = export("hooked")
    assert (outcome.code, "got a SequenceRateGate" in outcome.error) == (2, True)
    assert not (tmp_path / "out" / "model").exists()
    outcome = mtsae("export", tiny_sae_dir, "--out", tmp_path / "out")
    assert (outcome.code, "expected --edit, got none" in outcome.error) == (2, True)


@pytest.mark.parametrize("form", ["hooked", "projected", "low-rank"])
def test_a_bridge_is_exported_as_the_model_under_it(
    export: Callable[..., Any],
    texts: tuple[Any, ...],
    tiny_model_dir: Path,
    tmp_path: Path,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The numbers are those of a `HookedTransformer`, and the export of a bridge makes none, because TransformerLens 4 has none."""
    numbers = []
    for prefix in ("", "bridge:"):
        if prefix:
            monkeypatch.setattr(language_models, "_load_folder", lambda *_: pytest.fail("made a HookedTransformer"))
        outcome = export(form, *texts, "--model", f"{prefix}{tiny_model_dir}", "--n-steps", 2, "--out", tmp_path / "out")
        assert outcome.code == 0, outcome.err
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        rows = metrics["comparison"].values()
        measured = [row["exported"][name] for row in rows for name in ("nll_delta", "kl", "kl_from_hook")]
        numbers.append(measured + metrics["numbers"].get("losses", []))
    assert numbers[1] == pytest.approx(numbers[0], abs=1e-4)


def test_a_projection_of_directions_is_expected(lm: Any) -> None:
    class Unprojected(FeatureEdit):
        def as_projection(self, sae: Any) -> Any:
            return self

    with pytest.raises(ModelError, match=r"Unprojected\.as_projection to return a DirectionEdit, got a Unprojected"):
        _projected(ExportSettings(sae=Path("sae"), edit=Path("edit.json")), lm, Unprojected((1,)))
