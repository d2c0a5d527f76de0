"""`mtsae demo` from training to report, in little."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mtsae_lens.commands import demo as module
from mtsae_lens.commands.demo import DemoSettings, run_demo
from mtsae_lens.commands.train import TrainSettings
from mtsae_lens.errors import MTSAEError
from mtsae_lens.exploration import explore
from mtsae_lens.exploration.facts import Exploration
from mtsae_lens.reporting.page import Table
from mtsae_lens.splice.edits import FeatureEdit
from mtsae_lens.training.trainer import SequenceSAETrainer
from mtsae_lens.unlearning.candidates import FeatureCandidate
from mtsae_lens.unlearning.protocol import Chosen

_EDIT = FeatureEdit((1, 2))
_CHOSEN = Chosen(FeatureCandidate({}, _EDIT, _EDIT.features, lambda features: FeatureEdit(tuple(features))), ())


class Little(DemoSettings):
    """The demo in contexts of 32 tokens and hardly trained."""

    def training(self, architecture: str) -> TrainSettings:
        small = {"context_size": 32, "batch_size_tokens": 512, "buffer_size_sequences": 32, "lm_batch_size_sequences": 32}
        return super().training(architecture).model_copy(update=small)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> DemoSettings:
    return Little(
        out=tmp_path_factory.mktemp("demo"),
        training_tokens=4_096,
        d_sae=64,
        k=8,
        n_eval_contexts=4,
        n_shown_features=2,
        near=(),
        retain=("sotu",),
        contexts_per_split=8,
        n_explored_tokens=512,
    )


@pytest.fixture(scope="module")
def made(settings: DemoSettings) -> tuple[dict[str, Any], list[Table]]:
    return run_demo(settings)


def test_the_demo(settings: DemoSettings, made: tuple[dict[str, Any], list[Table]]) -> None:
    metrics, tables = made
    assert json.loads((settings.out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert set(metrics["fidelity"]) == {"mtsae", "topk"}
    assert metrics["unlearning"]["corpora"].keys() == {"kjv", "sotu"}
    assert [table.header[0] for table in tables] == ["metric", "corpus"]
    page = (settings.out / "report.html").read_text()
    for title in (
        "How good is the SAE?",
        "Unlearning",
        "Features that were edited",
        "Every feature",
        "Training",
        "Time scales",
    ):
        assert f"<h2>{title}</h2>" in page
    assert 'href="explore/index.html"' in page
    assert (settings.out / "explore" / "index.html").is_file()
    facts = Exploration.open(settings.out / "explore")
    assert (facts.about["d_sae"], [corpus["name"] for corpus in facts.about["corpora"]]) == (64, ["kjv", "sotu"])


def test_typed_again_it_trains_and_explores_nothing_anew(
    settings: DemoSettings, made: tuple[dict[str, Any], list[Table]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("this was done before")

    monkeypatch.setattr(SequenceSAETrainer, "_train_step", fail)
    monkeypatch.setattr(explore, "_look_through", fail)
    monkeypatch.setattr(module, "unlearn", lambda settings, lm, reference: (_CHOSEN, made[0]["unlearning"]))
    metrics, _ = run_demo(settings)
    assert metrics["fidelity"] == made[0]["fidelity"]


def test_other_settings_do_not_take_what_is_there(settings: DemoSettings, made: Any) -> None:
    with pytest.raises(MTSAEError, match="seed"):
        run_demo(settings.model_copy(update={"seed": 1}))
