"""Compare gates by how soon they recognize the forget text: the share recognized at 1% false positives, after 4, 8, 16 and 32 tokens.

    python examples/benchmarks/gates.py SAE --task people --seeds 3
    python examples/benchmarks/gates.py SAE --task domain --seeds 3

Gates are fitted on SELECT; decay and penalty of the probe are chosen on TUNE; the table is of TEST. Attention output is the input of a gate
here only: at run time a gate reads the hook of the SAE. `untrained` is the same SAE with random weights.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtsae_lens import open_sae
from mtsae_lens.data.questions import is_question_source, read_questions
from mtsae_lens.data.token_tables import TokenTable, read_tokens
from mtsae_lens.splice.evidence_gates import EvidenceGate
from mtsae_lens.splice.gate_interface import ThresholdGate
from mtsae_lens.splice.hooked_lm import HookedLM
from mtsae_lens.unlearning.evidence_fit import fit_decayed_mean, fit_two_state
from mtsae_lens.unlearning.gate_kinds import GateChoice
from mtsae_lens.unlearning.gating import fit_gate
from mtsae_lens.unlearning.measures.detection import Detection, Scores, detection
from mtsae_lens.unlearning.observed import Observed, Read, observe_table, reader

FAR = ("sotu", "austen", "factbook", "pydocs")
PEOPLE_TEXT = "biographies:forget"
STRANGERS = {"facts:forget:known": "facts:strangers:known", PEOPLE_TEXT: "biographies:strangers"}
TASKS = {
    "domain": ("kjv", ("milton", "shakespeare", *FAR)),
    "people": ("facts:forget:known", ("facts:retain:known", "biographies:retain", *FAR)),
}
N_CONTEXTS = {"select": 96, "tune": 96, "test": 160}
DECAYS, PENALTIES = (0.9, 0.97), (1e-3, 1e-4, 1e-5)


def read_table(lm: HookedLM, source: str, split: Any) -> TokenTable:
    """Read the contexts of one corpus and split."""
    if is_question_source(source):
        return read_questions(source, split, lm.cutter, 3_000 if split == "select" else 600)
    return read_tokens(source, split, lm.cutter, N_CONTEXTS[split])


def attention_output(lm: HookedLM) -> Read:
    """Return the function from tokens to the attention output of the SAE's layer."""
    layer = int(lm.splice.hook_name.split(".")[1])
    name = f"blocks.{layer}.hook_attn_out"

    def read(tokens: Tensor) -> Tensor:
        _, cache = lm.model.run_with_cache(tokens, names_filter=[name], prepend_bos=False, stop_at_layer=layer + 1)
        return cache[name]

    return read


def untrained(lm: HookedLM) -> Read:
    """Return the features of an SAE of the same architecture with random weights of the same size."""
    sae = copy.deepcopy(lm.sae)
    generator = torch.Generator().manual_seed(0)
    for parameter in sae.parameters():
        parameter.data = parameter.std().nan_to_num() * torch.randn(parameter.shape, generator=generator)
    splice = type(lm.splice)(sae)
    return lambda tokens: splice.feature_acts(lm.activations(tokens), lm.masked(tokens))


class Corpora:
    """What the gates of one input read, corpus by corpus, read once."""

    def __init__(self, lm: HookedLM, tables: dict[tuple[str, str], TokenTable], read: Read) -> None:
        self.lm, self.tables, self.read = lm, tables, read
        self.observed: dict[tuple[str, str], Observed] = {}

    def __call__(self, source: str, split: str) -> Observed:
        """Return what is read in a corpus."""
        if (source, split) not in self.observed:
            self.observed[source, split] = observe_table(self.lm, self.tables[source, split], self.read)
        return self.observed[source, split]

    @torch.no_grad()
    def scores(self, gate: ThresholdGate, source: str, split: str) -> Scores:
        """Return a gate's scores on a corpus."""
        observed, table = self(source, split), self.tables[source, split]
        length = observed.rows.shape[1]
        answers = None if table.answers is None else table.answers[:, :length]
        cut = TokenTable(table.corpus, table.tokens[:, :length], table.documents, answers)
        return Scores(gate.score(observed.rows), observed.is_step, cut)


