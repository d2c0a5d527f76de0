"""Test that an uploaded SAE loads bit for bit, with a card, and without paths of the machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mtsae_lens import MTSAE, MTSAEConfig
from mtsae_lens.errors import ConfigError, ModelError, OutputError
from mtsae_lens.interop.hub import check_names, load_from_hub, upload_sae, write_upload
from mtsae_lens.opening import open_sae

HOOK = "blocks.0.hook_resid_post"


def saved(folder: Path, kind: str = "mtsae", **settings: Any) -> Path:
    metadata = SAEMetadata(hook_name=HOOK, model_name="/home/me/models/tiny", dataset_path="texts.txt", context_size=16)
    sizes = {"d_in": 8, "d_sae": 24, "k": 4, "metadata": metadata} | settings
    sae: Any = MTSAE(MTSAEConfig(context_size=16, **sizes)) if kind == "mtsae" else TopKSAE(TopKSAEConfig(**sizes))
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    sae.save_model(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mtsae", {}),
        ("mtsae", {"dtype": "float64"}),
        ("mtsae", {"dtype": "bfloat16"}),
        ("mtsae", {"learn_dilations": True, "max_lag": 8}),
        ("mtsae", {"padding": "circular", "activation": "relu", "scale_norm": "layer_norm"}),
        ("topk", {}),
    ],
)
def test_there_and_back_bit_for_bit(hub: Any, tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    sae = SAE.load_from_disk(saved(tmp_path / "sae", kind, **settings))
    reference = upload_sae(tmp_path / "sae", "me/things", HOOK)
    assert reference == f"hub:me/things:{HOOK}"
    back = load_from_hub(reference)
    assert type(back) is type(sae)
    assert sae.state_dict().keys() == back.state_dict().keys()
    for name, weights in sae.state_dict().items():
        assert back.state_dict()[name].dtype == weights.dtype
        assert torch.equal(back.state_dict()[name], weights), name
    assert back.cfg.to_dict() | {"metadata": None} == sae.cfg.to_dict() | {"metadata": None}
    h = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1)).to(sae.dtype)
    assert torch.equal(back.encode(h), sae.encode(h))
    if settings.get("dtype", "float32") == "float32":  # SAELens's own way casts to float32
        assert torch.equal(SAE.from_pretrained("me/things", HOOK).encode(h), sae.encode(h))


def test_the_law_sees_a_changed_weight(hub: Any, tmp_path: Path) -> None:
    sae = SAE.load_from_disk(saved(tmp_path / "sae"))
    upload_sae(tmp_path / "sae", "me/things", HOOK)
    changed = SAE.load_from_disk(tmp_path / "sae")
    changed.W_dec.data[0, 0] += 1e-6
    changed.save_model(hub.root / "me/things" / HOOK)
    assert not torch.equal(load_from_hub(f"hub:me/things:{HOOK}").W_dec, sae.W_dec)


def test_paths_of_the_machine_stay_there(hub: Any, tiny_sae_dir: Path, tmp_path: Path) -> None:
    """The folder of a real training holds absolute paths of model, text and output; none of them is uploaded."""
    assert str(tmp_path.parent.parent) in (tiny_sae_dir / "runner_cfg.json").read_text()
    upload_sae(tiny_sae_dir, "me/things", "a")
    files = {str(path.relative_to(hub.root)): path.read_bytes() for path in hub.root.rglob("*") if path.is_file()}
    assert set(files) == {
        "me/things/README.md",
        *(f"me/things/a/{name}" for name in ("README.md", "cfg.json", "sae_weights.safetensors", "sparsity.safetensors")),
    }
    for name, content in files.items():
        assert str(tmp_path.parent.parent).encode() not in content, name
    metadata = json.loads(files["me/things/a/cfg.json"])["metadata"]
    assert (metadata["model_name"], metadata["dataset_path"]) == ("elsewhere:bert-t5-gemma", "elsewhere:land.txt")
    assert "| language model | bert-t5-gemma |" in files["me/things/README.md"].decode()


def test_the_sae_on_the_hub_opens_in_its_model(hub: Any, tiny_sae_dir: Path, tiny_model_dir: Path, lm: Any) -> None:
    upload_sae(tiny_sae_dir, "me/things", "a")
    hooked, _ = open_sae(Path("hub:me/things:a"), model=str(tiny_model_dir), device="cpu", batch_size=4)
    tokens = torch.randint(5, 4096, (2, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(hooked.feature_acts(tokens), lm.feature_acts(tokens))


def test_the_card(tmp_path: Path) -> None:
    write_upload(saved(tmp_path / "sae"), tmp_path / "out", "me/things", "x/y", metrics={"l0": 4.0}, measured_on="kjv")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card == (tmp_path / "out" / "x" / "y" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert code.startswith("import mtsae_lens")
    assert 'SAE.from_pretrained("me/things", "x/y")' in code
    assert "| l0 | 4 |" in card
    assert "dilations | 0, 1, 2, 4, 8" in card
    assert "z_k" in card
    write_upload(saved(tmp_path / "topk", "topk"), tmp_path / "out2", "me/things", "t")
    pointwise = (tmp_path / "out2" / "README.md").read_text()
    assert "import mtsae_lens" not in pointwise
    assert "z_k" not in pointwise


def test_the_readme_of_a_repository_is_not_replaced(hub: Any, tmp_path: Path) -> None:
    sae = saved(tmp_path / "sae")
    upload_sae(sae, "me/things", "a")
    first = (hub.root / "me/things/README.md").read_text()
    upload_sae(sae, "me/things", "b")
    assert (hub.root / "me/things/README.md").read_text() == first
    assert '"b"' in (hub.root / "me/things/b/README.md").read_text()


def test_private_is_private(hub: Any, tmp_path: Path) -> None:
    sae = saved(tmp_path / "sae")
    upload_sae(sae, "me/secret", "a", private=True)
    assert hub.private == {"me/secret": True}
    upload_sae(sae, "me/open", "a")
    with pytest.raises(OutputError, match="which is public"):
        upload_sae(sae, "me/open", "b", private=True)
    assert not (hub.root / "me/open/b").exists()


@pytest.mark.parametrize(
    "names", [("things", "a"), ("me/", "a"), ("a/b/c", "a"), ("me/things", "../a"), ("me/things", ""), ("me/things", "a:b")]
)
def test_malformed_names_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ConfigError):
        check_names(*names)


@pytest.mark.parametrize("reference", ["hub:me/things", "hub::a", "me/things:a", "hub:"])
def test_malformed_references_are_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match="hub:OWNER/NAME:SAE_ID"):
        load_from_hub(reference)


def test_what_is_not_there_is_said(hub: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="hub:me/things:a"):
        load_from_hub("hub:me/things:a")
    with pytest.raises(ModelError, match="expected an SAE that SAELens can load"):
        upload_sae(tmp_path / "nothing", "me/things", "a")
    assert not hub.root.exists()


def test_a_hub_that_fails(hub: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi

    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(HfApi, "create_repo", offline)
    with pytest.raises(OutputError, match="hf auth login"):
        upload_sae(saved(tmp_path / "sae"), "me/things", "a")


# the command ----------------------------------------------------------------------------------------------------------


def test_dry_run_writes_what_would_be_sent(hub: Any, mtsae: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.json"
    metrics.write_text(
        json.dumps({"explained_variance": 0.5, "l0": 4.0, "seconds": 3, "provenance": {"settings": {"dataset": None}}})
    )
    out = tmp_path / "dry"
    done = mtsae("upload", tiny_sae_dir, "me/things", "--metrics", metrics, "--dry-run", out)
    assert done.code == 0, done.err
    assert not hub.root.exists()
    card = (out / "README.md").read_text()
    assert "| explained_variance | 0.5 | centered" in card
    assert "seconds" not in card
    sent = mtsae("upload", tiny_sae_dir, "me/things", "--metrics", metrics)
    assert f"hub:me/things:{HOOK}" in sent.out
    for path in out.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (hub.root / "me/things" / path.relative_to(out)).read_bytes()


def test_command_mistakes(hub: Any, mtsae: Callable[..., Any], tiny_sae_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    refused = mtsae("upload", tiny_sae_dir, "me/things", "--dry-run", tmp_path / "full")
    assert refused.code == 2
    assert "got one with files" in refused.error
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "metrics.json").write_text('{"a": 1}')
    assert "mtsae evaluate" in mtsae("upload", tiny_sae_dir, "me/things", "--metrics", tmp_path / "metrics.json").error
    assert "OWNER/NAME" in mtsae("upload", tiny_sae_dir, "things").error
    shutil.copytree(tiny_sae_dir, tmp_path / "broken")
    (tmp_path / "broken" / "sae_weights.safetensors").write_bytes(b"no")
    assert mtsae("upload", tmp_path / "broken", "me/things").code == 2
    assert not hub.root.exists()
