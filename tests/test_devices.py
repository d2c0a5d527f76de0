"""Test every pipeline on a device that refuses CPU tensors (`simulated_device`): it runs, and gives the numbers of the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from simulated_device import simulated_device

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.commands.evaluate import EvaluateSettings, run_evaluate
from mtsae_lens.commands.explore import ExploreSettings, run_explore
from mtsae_lens.commands.export import ExportSettings, run_export
from mtsae_lens.data.planted import PlantedConfig, PlantedFeatures
from mtsae_lens.data.questions import read_questions, read_wrong_answers
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.evaluation.recovery import PlantedSplits
from mtsae_lens.experiments.paper.setup import PaperSetup
from mtsae_lens.experiments.paper.switch_arms import SwitchSettings, build_arms
from mtsae_lens.experiments.paper.switches import CachedActivations
from mtsae_lens.experiments.planted.measures import measure_sae
from mtsae_lens.exploration.live import explain
from mtsae_lens.interop.dictionary_learning import SAELensDictionary
from mtsae_lens.interop.saebench import SAEBenchAdapter
from mtsae_lens.opening import open_sae
from mtsae_lens.splice.direction_edits import DirectionEdit, orthonormal_rows
from mtsae_lens.splice.edit_files import load_edit, save_edit
from mtsae_lens.splice.edit_interface import Edit
from mtsae_lens.splice.edits import FeatureClamp, FeatureEdit
from mtsae_lens.splice.gate_interface import Gate
from mtsae_lens.splice.gates import AlwaysOpen, FeatureActiveGate, RunningEvidenceGate, SequenceRateGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.training.recipe import TrainSettings, train_sae
from mtsae_lens.unlearning import changes
from mtsae_lens.unlearning.attacks import dilute, quantize, relearn
from mtsae_lens.unlearning.candidates import FeatureCandidate, Grid
from mtsae_lens.unlearning.edit_kinds import EDIT_KINDS
from mtsae_lens.unlearning.finetuning.finetune import FinetuneSettings, finetune
from mtsae_lens.unlearning.finetuning.sweeps import LOSSES
from mtsae_lens.unlearning.gating import fit_gate
from mtsae_lens.unlearning.measures.distance import truth_ratio_distance
from mtsae_lens.unlearning.measures.effects import edited_logits, measure_edits, measure_model
from mtsae_lens.unlearning.measures.generations import Decoding
from mtsae_lens.unlearning.protocol import UnlearningSettings, choose, measure_on_test
from mtsae_lens.unlearning.selection.directions import difference_of_means
from mtsae_lens.unlearning.selection.evidence import SelectionEvidence
from mtsae_lens.unlearning.selection.scale_scores import FromScales
from mtsae_lens.unlearning.selection.scores import SCORES, make_score
from mtsae_lens.unlearning.task import Corpus, Task

HOOK = "blocks.0.hook_resid_post"
GATES: dict[str, Gate] = {
    "always": AlwaysOpen(),
    "feature": FeatureActiveGate(torch.arange(4)),
    "sequence": SequenceRateGate(torch.arange(8), 0.1),
    "running": RunningEvidenceGate(torch.arange(8), torch.ones(8), 0.9, 0.5),
}


@pytest.fixture(scope="module")
def device() -> Iterator[str]:
    with simulated_device() as name:
        yield name


@pytest.fixture(scope="module")
def both(lm: HookedLM, tiny_sae_dir: Path, device: str) -> tuple[HookedLM, HookedLM]:
    """The same SAE and model on the CPU and on the device."""
    return lm, open_sae(tiny_sae_dir, model=None, device=device, batch_size=4)[0]


@pytest.fixture(scope="module")
def table(text_file: Path, lm: HookedLM) -> TokenTable:
    return read_tokens(str(text_file), "test", lm.cutter, 3)


@pytest.fixture(scope="module")
def forget(sea_file: Path, lm: HookedLM) -> TokenTable:
    return read_tokens(str(sea_file), "select", lm.cutter, 3)


def edits(lm: HookedLM, gate: Gate) -> list[Edit]:
    rows = lm.sae.W_dec[:2].detach()
    return [
        FeatureEdit((1, 2, 3), 1.0, gate),
        FeatureClamp((1, 2), (0.5, -1.0), "any_fires", gate),
        DirectionEdit(orthonormal_rows(rows), lm.sae.b_dec.detach(), 1.0, gate),
        DirectionEdit(orthonormal_rows(rows.cpu()), torch.zeros(rows.shape[1]), 1.0, gate),
    ]


def assert_same(one: Any, other: Any) -> None:
    """The same numbers, wherever they are."""
    one, other = (torch.as_tensor(values).detach().cpu() for values in (one, other))
    torch.testing.assert_close(one, other, equal_nan=True, atol=1e-5, rtol=1e-4)


def numbers(content: Any, place: str = "") -> dict[str, float]:
    """The numbers in nested dictionaries and lists, by place."""
    if isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return {key: leaf for name, part in pairs for key, leaf in numbers(part, f"{place}/{name}").items()}
    return {place: float(content)} if isinstance(content, int | float) else {}


def close_to(content: Any) -> Any:
    """Compare `numbers` with it."""
    return pytest.approx(numbers(content), rel=1e-3, abs=1e-4, nan_ok=True)


# ---------------------------------------------------------------------------------------------- the device itself


def test_the_device_refuses_what_a_card_refuses(device: str) -> None:
    x, here = torch.arange(6.0, device=device).view(2, 3), torch.ones(3)
    refused: list[Callable[[], Any]] = [
        lambda: x + here,
        lambda: x.masked_fill(here > 0, 0.0),
        lambda: here[torch.tensor([0], device=device)],
        lambda: x.gather(1, torch.zeros(2, 1, dtype=torch.long)),
        lambda: torch.stack([x.sum(), torch.tensor(1.0)]),
        lambda: torch.tensor(1.0).add_(x.sum()),
        lambda: x.index_put_((torch.tensor([0]),), here),
        lambda: torch.rand(3, device=device, generator=torch.Generator()),
        x.numpy,
        lambda: torch.nn.Linear(3, 3).to(device)(here),
    ]
    for call in refused:
        with pytest.raises(RuntimeError, match=r"one device|generator|numpy"):
            call()
    with pytest.raises(TypeError, match="float64"):
        x.double()
    assert (x + torch.tensor(1.0)).device.type == x[torch.tensor([1])].device.type == x[[True, False]].device.type == device
    x[0] = here
    assert x.tolist() == [[1.0, 1.0, 1.0], [3.0, 4.0, 5.0]]
    assert type(x.cpu()) is torch.Tensor


def test_gradients_and_random_numbers_of_the_device(device: str) -> None:
    torch.manual_seed(0)
    on_cpu, first = torch.randn(3), torch.randn(3, device=device)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3, device=device), first)
    assert not torch.equal(first.cpu(), on_cpu)
    x = first.clone().requires_grad_()
    (x[1:] ** 2).sum().backward()
    assert_same(x.grad, torch.cat([torch.zeros(1), 2 * first.cpu()[1:]]))


# ---------------------------------------------------------------------------------------------- training, evaluation


@pytest.mark.parametrize(
    ("architecture", "sae"),
    [
        ("mtsae", {"k": 2, "aux_loss_coefficient": 1.0, "dilations": "auto"}),
        ("mtsae", {"k": 4, "hierarchy": "nested", "learn_dilations": True, "separation_coefficient": 1.0}),
        ("mtsae", {"activation": "relu", "padding": "circular", "tap_init": "conv", "reconstruction_loss": "l2"}),
        ("topk", {"k": 4}),
        ("jumprelu", {}),
    ],
)
def test_training_and_resuming(
    architecture: str,
    sae: dict[str, Any],
    both: tuple[HookedLM, HookedLM],
    device: str,
    tmp_path: Path,
    tiny_settings: Callable[..., TrainSettings],
) -> None:
    sizes = {"training_tokens": 5 * 128, "dead_feature_window": 1, "buffer_size_sequences": 8, "lm_batch_size_sequences": 8}
    changes = {"architecture": architecture, "sae": sae, "device": device} | sizes
    whole, resumed = (tiny_settings(tmp_path / name, **changes) for name in ("whole", "resumed"))
    trained = train_sae(whole, both[1].model)
    assert {parameter.device.type for parameter in trained.parameters()} == {device}
    shutil.copytree(whole.out / "checkpoints/step_000000004", resumed.out / "checkpoints/step_000000004")
    train_sae(resumed, both[1].model, resume=True)
    one, other = (load_file(settings.out / "sae_weights.safetensors") for settings in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluation(tiny_sae_dir: Path, device: str, tmp_path: Path) -> None:
    sizes = {"n_contexts": 4, "n_scale_contexts": 2, "batch_size": 4}
    on_cpu, on_device = (
        run_evaluate(EvaluateSettings(sae=tiny_sae_dir, out=tmp_path / d, device=d, **sizes)).to_json() for d in ("cpu", device)
    )
    assert numbers(on_device) == close_to(on_cpu)


def test_planted_features(device: str) -> None:
    cfg = PlantedConfig(d_in=16, context_size=32, durations=(1, 8), n_features_per_duration=3, lags=((1, 3),), n_cues=4)
    splits = PlantedSplits(PlantedFeatures(cfg), n_sequences=8)
    sae = MTSAE(MTSAEConfig(d_in=16, d_sae=32, k=8, context_size=32, hierarchy="nested"))
    for parameter in sae.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = measure_sae(sae, splits)
    assert numbers(measure_sae(sae.to(device), splits)) == close_to(expected)


def test_the_paper_s_switches(both: tuple[HookedLM, HookedLM], device: str, tiny_model_dir: Path, text_file: Path) -> None:
    setup = PaperSetup(both[1].model, str(tiny_model_dir), HOOK, str(text_file), 32, device)
    settings = SwitchSettings(n_steps=2, context_size=32, n_train_contexts=8, n_test_contexts=2, n_model_contexts=2)
    assert "ce_loss_score_withhold" in CachedActivations.read(setup, settings).run_arm(build_arms(settings)["zero"], seed=0)


# ---------------------------------------------------------------------------------------------- splice


@pytest.mark.parametrize("gate", GATES)
def test_edits(gate: str, both: tuple[HookedLM, HookedLM], table: TokenTable, tmp_path: Path) -> None:
    on_cpu, on_device = both
    for expected, edit in zip(edits(on_cpu, GATES[gate]), edits(on_device, GATES[gate]), strict=True):
        logits = edited_logits(on_cpu, expected)(table.tokens)
        save_edit(tmp_path / "edit.json", edit, on_device.splice)
        assert_same(edited_logits(on_device, load_edit(tmp_path / "edit.json", on_device.splice))(table.tokens), logits)
        effects = [
            measure_edits(lm, table, [of_lm], answers_only=True)[0] for lm, of_lm in ((on_cpu, expected), (on_device, edit))
        ]
        assert effects[1].nll_delta == pytest.approx(effects[0].nll_delta, abs=1e-5)
    if GATES[gate].causal:
        edit, options = edits(on_cpu, GATES[gate])[0], {"max_new_tokens": 3, "do_sample": False}
        prompts = table.tokens[:2, :6].clone()
        prompts[0, :3] = on_cpu.cutter.tokenizer.pad_token_id
        written = [lm.generate(prompts, edit, **options) for lm in both]
        assert written[0].tolist() == written[1].tolist()


def test_tokens_and_masks_may_be_on_the_cpu(both: tuple[HookedLM, HookedLM], table: TokenTable) -> None:
    on_cpu, on_device = both
    masked, edit = on_device.masked(table.tokens), FeatureEdit((1, 2), 1.0)
    assert masked.device.type == "cpu"
    assert_same(on_device.feature_acts(table.tokens), on_cpu.feature_acts(table.tokens))
    assert_same(on_device.sae_input(table.tokens), on_cpu.sae_input(table.tokens))
    h, where = on_cpu.activations(table.tokens), torch.arange(table.tokens.shape[1]).expand(table.tokens.shape) % 2 == 0
    expected = on_cpu.splice.edited(h, edit, masked, where)
    assert_same(on_device.splice.edited(on_device.activations(table.tokens), edit, masked, where), expected)


def test_a_bridge(
    both: tuple[HookedLM, HookedLM], tiny_sae_dir: Path, tiny_model_dir: Path, device: str, table: TokenTable
) -> None:
    bridged, _ = open_sae(tiny_sae_dir, model=f"bridge:{tiny_model_dir}", device=device, batch_size=4)
    edit = FeatureEdit((1, 2, 3), 1.0, GATES["running"])
    expected, found = (measure_edits(lm, table, [edit])[0] for lm in (both[0], bridged))
    assert found.nll_delta == pytest.approx(expected.nll_delta, abs=1e-4)
    written = [lm.generate(table.tokens[:2, :6], edit, max_new_tokens=2, do_sample=False) for lm in (both[0], bridged)]
    assert written[0].tolist() == written[1].tolist()


# ---------------------------------------------------------------------------------------------- unlearning


@pytest.mark.parametrize("name", [*SCORES, "scales"])
def test_scores(name: str, both: tuple[HookedLM, HookedLM], table: TokenTable, forget: TokenTable) -> None:
    made = FromScales(make_score("frequency_ratio"), (0, 1), 0.1) if name == "scales" else make_score(name)
    if name == "single_effect":
        made = replace(made, n_candidates=2)
    scores = [made(SelectionEvidence(lm, forget, far=(table,))) for lm in both]
    assert scores[1].device.type == both[1].sae.device.type
    assert_same(*scores)


def test_unlearning(both: tuple[HookedLM, HookedLM], text_file: Path, sea_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "_decoding", lambda *_: Decoding(n_prompt_tokens=4, n_new_tokens=2))
    task = Task((Corpus(str(sea_file), "forget"), Corpus(str(text_file), "far")), 3)
    few = {"n_features": (2,), "multipliers": (1.0,), "false_positive_rates": (0.05,)}
    grid = Grid(("frequency_difference",), **few, edits=tuple(sorted(EDIT_KINDS.keys() - {"scale_carried"})))  # type: ignore[arg-type]
    settings = UnlearningSettings(grid, far_budget=9, n_random_draws=1)
    found = []
    for lm in both:
        chosen = choose(lm, task, settings, lm.model)
        assert isinstance(chosen.edit.gate, RunningEvidenceGate)
        assert chosen.edit.gate.weights.device.type == "cpu"
        edit = FeatureEdit(tuple(range(12)), 2.0, chosen.edit.gate)
        twelve = FeatureCandidate({}, edit, edit.features, partial(FeatureEdit, multiplier=2.0, gate=edit.gate))
        measured = measure_on_test(lm, task, settings, replace(chosen, candidate=twelve), lm.model)
        found.append({"sweep": [asdict(outcome) for outcome in chosen.sweep]} | measured.to_json())
    assert numbers(found[1]) == close_to(found[0])
    assert found[0]["corpora"][str(sea_file)]["kl"] > 0.001


def test_questions(both: tuple[HookedLM, HookedLM], table: TokenTable) -> None:
    found = []
    for lm in both:
        right = read_questions("facts:forget:known", "tune", lm.cutter, 4)
        wrong = read_wrong_answers("facts:forget:known", "tune", lm.cutter, 4, n_wrong=1)
        edit = FeatureEdit(tuple(range(12)), 2.0, fit_gate(lm, right, [table], seed=0))
        found.append(asdict(truth_ratio_distance(edited_logits(lm, edit), lm.model, lm.cutter, right, wrong)))
    assert numbers(found[1]) == close_to(found[0])


@pytest.mark.parametrize("name", LOSSES)
def test_finetuning(name: str, both: tuple[HookedLM, HookedLM], table: TokenTable, forget: TokenTable) -> None:
    settings = FinetuneSettings(lr=1e-3, n_steps=1, batch_size=2)
    one, other = (
        next(iter(finetune(lm.model, LOSSES[name](), forget, [table], lm.cutter, settings))).model.state_dict() for lm in both
    )
    for parameter in one:
        assert_same(other[parameter], one[parameter])


def test_attacks(both: tuple[HookedLM, HookedLM], table: TokenTable, forget: TokenTable) -> None:
    settings = FinetuneSettings(lr=1e-3, n_steps=1, batch_size=2)
    losses: list[list[float]] = []
    for lm in both:
        direction, center = difference_of_means(lm, forget, [table])
        dense = DirectionEdit((direction / direction.norm())[None], center, 1.0, GATES["running"])
        points = relearn(lm, forget, [table], settings, edit=dense, hook_while_learning=True)
        diluted = dilute(forget, table, lm.cutter, 8)
        rounded = edited_logits(replace(lm, model=quantize(lm.model, 4)), dense)
        losses.append([points[1].effects[0].nll_delta, measure_model(rounded, lm.model, lm.cutter, diluted, 4).nll_delta])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize("form", ["hooked", "projected", "low-rank"])
def test_export(
    form: Any, lm: HookedLM, tiny_sae_dir: Path, text_file: Path, sea_file: Path, device: str, tmp_path: Path
) -> None:
    """`compare` measures what was written against the hook, on the device."""
    save_edit(tmp_path / "edit.json", FeatureEdit((1, 2, 3), 1.0, GATES["running"]), lm.splice)
    sizes = {"rank": 2, "n_steps": 1, "train_contexts": 2, "n_contexts": 2, "batch_size": 2}
    texts = {"forget": str(sea_file), "retain": (str(text_file),) if form == "low-rank" else ()}
    measured = run_export(
        ExportSettings(sae=tiny_sae_dir, edit=tmp_path / "edit.json", out=tmp_path, form=form, device=device, **texts, **sizes)
    )
    edit = load_edit(tmp_path / "edit.json", lm.splice)
    (expected,) = measure_edits(lm, read_tokens(str(sea_file), "test", lm.cutter, 2), [edit])
    assert measured.comparison[str(sea_file)].hook.nll_delta == pytest.approx(expected.nll_delta, abs=1e-4)


# ---------------------------------------------------------------------------------------------- exploring, other tools


def test_exploring(tiny_sae_dir: Path, text_file: Path, sea_file: Path, device: str, tmp_path: Path) -> None:
    sizes = {"n_tokens": 4 * 32, "n_examples": 2, "n_sampled": 1, "before": 3, "after": 1, "n_ablated": 1, "n_attributed": 1}
    texts = {"dataset": (str(text_file), str(sea_file)), "split": "train", "n_attribution_contexts": 2, "n_text_contexts": 2}
    for name in ("cpu", device):
        run_explore(ExploreSettings(sae=tiny_sae_dir, out=tmp_path / name, device=name, batch_size=4, **sizes, **texts))
    for file in ("features.parquet", "examples.parquet", "texts.parquet"):
        one, other = (pq.read_table(tmp_path / name / file).to_pylist() for name in ("cpu", device))
        assert numbers(other) == close_to(one)


def test_typed_text(both: tuple[HookedLM, HookedLM]) -> None:
    one, other = (explain(lm, "the king sat under the old tree") for lm in both)
    assert_same(other.feature_acts, one.feature_acts)
    assert_same(other.nll, one.nll)
    assert one.strongest(3)[0][0] == other.strongest(3)[0][0]
    assert numbers(asdict(other.contributions(2, 3))) == close_to(asdict(one.contributions(2, 3)))


def test_adapters_move_with_their_sae(
    both: tuple[HookedLM, HookedLM], tiny_sae_dir: Path, table: TokenTable, device: str
) -> None:
    expected = both[0].feature_acts(table.tokens)
    dictionary = SAELensDictionary.from_pretrained(tiny_sae_dir).to(device)
    adapter = SAEBenchAdapter(SAELensDictionary.from_pretrained(tiny_sae_dir).sae, both[0].cutter).to(device)
    assert dictionary.sae.device.type == adapter.device.type == torch.device(adapter.cfg.device).type == device
    with adapter.special_tokens_as_walls(both[1].model):
        h = both[1].activations(table.tokens)
        assert_same(adapter.encode(h), expected)
    assert_same(dictionary.encode(both[1].sae_input(table.tokens)), expected)
