"""What a training step costs: MTSAEs and SAELens's own architectures side by side, as ratios.

    python examples/benchmarks/step.py runs/step --n-threads 1

All of them are measured in turn in one process, again and again, so that another process on the machine slows all alike; a ratio is the
median over the rounds of the ratios to SAELens's TopK step in the same round. `step` is forward and backward
pass, `update` the step of the optimizer with clipped gradients and what the trainers do besides, `gemm` the encoder's product alone.
Writes `step.json` and `step.html`. With `--memory` each SAE takes two steps in a fresh process, and what is measured is the peak of its
resident memory less what stood in memory before the SAE was made.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import sae_lens
import torch
from sae_lens import TrainingSAE
from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAEConfig
from sae_lens.saes.standard_sae import StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
from torch import Tensor

from mtsae_lens import MTTrainingSAE, MTTrainingSAEConfig
from mtsae_lens.training.optimizer import update_in_memory_order
from mtsae_lens.upstream import TrainStepInput

BASELINE = "SAELens topk"
PARTS = ("step", "step and update")


@dataclass(frozen=True)
class Candidate:
    """One kind of SAE."""

    name: str
    make: Callable[[], TrainingSAE[Any]]

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("MTSAE")


def candidates(d_in: int, d_sae: int, k: int, device: str) -> list[Candidate]:
    """The kinds of SAE, with the settings of one cell."""
    sizes: dict[str, Any] = {"d_in": d_in, "d_sae": d_sae, "device": device}

    def ours(**settings: Any) -> Callable[[], TrainingSAE[Any]]:
        return lambda: MTTrainingSAE(MTTrainingSAEConfig(k=k, **sizes, **settings))

    def theirs(cfg: Any) -> Callable[[], TrainingSAE[Any]]:
        return lambda: TrainingSAE.from_dict(cfg.to_dict())

    return [
        Candidate("MTSAE sparse", ours()),
        Candidate("MTSAE sparse, context_rank 64", ours(context_rank=64)),
        Candidate("MTSAE dense", ours(training_step="dense")),
        Candidate("MTSAE batchtopk sparse", ours(activation="batchtopk")),
        Candidate("MTSAE pointwise sparse", ours(dilations=(0,))),
        Candidate("MTSAE with memory, sparse", ours(memory="predictive")),
        Candidate("SAELens topk", theirs(TopKTrainingSAEConfig(k=k, **sizes))),
        # with the default rescale_acts_by_decoder_norm=True its backward pass fails on sparse activations
        Candidate(
            "SAELens topk sparse",
            theirs(TopKTrainingSAEConfig(k=k, use_sparse_activations=True, rescale_acts_by_decoder_norm=False, **sizes)),
        ),
        Candidate("SAELens batchtopk", theirs(BatchTopKTrainingSAEConfig(k=k, **sizes))),
        Candidate("SAELens standard", theirs(StandardTrainingSAEConfig(**sizes))),
    ]


def make_rows(sae: TrainingSAE[Any], n_rows: int) -> Tensor:
    """Make random rows of a training batch, with all that their positions read; an SAE with memory also reads weights of its past."""
    if not isinstance(sae, MTTrainingSAE):
        return torch.randn(n_rows, sae.cfg.d_in, device=sae.device)
    if not sae.has_memory:
        return torch.randn(n_rows, len(sae.read_offsets) * sae.cfg.d_in, device=sae.device)
    n_reads = sae.cfg.n_memory_reads
    read = torch.randn(n_rows, (1 + n_reads) * sae.cfg.d_in, device=sae.device)
    return torch.cat([read, torch.ones(n_rows, n_reads + 1, device=sae.device)], dim=1)


class Runner:
    """An SAE with its optimizer and a batch, of which single steps are timed."""

    def __init__(self, candidate: Candidate, n_rows: int) -> None:
        torch.manual_seed(0)
        self.sae, self.is_ours = candidate.make(), candidate.is_ours
        self.batch = make_rows(self.sae, n_rows)
        if isinstance(self.sae, MTTrainingSAE):  # as after training: at the start the context is not read yet
            self.sae.W_enc.data += 0.02 * torch.randn_like(self.sae.W_enc)
        if self.is_ours:
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(self.sae.parameters(), lr=1e-4, fused=True)
            update_in_memory_order(self.optimizer)
            self.optimizer.register_step_post_hook(lambda *_: self.sae.normalize_decoder_())  # type: ignore[operator]
        else:
            self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=1e-4)  # as SAELens's trainer
        self.input = TrainStepInput(
            sae_in=self.batch,
            coefficients={name: getattr(value, "value", value) for name, value in self.sae.get_coefficients().items()},
            dead_neuron_mask=torch.zeros(self.sae.cfg.d_sae, dtype=torch.bool, device=self.sae.device),
            n_training_steps=1,
            is_logging_step=False,
        )

    def time(self) -> dict[str, float]:
        """Seconds of one step without and with the update of the weights."""
        start = self._now()
        output = self.sae.training_forward_pass(step_input=self.input)
        output.loss.backward()
        passed = self._now() - start
        del output
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"step": passed, "step and update": self._now() - start}

    def time_gemm(self) -> float:
        """Seconds of the encoder's product."""
        W_enc = self.sae.W_enc.detach()
        encoder_in = torch.randn(len(self.batch), W_enc.shape[0], device=W_enc.device)
        start = self._now()
        torch.addmm(self.sae.b_enc.detach(), encoder_in, W_enc)  # type: ignore[arg-type]
        return self._now() - start

    def _now(self) -> float:
        if self.batch.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


