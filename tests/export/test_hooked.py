"""Test that an exported model equals the hooked one with its edit: same predictions, same text, without this package."""

from __future__ import annotations

import ast
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from mtsae_lens.data.language_models import load_language_model
from mtsae_lens.errors import ModelError
from mtsae_lens.export import hooked, standalone
from mtsae_lens.export.hooked import export_hooked
from mtsae_lens.export.standalone import GATES, attach, identity, load_edited
from mtsae_lens.export.standalone.layer import tensors_of
from mtsae_lens.splice import model_identity
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.error_edits import CombinedEdit, ErrorEdit
from mtsae_lens.splice.evidence_gates import DecayedMeanGate, TwoStateGate
from mtsae_lens.splice.gates import FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.group_gate import KnownGroupsGate
from mtsae_lens.splice.hooked_lm import HookedLM

ATOL = 1e-4
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
RUNNING = RunningEvidenceGate(torch.arange(24), torch.linspace(0.5, 1.5, 24), decay=0.8, threshold=11.0)
NONE, RAW = torch.tensor([], dtype=torch.long), torch.linspace(-1, 1, 32)[None]
TWO_WEIGHTS = torch.linspace(-0.5, 0.9, 48).view(2, 24)
ACTIVE = FeatureActiveGate(torch.arange(6))
DIRECTIONS = orthonormal_rows(torch.randn(3, 32, generator=torch.Generator().manual_seed(2)))
EDITS: dict[str, Edit] = {
    "features": FeatureEdit(tuple(range(20)), 2.0),
    "features_running": FeatureEdit(tuple(range(40)), 2.0, RUNNING),
    "clamp_fires": FeatureClamp((1, 5, 9), (-3.0, 2.0, -4.0), "fires", ACTIVE),
    "clamp_any": FeatureClamp((1, 5, 9), (-3.0, 2.0, -4.0), "any_fires"),
    "clamp_everywhere": FeatureClamp((1, 5, 9), (-3.0, 2.0, -4.0), "everywhere", RUNNING),
    "features_two_state": FeatureEdit(
        tuple(range(40)),
        2.0,
        TwoStateGate("features", torch.arange(24), TWO_WEIGHTS, torch.tensor([-3.5, -3.5]), 0.0, 0.1, 0.2),
    ),
    "activations_two_state": FeatureEdit(
        tuple(range(40)), 2.0, TwoStateGate("activations", NONE, RAW, torch.tensor([0.1]), 0.0, 0.1, 0.2)
    ),
    "activations_mean": FeatureEdit(
        tuple(range(40)), 2.0, DecayedMeanGate("activations", NONE, RAW, torch.tensor([0.1]), 0.0, 0.8)
    ),
    "activations_groups": FeatureEdit(
        tuple(range(40)),
        2.0,
        KnownGroupsGate(
            torch.linspace(-0.1, 0.03, 96).view(3, 32),
            torch.zeros(32),
            torch.eye(3),
            torch.full((3, 3), 0.5),
            torch.ones(3),
            0.0,
        ),
    ),
    "directions": DirectionEdit(DIRECTIONS, torch.linspace(-1, 1, 32), 0.5, ACTIVE),
    "error": ErrorEdit(DIRECTIONS, torch.linspace(-1, 1, 32), 0.5, ACTIVE),
    "combined": CombinedEdit(
        (
            FeatureClamp((1, 5, 9), (-3.0, 2.0, -4.0), "everywhere"),
            FeatureEdit((2,), 2.0),
            ErrorEdit(DIRECTIONS, torch.ones(32)),
        ),
        RUNNING,
    ),
}
STATEFUL = ("features_running", "features_two_state", "activations_two_state", "activations_mean")
RELU = {"activation": "relu", "scale_norm": "none", "apply_b_dec_to_input": False}
CASES: list[tuple[str, str, str, dict[str, Any], str]] = [
    *(("neox", "blocks.0.hook_resid_post", "mtsae", {}, edit) for edit in EDITS),
    ("neox", "blocks.1.hook_resid_pre", "mtsae", {"learn_dilations": True, "max_lag": 20}, "features"),
    ("neox", "blocks.1.hook_resid_post", "mtsae", {"scale_norm": "layer_norm"}, "features_running"),
    ("neox", "blocks.0.hook_resid_pre", "mtsae", RELU, "features"),
    ("neox", "blocks.0.hook_resid_pre", "mtsae", {"activation": "jumprelu"}, "features"),
    ("neox", "blocks.0.hook_resid_pre", "mtsae", {"context_rank": 6}, "features"),
    ("neox", "blocks.0.hook_resid_post", "standard", {}, "features_running"),
    ("neox", "blocks.0.hook_resid_post", "topk", {}, "features"),
    ("neox", "blocks.0.hook_resid_post", "topk", {}, "combined"),
    ("neox", "blocks.0.hook_resid_pre", "mtsae", RELU, "error"),
    ("neox", "blocks.0.hook_resid_post", "jumprelu", {}, "features"),
    ("llama", "blocks.0.hook_resid_post", "mtsae", {}, "features_running"),
    ("llama", "blocks.1.hook_resid_pre", "topk", {}, "activations_two_state"),
    ("llama", "blocks.1.hook_resid_pre", "topk", {}, "features"),
    ("gpt2", "blocks.0.hook_resid_post", "mtsae", {}, "features"),
    ("gpt2", "blocks.0.hook_resid_pre", "jumprelu", {}, "features"),
]


