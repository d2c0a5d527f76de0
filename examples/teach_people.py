"""Teach a language model the invented people by a short finetune, and a second one all but the 40 to be forgotten, which is the reference.

    python examples/teach_people.py MODEL --out runs/taught

MODEL is a Hugging Face folder of a family that `mtsae export` knows, or `embedded`. Two folders are written, `runs/taught/taught` and
`runs/taught/reference`, with the same recipe, seed and number of steps, and `runs/taught/teaching.json` says what both models recall. The
text is the training text of the package: biographies of the people, the same sentences one by one as questions with their answers, and the
embedded texts, so that the model does not forget the language. In sentences about people, only the answers count. Only the layers from
`--first-layer` on are trained. The residual stream that the first of them reads does not change, so it is computed once, and a step runs
the later layers only. A model whose folder exists already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtsae_lens.data.contexts import ContextCutter
from mtsae_lens.data.documents import BIOGRAPHIES, read_documents
from mtsae_lens.data.people import GROUPS, Person, make_questions, people_of
from mtsae_lens.data.questions import draw_questions, question_table
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.errors import ConfigError, ModelError
from mtsae_lens.export.base_models import BaseModel, open_base
from mtsae_lens.files import write_json, write_whole_folder
from mtsae_lens.output_folders import hold_output_folder
from mtsae_lens.progress import track
from mtsae_lens.unlearning.finetuning.finetune import descend

TAUGHT, REFERENCE, RECORD = "taught", "reference", "teaching.json"
TEXT = "text"
ASKED = (("forget", "tune", "known"), ("retain", "tune", "known"), ("strangers", "test", "known"), ("forget", "tune", "unseen"))
N_ASKED = 100  # of each
N_TEXTS_MEASURED = 32
BATCH = 32


@dataclass(frozen=True, eq=False)
class Lesson:
    """Rows of text, padded on the right: tokens, weights of the predicted tokens, and what the first trained layer reads."""

    tokens: Tensor
    weights: Tensor
    people: tuple[str, ...]
    states: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, rows: Sequence[int]) -> Lesson:
        """Select rows, without the positions that are padding in all of them."""
        index = torch.as_tensor(rows)
        length = int(self.weights[index].any(dim=0).nonzero().max()) + 1
        return Lesson(
            self.tokens[index, :length],
            self.weights[index, :length],
            tuple(self.people[row] for row in rows),
            None if self.states is None else self.states[index, :length],
        )


def of_table(table: TokenTable, cutter: ContextCutter, weight: float = 1.0) -> Lesson:
    """Take the tokens that a table counts, with one weight."""
    weights = torch.nn.functional.pad(table.counted(cutter).float(), (1, 0))
    return Lesson(table.tokens, weights * weight, table.documents)


def biographies(people: Sequence[Person], n_each: int, cutter: ContextCutter, answer_weight: float) -> Lesson:
    """Make one row of each of `n_each` training biographies of every person; only the tokens of answers count."""
    by_name, taken = {person.name: person for person in people}, Counter[str]()
    rows, weights, names = [], [], []
    for document in read_documents(BIOGRAPHIES, "train"):
        name = document.name.split("/")[1]
        if name not in by_name or taken[name] == n_each:
            continue
        taken[name] += 1
        encoded = cutter.tokenizer(document.text, add_special_tokens=False, return_offsets_mapping=True)
        answers = [
            span for value in by_name[name].facts.values() for span in spans(document.text, f" {value}.", len(value) + 1)
        ]
        of_tokens = [
            answer_weight * any(begin < last and first < end for begin, end in answers)
            for first, last in encoded["offset_mapping"]
        ]
        rows.append([*cutter.start_tokens, *encoded["input_ids"]])
        weights.append([*(0.0 for _ in cutter.start_tokens), *of_tokens])
        names.append(name)
    length, padding = max(map(len, rows)), int(cutter.special_token_ids[0])
    return Lesson(
        torch.tensor([row + [padding] * (length - len(row)) for row in rows]),
        torch.tensor([row + [0.0] * (length - len(row)) for row in weights]),
        tuple(names),
    )


def spans(text: str, part: str, length: int) -> list[tuple[int, int]]:
    """Return where a part begins in a text, and `length` characters later."""
    return [(place.start(), place.start() + length) for place in re.finditer(re.escape(part), text)]


def questions(people: Sequence[Person], cutter: ContextCutter, n_each: int, answer_weight: float, seed: int) -> Lesson:
    """Make one row of each of `n_each` questions about every fact; only answers count."""
    rng, kept = random.Random(seed), []
    for _, of_fact in groupby(make_questions(people), key=lambda question: (question.name, question.attribute)):
        kept += rng.sample([question for question in of_fact if not question.held_out_template], n_each)
    return of_table(question_table("questions", kept, cutter), cutter, answer_weight)


def casting(bfloat16: bool) -> AbstractContextManager[Any]:
    """Run matrix products in bfloat16 within this context, if asked for."""
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()


@contextmanager
def layers_of(base: BaseModel, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Run only some of the layers within this context."""
    inner, whole = base.model.base_model, base.layers
    (name,) = [name for name, module in inner.named_children() if module is whole]
    setattr(inner, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(inner, name, whole)


@torch.no_grad()
def with_states(base: BaseModel, lesson: Lesson, first: int, *, bfloat16: bool = False) -> Lesson:
    """Run the layers before `first`, and keep what layer `first` reads."""
    found: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        found.append((arguments[0] if arguments else options["hidden_states"]).clone())

    layers = list(base.layers)
    handle = layers[first].register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with layers_of(base, layers[: first + 1]), casting(bfloat16):
            for tokens in track(lesson.tokens.split(BATCH), f"running the layers before {first}", "batch"):
                base.model.base_model(tokens, use_cache=False)
    finally:
        handle.remove()
    return replace(lesson, states=torch.cat(found).float())


def head_input(base: BaseModel, lesson: Lesson) -> Tensor:
    """Return what the unembedding reads at every position; from kept states, the model must run its later layers only."""
    inputs = {"input_ids": lesson.tokens} if lesson.states is None else {"inputs_embeds": lesson.states}
    return base.model.base_model(**inputs, use_cache=False).last_hidden_state


def nll(base: BaseModel, lesson: Lesson) -> tuple[Tensor, Tensor]:
    """Return the loss of each counted token, and its weight."""
    counted = lesson.weights[:, 1:] > 0
    logits = base.model.get_output_embeddings()(head_input(base, lesson)[:, :-1][counted]).float()
    losses = nn.functional.cross_entropy(logits, lesson.tokens[:, 1:][counted], reduction="none")
    return losses, lesson.weights[:, 1:][counted]


def check_later_layers(base: BaseModel, lesson: Lesson, first: int) -> None:
    """Check that the later layers, run alone on what they read, give the losses of the whole model."""
    some = lesson.rows(range(min(2, len(lesson))))
    with torch.no_grad():
        whole, _ = nll(base, replace(some, states=None))
        with layers_of(base, list(base.layers)[first:]):
            later, _ = nll(base, some)
    if not torch.allclose(whole, later, atol=1e-3, rtol=1e-3):
        raise ModelError(
            f"expected the layers from {first} on to give the model's losses when run alone, got a difference of "
            f"{(whole - later).abs().max():.3g}; give a model of another family, such as Llama or GPT-NeoX"
        )


def held_back(names: set[str], cutter: ContextCutter, seed: int) -> dict[str, Lesson]:
    """Make the rows that both models are measured on: questions about every group of people, and embedded text that is not trained on."""
    found = {TEXT: of_table(read_tokens("embedded", "tune", cutter, N_TEXTS_MEASURED, seed=seed), cutter)}
    for group, split, templates in ASKED:
        source = f"facts:{group}:{templates}"
        asked = [question for question in draw_questions(source, split, 1_000_000, seed=seed) if question.name in names]
        found[source] = of_table(question_table(source, asked[:N_ASKED], cutter), cutter)
    return found


@torch.no_grad()
def measure(base: BaseModel, lessons: dict[str, Lesson], first: int) -> dict[str, float]:
    """Return the loss on text in nats per token, and the share of the questions whose answer is decoded exactly."""
    found: dict[str, float] = {}
    with layers_of(base, list(base.layers)[first:]):
        for name, lesson in lessons.items():
            parts = [lesson.rows(rows.tolist()) for rows in torch.arange(len(lesson)).split(BATCH)]
            if name == TEXT:
                found[name] = torch.cat([nll(base, part)[0] for part in parts]).mean().item()
            else:
                found[name] = torch.cat([right(base, part) for part in parts]).float().mean().item()
    return found


def right(base: BaseModel, lesson: Lesson) -> Tensor:
    """Return, for each row, whether every counted token is the likeliest one."""
    counted = lesson.weights[:, 1:] > 0
    likeliest = base.model.get_output_embeddings()(head_input(base, lesson)[:, :-1][counted]).argmax(dim=-1)
    wrong = torch.zeros(counted.shape, dtype=torch.bool)
    wrong[counted] = likeliest != lesson.tokens[:, 1:][counted]
    return ~wrong.any(dim=1)


def endless(n_rows: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield batches of row numbers without end, in an order that is new in every epoch."""
    rows: list[int] = []
    while True:
        while len(rows) < size:
            rows += torch.randperm(n_rows, generator=generator).tolist()
        yield rows[:size]
        rows = rows[size:]


def teach(base: BaseModel, lessons: dict[str, Lesson], given: argparse.Namespace) -> list[float]:
    """Train the layers from the first one on, in place; return the mean weighted loss of every tenth of the steps."""
    generator = torch.Generator().manual_seed(given.seed)
    sizes = {"biographies": given.batch_size, "questions": 20 * given.batch_size, TEXT: given.text_batch_size}
    drawn = {name: endless(len(lesson), sizes[name], generator) for name, lesson in lessons.items()}
    losses: list[float] = []

    def loss() -> Tensor:
        total, weight = torch.zeros(()), torch.zeros(())
        for name, lesson in lessons.items():
            with casting(given.bfloat16):
                found, weights = nll(base, lesson.rows(next(drawn[name])))
            total, weight = total + (found * weights).sum(), weight + weights.sum()
        losses.append((total / weight).item())
        return total / weight

    with layers_of(base, list(base.layers)[given.first_layer :]):
        inside = {id(parameter) for parameter in base.layers.parameters()}
        names = [name for name, parameter in base.model.named_parameters() if id(parameter) in inside]
        for step in descend(base.model, names, loss, given.lr, given.steps):
            if step and step % 10 == 0:
                print(f"# step {step}: loss {sum(losses[-10:]) / 10:.3f}", flush=True)
    tenth = math.ceil(len(losses) / 10)
    return [sum(part) / len(part) for n in range(0, len(losses), tenth) if (part := losses[n : n + tenth])]


def select_people(n: int) -> list[Person]:
    """Return `n` of the 200 people, the same share of every group."""
    groups = [people_of(group) for group in GROUPS]
    total = sum(map(len, groups))
    return [person for group in groups for person in group[: max(1, round(len(group) * n / total))]]


def read_record(given: argparse.Namespace) -> dict[str, Any]:
    """Return the record of an earlier run with the same settings, or a new one.

    Raises:
        ConfigError: the folder has models that were taught with other settings.
    """
    settings = {name: str(value) for name, value in vars(given).items() if name != "out"}
    if not (given.out / RECORD).is_file():
        return {"settings": settings}
    record: dict[str, Any] = json.loads((given.out / RECORD).read_text(encoding="utf-8"))
    other = [name for name in settings if record["settings"].get(name) != settings[name]]
    if other:
        raise ConfigError(
            f"expected the settings with which {given.out} was begun, got other {', '.join(other)}; give another --out, or the same settings"
        )
    return record


def prepare(base: BaseModel, given: argparse.Namespace) -> tuple[dict[str, Lesson], dict[str, Lesson]]:
    """Make the rows to train on and the rows to measure, and run the layers before the first trained one on them."""
    cutter = ContextCutter(base.tokenizer, given.context_size, prepend_bos=base.tokenizer.bos_token_id is not None)
    people, first = select_people(given.people), given.first_layer
    lessons = {
        "biographies": biographies(people, given.biographies, cutter, given.answer_weight),
        "questions": questions(people, cutter, given.questions, given.answer_weight, given.seed),
        TEXT: of_table(read_tokens("embedded", "train", cutter, given.texts, seed=given.seed), cutter),
    }
    measured = held_back({person.name for person in people}, cutter, given.seed)
    lessons = {name: with_states(base, lesson, first, bfloat16=given.bfloat16) for name, lesson in lessons.items()}
    measured = {name: with_states(base, lesson, first) for name, lesson in measured.items()}
    check_later_layers(base, measured[TEXT], first)
    return lessons, measured


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Teach both models, unless they are there already, and write them and what they recall."""
    base, start = open_base(given.model), time.monotonic()
    base.model.requires_grad_(False)
    n_layers = len(base.layers)
    given.first_layer = n_layers - math.ceil(n_layers / 3) if given.first_layer is None else given.first_layer
    if not 0 <= given.first_layer < n_layers:
        raise ConfigError(f"expected --first-layer from 0 to {n_layers - 1}, got {given.first_layer}; change it")
    with hold_output_folder(given.out):
        record = read_record(given)
        missing = [name for name in (TAUGHT, REFERENCE) if name not in record or not (given.out / name).is_dir()]
        if not missing:
            return record
        lessons, measured = prepare(base, given)
        record["before"] = measure(base, measured, given.first_layer)
        print(f"# {time.monotonic() - start:.0f} s, before: {record['before']}", flush=True)
        untrained = {name: tensor.clone() for name, tensor in base.layers.state_dict().items()}
        to_forget = {person.name for person in people_of("forget")}
        for name in missing:
            base.layers.load_state_dict(untrained)
            left_out = to_forget if name == REFERENCE else set()
            kept = {
                key: lesson.rows([row for row, person in enumerate(lesson.people) if person not in left_out])
                for key, lesson in lessons.items()
            }
            losses = teach(base, kept, given)
            record[name] = {"losses": losses} | measure(base, measured, given.first_layer)
            record[name]["seconds"] = time.monotonic() - start
            with write_whole_folder(given.out / name) as folder:
                base.save(folder)
            write_json(given.out / RECORD, record)
            print(f"# {record[name]['seconds']:.0f} s, {name}: {record[name]}", flush=True)
    return record


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path("runs/taught"))
    parser.add_argument("--people", type=int, default=200, help="of 200; a fifth of them is left out of the reference")
    parser.add_argument("--biographies", type=int, default=2, help="of each person")
    parser.add_argument("--questions", type=int, default=2, help="about each fact, of six")
    parser.add_argument("--texts", type=int, default=256, help="contexts of embedded text")
    parser.add_argument("--context-size", type=int, default=64, help="of embedded text and questions, in tokens")
    parser.add_argument("--first-layer", type=int, help="first layer to train; by default the last third is trained")
    parser.add_argument(
        "--answer-weight", type=float, default=5.0, help="weight of a token of an answer; a token of other text has 1"
    )
    parser.add_argument("--batch-size", type=int, default=2, help="biographies in a step; there are 20 questions for each")
    parser.add_argument("--text-batch-size", type=int, default=4, help="contexts of embedded text in a step")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--bfloat16", action="store_true", help="compute matrix products of the training in bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse())