def measure(d_in: int, d_sae: int, k: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all candidates in turn, and compare their medians."""
    chosen = [c for c in candidates(d_in, d_sae, k, options.device) if not options.only or c.name in (*options.only, BASELINE)]
    rounds: list[dict[str, dict[str, float]]] = []
    runners = {candidate.name: Runner(candidate, options.n_rows) for candidate in chosen}
    for number in range(options.n_rounds + 1):
        times = {name: runner.time() | {"gemm": runner.time_gemm()} for name, runner in runners.items()}
        if number:  # the first round allocates
            rounds.append(times)
    rows = []
    for name, runner in runners.items():
        row: dict[str, Any] = {"name": name, "d_in": d_in, "d_sae": d_sae, "k": k, "encoder_in": runner.sae.W_enc.shape[0]}
        for part in PARTS:
            row[f"{part}, seconds"] = statistics.median(times[name][part] for times in rounds)
            row[f"{part}, of SAELens topk"] = statistics.median(times[name][part] / times[BASELINE][part] for times in rounds)
            row[f"{part}, of own product"] = statistics.median(times[name][part] / times[name]["gemm"] for times in rounds)
        row["gemm, seconds"] = statistics.median(times[name]["gemm"] for times in rounds)
        rows.append(row)
    del runners
    gc.collect()
    return rows


def peak_of_steps(candidate_name: str, d_in: int, d_sae: int, k: int, n_rows: int) -> int:
    """Take two steps in this process, which must be fresh, and return the peak of its memory in bytes beyond what it held before (Linux)."""
    torch.set_num_threads(1)
    (candidate,) = (one for one in candidates(d_in, d_sae, k, "cpu") if one.name == candidate_name)
    before = _resident_bytes("VmRSS")
    runner = Runner(candidate, n_rows)
    for _ in range(2):  # the first one makes the moments of the optimizer
        runner.time()
    return _resident_bytes("VmHWM") - before


def _resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(f"{field}:")))


def print_memory(options: argparse.Namespace) -> None:
    """Measure the memory of every kind of SAE in every cell, and print a table."""
    print("| d_sae | k | SAE | peak of a step, MB | of SAELens topk |\n|---|---|---|---|---|")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for d_sae, k in product(options.d_sae, options.k):
            names = [one.name for one in candidates(options.d_in, d_sae, k, "cpu")]
            chosen = [name for name in names if not options.only or name in (*options.only, BASELINE)]
            peaks = {name: pool.submit(peak_of_steps, name, options.d_in, d_sae, k, options.n_rows).result() for name in chosen}
            for name, peak in peaks.items():
                print(f"| {d_sae:,} | {k} | {name} | {peak / 1e6:,.0f} | {peak / peaks[BASELINE]:.2f} |", flush=True)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = "| d_sae | k | SAE | step | step and update | step / own GEMM | step and update / own GEMM |\n|---|---|---|---|---|---|---|"
    lines = [
        f"| {row['d_sae']:,} | {row['k']} | {row['name']} | "
        + " | ".join(f"{row[f'{part}, {of}']:.2f}" for of in ("of SAELens topk", "of own product") for part in PARTS)
        + " |"
        for row in rows
    ]
    return "\n".join([head, *lines])


def plot(rows: list[dict[str, Any]]) -> go.Figure:
    """The ratios as bars, one group for each cell."""
    figure = go.Figure()
    for name in dict.fromkeys(row["name"] for row in rows):
        mine = [row for row in rows if row["name"] == name]
        cells = [f"d_sae {row['d_sae']:,}, k {row['k']}" for row in mine]
        figure.add_bar(name=name, x=cells, y=[row["step and update, of SAELens topk"] for row in mine])
    figure.update_layout(barmode="group", template="plotly_white", yaxis_title="step and update, of SAELens's TopK")
    figure.add_hline(y=1.0, line_dash="dot")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, nargs="+", default=[4096, 16384], help="65536 needs some 10 GB for each SAE")
    parser.add_argument("--k", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--n-rows", type=int, default=1024)
    parser.add_argument("--n-rounds", type=int, default=5)
    parser.add_argument("--n-threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", help="names of SAEs to measure besides SAELens's TopK")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    options = parser.parse_args()
    if options.memory:
        print_memory(options)
        return
    torch.set_num_threads(options.n_threads)
    torch.sparse.check_sparse_tensor_invariants.disable()

    rows = [row for d_sae in options.d_sae for k in options.k for row in measure(options.d_in, d_sae, k, options)]
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    about = {
        "device": device,
        "n_threads": options.n_threads,
        "n_rows": options.n_rows,
        "n_rounds": options.n_rounds,
        "torch": torch.__version__,
        "sae_lens": sae_lens.__version__,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "step.json").write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n", encoding="utf-8")
    plot(rows).write_html(options.out / "step.html", include_plotlyjs=True)
    print(json.dumps(about))
    print(table(rows))


if __name__ == "__main__":
    main()