@torch.no_grad()
def log_prob_difference(model: Any, lm: Any, edit: Any, tokens: torch.Tensor) -> float:
    """The largest difference of log-probabilities between a Hugging Face model and the model with the edit at its hook."""
    got, expected = hooked._both_logits(model, lm, edit, tokens)
    return (got.log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()


@torch.no_grad()
def edited_log_probs(lm: HookedLM, tokens: torch.Tensor, edit: Edit) -> torch.Tensor:
    """A whole forward pass with a hook."""
    hooks = [lm.splice.hook(edit, lm.masked(tokens))]
    return lm.model.run_with_hooks(tokens, fwd_hooks=hooks, prepend_bos=False).log_softmax(-1)


@torch.no_grad()
def log_probs(model: Any, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
    return model(tokens, **options).logits.log_softmax(-1)


def reread(lm: HookedLM, tokens: torch.Tensor, edit: Edit, n_new: int) -> torch.Tensor:
    """Decode greedily, reading the whole text again for every token."""
    for _ in range(n_new):
        tokens = torch.cat([tokens, edited_log_probs(lm, tokens, edit)[:, -1:].argmax(-1)], dim=1)
    return tokens


@pytest.fixture
def exported(make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tmp_path: Path) -> Callable[..., Any]:
    def export(family: str = "neox", edit: Edit = EDITS["features_running"], **options: Any) -> tuple[HookedLM, Path, Any]:
        lm = make_lm(family, **options)
        export_hooked(tmp_path / "model", lm, edit, model_dirs[family], {"seed": 3})
        return lm, tmp_path / "model", load_edited(tmp_path / "model")

    return export


@pytest.mark.parametrize(("family", "hook_name", "kind", "settings", "name"), CASES)
def test_an_exported_model_predicts_what_the_hooked_one_does(
    family: str,
    hook_name: str,
    kind: str,
    settings: dict[str, Any],
    name: str,
    exported: Callable[..., Any],
    tokens: torch.Tensor,
) -> None:
    edit = EDITS[name]
    lm, _, model = exported(family, edit, hook_name=hook_name, kind=kind, **settings)
    expected = edited_log_probs(lm, tokens, edit)
    torch.testing.assert_close(log_probs(model, tokens), expected, atol=ATOL, rtol=0)
    assert log_prob_difference(model, lm, edit, tokens) < ATOL
    assert (edited_log_probs(lm, tokens, FeatureEdit(())) - expected).abs().max() > 0.1  # the edit does something

    prompts = tokens[:, :8]
    options = {"attention_mask": torch.ones_like(prompts), **GREEDY}
    written = reread(lm, prompts, edit, 8)
    for use_cache in (True, False):
        assert torch.equal(model.generate(prompts, use_cache=use_cache, **options), written)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("special_token_ids", []),
        ("offsets", [0, -2, -3, -4, -7]),
        ("context_gain", 0.5),
        ("k", 9),
        ("scale_norm", "none"),
        ("layer", 1),
    ],
)
def test_every_setting_of_the_hook_counts(name: str, value: Any, exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    edit = EDITS["features"]
    lm, folder, _ = exported(edit=edit)
    config = folder / "hook" / "config.json"
    changed = json.loads(config.read_text())
    assert changed[name] != value
    config.write_text(json.dumps(changed | {name: value}))
    (folder / "SHA256SUMS").unlink()
    assert log_prob_difference(load_edited(folder), lm, edit, tokens) > 100 * ATOL


@pytest.mark.parametrize("name", STATEFUL)
def test_token_by_token_is_the_whole_text(name: str, exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    _, _, model = exported(edit=EDITS[name])
    whole, cache, pieces = log_probs(model, tokens), None, []
    with torch.no_grad():
        for part in (tokens[:, :5], *tokens[:, 5:].split(1, dim=1)):
            output = model(part, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            pieces.append(output.logits.log_softmax(-1))
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=ATOL, rtol=0)


def test_a_cache_that_was_copied_goes_on_and_one_that_was_cut_or_made_elsewhere_is_refused(
    exported: Callable[..., Any], tokens: torch.Tensor
) -> None:
    _, folder, model = exported()
    with torch.no_grad():
        cache = model(tokens[:, :9], use_cache=True).past_key_values
        copied = copy.deepcopy(cache)
        first = model(tokens[:, 9:], past_key_values=cache).logits
        again = model(tokens[:, 9:], past_key_values=copied).logits
        assert torch.equal(first, again)
        copied.crop(-12)
        with pytest.raises(ValueError, match="give an empty one"):
            model(tokens[:, 9:], past_key_values=copied)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with pytest.raises(ValueError, match="made, cut or copied without it"):
            model(tokens[:, 9:], past_key_values=base(tokens[:, :9], use_cache=True).past_key_values)
    with pytest.raises(ValueError, match="expected input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(tokens))
    torch.testing.assert_close(log_probs(model, tokens), log_probs(load_edited(folder), tokens))


def test_a_gate_of_known_groups_is_closed_where_activations_are_zero() -> None:
    """As the library's is, also at a token that the loader reads as text, such as one whose embedding is zero."""
    gate, h = EDITS["activations_groups"].gate, torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(3))
    h[0, 4], h[1, 0], h[1, 6] = 0, 0, 0
    h[1, 6, 31] = 1e-6  # no longer zero, and there the score opens the gate
    fields = gate.to_json()
    opened = GATES["known_groups"](fields, tensors_of(fields), {}, torch.zeros(2, 9, 1), h)
    assert torch.equal(opened, gate.open_from(h, None)[0])
    assert [opened[place].item() for place in ((0, 4), (1, 0), (1, 6))] == [False, False, True]


@pytest.mark.parametrize("name", STATEFUL)
def test_beams_take_along_what_was_read(name: str, exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    _, _, model = exported(edit=EDITS[name])
    prompts = tokens[:, :9]
    options = {"attention_mask": torch.ones_like(prompts), "num_beams": 4, **GREEDY}
    cached, read_anew = (model.generate(prompts, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached, read_anew)


def test_padding_on_the_left_changes_nothing(exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    _, _, model = exported(edit=EDITS["features"])
    text = tokens[2:, :12]  # without a BOS
    padded, attention = (torch.nn.functional.pad(part, (5, 0), value=value) for part, value in ((text, 77), (text * 0 + 1, 0)))
    positions = (attention.cumsum(-1) - 1).clamp(min=0)
    got = log_probs(model, padded, attention_mask=attention, position_ids=positions)[:, 5:]
    torch.testing.assert_close(got, log_probs(model, text), atol=ATOL, rtol=0)
    assert not torch.allclose(log_probs(model, padded, position_ids=positions)[:, 5:], got, atol=0.1)


def test_the_edit_can_be_taken_away_again(exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    lm, folder, edited = exported()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    clean = log_probs(model, tokens)
    torch.testing.assert_close(clean, edited_log_probs(lm, tokens, FeatureEdit(())), atol=ATOL, rtol=0)
    remove = attach(model, folder)
    torch.testing.assert_close(log_probs(model, tokens), log_probs(edited, tokens))
    remove()
    assert torch.equal(log_probs(model, tokens), clean)


def test_another_language_model_is_refused_unless_allowed(exported: Callable[..., Any], tokens: torch.Tensor) -> None:
    """By its predictions: a copy of the same weights is the same model, also in training mode and in half precision."""
    _, folder, edited = exported()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    attach(model, folder)()
    assert model.training
    attach(copy.deepcopy(model).to(torch.bfloat16), folder)()
    with pytest.raises(
        ValueError, match=r"expected .*, the language model that the edit was made on, got a .* other predictions"
    ):
        attach(edited, folder)  # has an edit already
    with torch.no_grad():
        model.get_output_embeddings().weight += 0.2 * torch.randn(model.get_output_embeddings().weight.shape)
    clean = log_probs(model.eval(), tokens)
    with pytest.raises(ValueError, match="give that model, or allow another one with allow_other_model=True"):
        attach(model, folder)
    assert torch.equal(log_probs(model, tokens), clean)
    with pytest.warns(UserWarning, match="is another model, with other predictions"):
        attach(model, folder, allow_other_model=True)
    assert not torch.allclose(log_probs(model, tokens), clean, atol=0.1)


def test_a_model_of_another_vocabulary_or_task_is_refused(exported: Callable[..., Any]) -> None:
    _, folder, _ = exported()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with pytest.raises(ValueError, match="no predictions of tokens"):
        attach(AutoModelForSequenceClassification.from_config(model.config), folder)
    model.resize_token_embeddings(20)
    with pytest.raises(ValueError, match="another vocabulary or a shorter context"):
        attach(model, folder)


def test_a_folder_with_another_model_is_loaded_only_if_allowed(exported: Callable[..., Any]) -> None:
    _, folder, _ = exported()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.get_input_embeddings().weight.data.mul_(-1)
    model.save_pretrained(folder)
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="other predictions"):
        load_edited(folder)
    with pytest.warns(UserWarning, match="other predictions"):
        load_edited(folder, allow_other_model=True)
    path = folder / "edit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": None}))
    load_edited(folder)  # an edit that was saved without a model knows none


def test_the_loader_tells_models_apart_as_load_edit_does() -> None:
    assert identity.TOLERANCES == model_identity._TOLERANCE
    assert identity.BFLOAT16_TOLERANCE == model_identity._BFLOAT16_TOLERANCE


def test_the_folder_holds_all_that_belongs_to_the_edit(exported: Callable[..., Any], model_dirs: dict[str, str]) -> None:
    edit = EDITS["features_running"]
    lm, folder, _ = exported()
    before = AutoTokenizer.from_pretrained(model_dirs["neox"])
    loaded = load_edit(folder / "edit.json", lm.splice)
    assert loaded.features == edit.features  # type: ignore[attr-defined]
    restored = type(lm.sae).load_from_disk(folder / "sae")
    assert torch.equal(restored.W_enc, lm.sae.W_enc)
    text = "In the beginning, 1776: def f(x): return x"
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] == before(text)["input_ids"]
    card = (folder / "README.md").read_text()
    assert "suppression, not deletion" in card
    assert "load_edited" in card
    assert '"seed": 3' in card
    assert "40 features e_i become -2 e_i" in card
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "hook/weights.safetensors", "hook/config.json", "edit.json", "sae/cfg.json"]
)
def test_a_flipped_bit_is_told(name: str, exported: Callable[..., Any]) -> None:
    _, folder, model = exported()
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    assert {line.split("  ")[1] for line in lines} >= {name, "config.json", "sae/sae_weights.safetensors"}
    (folder / "README.md").write_text("may be changed")
    load_edited(folder)
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    damaged = (
        rf"{name}: expected the content listed in SHA256SUMS, got other content .*; copy the folder again, or delete SHA256SUMS"
    )
    with pytest.raises(ValueError, match=damaged):
        load_edited(folder)
    if name.startswith(("hook", "edit")):
        with pytest.raises(ValueError, match=damaged):
            attach(model, folder)


