"""Fill a cache of the Hugging Face hub as downloads do: a random model of the size of Pythia-70m, and rows in the format of the Pile.

Names resolve in it offline by the real ways of TransformerLens, transformers and datasets.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mtsae_lens.assets import embedded_model_dir

PILE_PARTS = ("FreeLaw", "USPTO Backgrounds", "Wikipedia (en)", "Github", "StackExchange")
PYTHIA_70M = {
    "vocab_size": 50304,
    "hidden_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_REVISION = "0" * 40


def environment(home: Path) -> dict[str, str]:
    """Variables under which a process finds the cache, and no hub."""
    return {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def put_model(home: Path, repo: str, write: Callable[[Path], None]) -> None:
    """A repository of a model: `refs`, `snapshots` of links, `blobs` by their digest."""
    root, files = home / "hub" / f"models--{repo.replace('/', '--')}", home / "files"
    write(files)
    for folder in ("refs", "blobs"):
        (root / folder).mkdir(parents=True)
    (root / "refs" / "main").write_text(_REVISION)
    snapshot = root / "snapshots" / _REVISION
    for file in files.rglob("*"):
        if file.is_file():
            blob = root / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            link = snapshot / file.relative_to(files)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
            file.rename(blob)
    shutil.rmtree(files)


def write_pythia_70m(folder: Path, **changes: int) -> None:
    """Random weights in float16, as Pythia's are published; the tokenizer is the embedded model's, with the same `<|endoftext|>`.

    Args:
        folder: where to write.
        changes: sizes of the configuration that differ from Pythia's.
    """
    torch.manual_seed(0)
    GPTNeoXForCausalLM(GPTNeoXConfig(**(PYTHIA_70M | changes))).half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(embedded_model_dir("embedded") / name, folder)


def put_pile(home: Path, texts: Sequence[str]) -> None:
    """`monology/pile-uncopyrighted` as `datasets` keeps what it has prepared; the parts take turns."""
    rows = [{"text": text, "meta": {"pile_set_name": PILE_PARTS[i % len(PILE_PARTS)]}} for i, text in enumerate(texts)]
    prepared = home / "datasets" / "monology___pile-uncopyrighted" / "default" / "0.0.0" / _REVISION
    made = home / "prepared"
    made.mkdir()
    (made / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = datasets.load_dataset("json", data_files=str(made / "rows.jsonl"), split="train", cache_dir=str(made))
    shutil.copytree(Path(table.cache_files[0]["filename"]).parent, prepared)
    for file in prepared.glob("json-*.arrow"):
        file.rename(prepared / file.name.replace("json-", "pile-uncopyrighted-"))
    info = prepared / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"dataset_name": "pile-uncopyrighted"}))
    shutil.rmtree(made)
