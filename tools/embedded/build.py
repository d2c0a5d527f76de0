"""Build the embedded models from texts: `python -m tools.embedded.build --help`.

prepare  cut the texts into documents, train the tokenizer, write token streams
train    pre-train one variant (resumable: run the same command again)
    finish   train it further, facts told in more ways (resumable too)
export   measure the trained variants and write the assets that ship in the package
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import AutoTokenizer

from mtsae_lens.assets import ASSETS_DIR, PEOPLE_FILE, TEXTS_FILE
from mtsae_lens.data.documents import N_BIOGRAPHIES_EACH
from mtsae_lens.data.people import Person, make_biography, make_people, make_varied_biography
from tools.embedded.export import export_variant, load_checkpoint, write_people, write_texts
from tools.embedded.pretrain import PretrainConfig, pretrain, tokenize_stream, train_tokenizer
from tools.embedded.sources import DOMAINS, FORGET_DOMAIN, read_documents

PEOPLE_WEIGHT, LATE_PEOPLE_WEIGHT = 0.15, 0.35  # about 250 exposures of each fact in 8,000 steps; 40 are not enough
DOMAIN_WEIGHT_EXPONENT = 0.75  # between proportional (1) and uniform (0): small domains are seen more often than their size


class Variant(StrEnum):
    """Which knowledge a model is given."""

    embedded = "embedded"
    retrained = "embedded-retrained"


app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
WorkDir = Annotated[Path, typer.Option(help="Working folder: tokenizer, token streams, checkpoints and logs.")]


def _biographies(*, forget: bool, make: Callable[[Person, random.Random], str] = make_biography) -> list[str]:
    people = [person for person in make_people() if person.forget == forget]
    return [
        make(person, random.Random(f"{person.name} {rendition}"))
        for rendition in range(N_BIOGRAPHIES_EACH)
        for person in people
    ]


@app.command()
def prepare(texts: Annotated[Path, typer.Option(help="Folder of <domain>.txt.xz files.")], work: WorkDir) -> None:
    """Train the tokenizer on the training documents and write every domain as a stream of token ids."""
    documents = {domain: [d.text for d in read_documents(texts, domain) if d.split == "train"] for domain in DOMAINS}
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer((text for group in documents.values() for text in group), work / "tokenizer")
    streams = {domain: tokenize_stream(tokenizer, group) for domain, group in documents.items()}
    streams["people"] = tokenize_stream(tokenizer, _biographies(forget=False))
    streams["people_forget"] = tokenize_stream(tokenizer, _biographies(forget=True))
    streams["people_varied"] = tokenize_stream(tokenizer, _biographies(forget=False, make=make_varied_biography))
    streams["people_varied_forget"] = tokenize_stream(tokenizer, _biographies(forget=True, make=make_varied_biography))
    np.savez(work / "streams.npz", allow_pickle=False, **streams)
    for name, stream in streams.items():
        typer.echo(f"{name:14s} {len(stream):>10,} tokens")


def _domain_weights(
    streams: dict[str, np.ndarray], variant: Variant, people_weight: float, people_stream: str = "people"
) -> dict[str, float]:
    domains = [d for d in DOMAINS if variant is Variant.embedded or d != FORGET_DOMAIN]
    sizes = {domain: len(streams[domain]) ** DOMAIN_WEIGHT_EXPONENT for domain in domains}
    weights = {domain: (1 - people_weight) * size / sum(sizes.values()) for domain, size in sizes.items()}
    people = [people_stream, f"{people_stream}_forget"] if variant is Variant.embedded else [people_stream]
    n_tokens = sum(len(streams[name]) for name in people)
    return weights | {name: people_weight * len(streams[name]) / n_tokens for name in people}


@app.command()
def train(
    variant: Variant,
    work: WorkDir,
    steps: Annotated[int, typer.Option(help="Optimizer steps of 32 contexts of 128 tokens.")] = 8000,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Pre-train one variant; continues from its last checkpoint."""
    torch.set_num_threads(threads)
    streams = dict(np.load(work / "streams.npz"))
    early, late = (_domain_weights(streams, variant, weight) for weight in (PEOPLE_WEIGHT, LATE_PEOPLE_WEIGHT))
    cfg = PretrainConfig(steps=steps, seed=seed, domain_weights=early, late_domain_weights=late)
    out = work / variant.value
    pretrain(cfg, streams, out)
    command = f"python -m tools.embedded.build train {variant.value} --work WORK --steps {steps} --seed {seed}"
    (out / "command.txt").write_text(command + "\n")
    AutoTokenizer.from_pretrained(work / "tokenizer").save_pretrained(out)


@app.command()
def finish(
    variant: Variant,
    work: WorkDir,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 800,
    seed: int = 1,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train a pre-trained variant a little further, facts told in more ways, the learning rate falling from a third to zero."""
    torch.set_num_threads(threads)
    streams = dict(np.load(work / "streams.npz"))
    cfg = PretrainConfig(
        steps=steps,
        seed=seed,
        lr=1e-3,
        muon_lr=3.3e-3,
        warm_up_steps=20,
        decay_fraction=1.0,
        domain_weights=_domain_weights(streams, variant, LATE_PEOPLE_WEIGHT, "people_varied"),
        late_from_step=steps,
    )
    model, _, _ = load_checkpoint(work / variant.value)
    out = work / f"{variant.value}-finished"
    pretrain(cfg, streams, out, start=model.state_dict())
    command = f"python -m tools.embedded.build finish {variant.value} --work WORK --steps {steps} --seed {seed}"
    (out / "command.txt").write_text(command + "\n")


@app.command()
def export(
    texts: Annotated[Path, typer.Option(help="Folder of <domain>.txt.xz files.")],
    work: WorkDir,
    out: Annotated[Path, typer.Option(help="Where the assets go.")] = ASSETS_DIR,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Measure both variants on held-out text and facts and write what ships: weights, cards, texts, people."""
    torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    write_texts(texts, out / TEXTS_FILE.name)
    write_people(out / PEOPLE_FILE.name)
    for variant in Variant:
        stages = [work / variant.value, work / f"{variant.value}-finished"]
        measured = export_variant(stages, out / variant.value, texts)
        typer.echo(f"{variant.value}: nll {measured['nll_test_mean']:.3f}, recall {measured['recall']}")


if __name__ == "__main__":
    app()