def best_probe(corpora: Corpora, task: str, seed: int) -> EvidenceGate:
    """Fit the probe with a decayed mean; decay and penalty are chosen on TUNE."""
    forget, retain = TASKS[task]
    select = [corpora(source, "select") for source in (forget, *retain)]

    def quality(gate: EvidenceGate) -> float:
        rows = detect(corpora, gate, forget, retain, "tune")
        return sum(row.rate for row in rows) / len(rows)

    fitted = [
        fit_decayed_mean(select[0], select[1:], "activations", seed=seed, decay=decay, penalty=penalty)
        for decay, penalty in product(DECAYS, PENALTIES)
    ]
    return max(fitted, key=quality)


def detect(corpora: Corpora, gate: ThresholdGate, forget: str, retain: tuple[str, ...], split: str) -> tuple[Detection, ...]:
    """Measure one gate on one split."""
    others = {source: corpora.scores(gate, source, split) for source in retain}
    return detection(corpora.scores(gate, forget, split), others)


def arms(
    lm: HookedLM, task: str, tables: dict[tuple[str, str], TokenTable], n_steps: int
) -> Iterator[tuple[str, Read, Callable[[Corpora, int], Any]]]:
    """Yield the gates to compare: name, input, and fit."""
    forget, retain = TASKS[task]
    many = 40 if task == "people" else 8

    def today(corpora: Corpora, seed: int) -> ThresholdGate:
        return fit_gate(lm, tables[forget, "select"], [tables[source, "select"] for source in retain], seed=seed)

    def two_state(reads: Any, n_detectors: int, loss: Any) -> Callable[[Corpora, int], Any]:
        def fit(corpora: Corpora, seed: int) -> EvidenceGate:
            first, *others = (corpora(source, "select") for source in (forget, *retain))
            return fit_two_state(
                first, others, reads, seed=seed, n_detectors=n_detectors, loss=loss, penalty=0.01, n_steps=n_steps
            )

        return fit

    raw, features = reader(lm, "activations"), reader(lm, "features")
    yield "raw probe, decayed mean", raw, lambda corpora, seed: best_probe(corpora, task, seed)
    yield "today's gate (features)", features, today
    for loss in ("positions", "windows") if task == "domain" else ("windows",):
        yield f"two-state, raw, {loss}", raw, two_state("activations", 1, loss)
    yield (
        f"two-state, raw, {many} detectors",
        raw,
        two_state("activations", many, "positions" if task == "domain" else "windows"),
    )
    if task == "people":
        known = GateChoice("known_groups_activations")
        yield (
            "known groups, raw",
            raw,
            lambda corpora, seed: known.fit(
                lm, tables[forget, "select"], [tables[source, "select"] for source in retain], seed=seed
            ),
        )
    yield "two-state, features", features, two_state("features", 1, "positions")
    yield f"two-state, features, {many} detectors", features, two_state("features", many, "positions")
    yield f"two-state, untrained features, {many} detectors", untrained(lm), two_state("features", many, "positions")
    yield f"two-state, attention output, {many} detectors", attention_output(lm), two_state("activations", many, "positions")


def main() -> None:
    """Fit and measure every gate, and print one line of Markdown for each as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sae")
    parser.add_argument("--task", choices=TASKS, default="people")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--only", default="", help="measure only arms with this in their name")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lm, _ = open_sae(arguments.sae, batch_size=32)
    forget, retain = TASKS[arguments.task]
    tables = {(source, split): read_table(lm, source, split) for source in (forget, *retain) for split in N_CONTEXTS}
    tests = [(forget, retain)]
    if arguments.task == "people":
        extra = (PEOPLE_TEXT, "biographies:strangers", "facts:strangers:known")
        tables |= {(source, "test"): read_table(lm, source, "test") for source in extra}
        tests = [
            (forget, ("facts:retain:known",)),
            (forget, ("facts:strangers:known",)),
            (PEOPLE_TEXT, ("biographies:retain",)),
            (PEOPLE_TEXT, ("biographies:strangers",)),
        ]
    found = []
    for name, read, fit in arms(lm, arguments.task, tables, arguments.steps):
        if arguments.only not in name:
            continue
        corpora = Corpora(lm, tables, read)
        for seed in range(arguments.seeds):
            gate = fit(corpora, seed)
            for positives, negatives in tests:
                rows = detect(corpora, gate, positives, negatives, "test")
                found.append(
                    {"arm": name, "seed": seed, "forget": positives, "other": negatives, "rows": [asdict(r) for r in rows]}
                )
                against = negatives[0] if len(negatives) == 1 else "text to keep"
                cells = [f"{row.rate:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in rows]
                print("|", " | ".join([name, str(seed), f"{positives} against {against}", *cells]), "|", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