def test_a_file_that_was_not_copied_is_named(exported: Callable[..., Any]) -> None:
    _, folder, _ = exported()
    (folder / "hook" / "weights.safetensors").unlink()
    with pytest.raises(ValueError, match="No such file or directory; copy the whole folder again"):
        load_edited(folder)


def test_a_hook_of_another_sae_is_refused(exported: Callable[..., Any]) -> None:
    _, folder, _ = exported()
    content = json.loads((folder / "edit.json").read_text())
    content["sae"]["weights_sha256"] = "0"
    (folder / "edit.json").write_text(json.dumps(content))
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="of one SAE and hook, got different ones"):
        load_edited(folder)


@pytest.mark.parametrize(
    ("options", "edit", "message"),
    [
        ({"hook_name": "blocks.0.hook_mlp_out"}, EDITS["features"], "expected an edit at blocks"),
        ({"padding": "circular"}, EDITS["features"], "reads later positions"),
        (
            {},
            FeatureEdit((1,), 1.0, SequenceRateGate(torch.arange(3), 0.1)),
            "that the stand-alone loader knows .*, got a SequenceRateGate",
        ),
        (
            {"kind": "standard", "normalize_activations": "layer_norm"},
            EDITS["features"],
            "normalize_activations='none' .* got 'layer_norm'",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(
    options: dict[str, Any], edit: Edit, message: str, exported: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        exported(edit=edit, **options)
    assert list(tmp_path.iterdir()) == []


def test_an_export_of_another_model_is_refused(
    make_lm: Callable[..., HookedLM], model_dirs: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="got others"):
        export_hooked(tmp_path / "model", make_lm("neox"), EDITS["features"], model_dirs["llama"])
    assert list(tmp_path.iterdir()) == []


def test_the_loader_imports_three_packages() -> None:
    modules = sorted(Path(standalone.__file__).parent.iterdir())
    nodes = [node for path in modules if path.suffix == ".py" for node in ast.walk(ast.parse(path.read_text()))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    names |= {node.module or "" for node in froms if not node.level}
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"torch", "transformers", "safetensors"}
    assert {node.level for node in froms} == {0, 1}  # no module of the copied package imports from above it
    assert {path.name for path in modules} - {"__pycache__"} == {path.name for path in modules if path.suffix == ".py"}


_ALONE = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mtsae_lens", "sae_lens", "transformer_lens"):
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Refuse())
sys.path.insert(0, sys.argv[1])
import torch
from safetensors.torch import load_file, save_file
from edited_model import load_edited
torch.set_num_threads(1)
tokens = load_file(sys.argv[2])["tokens"]
model = load_edited(sys.argv[1])
prompts = tokens[:, :8].contiguous()
options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
with torch.no_grad():
    results = {"log_probs": model(tokens).logits.log_softmax(-1)}
for cached in (True, False):
    results[f"cached_{cached}"] = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), use_cache=cached, **options
    )
save_file(results, sys.argv[3])
"""


@pytest.mark.slow
def test_it_runs_where_this_package_is_not(exported: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    edit = EDITS["features_running"]
    lm, folder, _ = exported(edit=edit)
    save_file({"tokens": tokens}, tmp_path / "tokens.safetensors")
    paths = (folder, tmp_path / "tokens.safetensors", tmp_path / "results.safetensors")
    subprocess.run([sys.executable, "-I", "-c", _ALONE, *map(str, paths)], check=True, cwd=tmp_path)
    results = load_file(paths[2])
    torch.testing.assert_close(results["log_probs"], edited_log_probs(lm, tokens, edit), atol=ATOL, rtol=0)
    written = reread(lm, tokens[:, :8], edit, 8)
    assert torch.equal(results["cached_True"], written)
    assert torch.equal(results["cached_False"], written)


@pytest.mark.parametrize(
    ("family", "hook_name", "kind", "name", "dtype"),
    [
        ("neox", "blocks.0.hook_resid_post", "mtsae", "features_running", "bfloat16"),
        ("neox", "blocks.0.hook_resid_pre", "topk", "clamp_any", "float16"),
        ("llama", "blocks.1.hook_resid_pre", "mtsae", "features", "bfloat16"),
        ("gpt2", "blocks.1.hook_resid_post", "mtsae", "directions", "bfloat16"),
    ],
)
def test_half_precision(
    family: str,
    hook_name: str,
    kind: str,
    name: str,
    dtype: str,
    make_lm: Callable[..., HookedLM],
    model_dirs: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Edits are compared on the same activations, number by number; the layers after them up to rounding."""
    lm = make_lm(family, hook_name=hook_name, kind=kind)
    lm = replace(lm, model=load_language_model(model_dirs[family], dtype=dtype))
    export_hooked(tmp_path / "model", lm, EDITS[name], model_dirs[family])
    reduced = hooked.reduce_encoder

    def wrong(sae: Any) -> Any:
        tensors, settings = reduced(sae)
        return tensors | {"W_dec": 1.1 * tensors["W_dec"], "b_in": tensors["b_in"] + 0.1}, settings

    monkeypatch.setattr(hooked, "reduce_encoder", wrong)
    if name != "directions":  # which is no edit of features
        with pytest.raises(ModelError, match="expected the exported edit to give the same activations"):
            export_hooked(tmp_path / "wrong", lm, EDITS[name], model_dirs[family])
    monkeypatch.undo()
    lm.model.unembed.W_U.data *= 1.2
    with pytest.raises(ModelError, match=f"got others .* of which rounding to {dtype} explains"):
        export_hooked(tmp_path / "other", lm, EDITS[name], model_dirs[family])
