"""Train the embedded language model from scratch: a small GPT-NeoX, as Pythia, on public texts and fictitious biographies.

A step draws its batch from a generator seeded by (seed, step), so a resumed run sees the very batches of an uninterrupted one.
Matrices of the transformer blocks are trained with Muon (Jordan et al. 2024), all else with AdamW; the learning rate warms
up, stays constant, and falls linearly to zero over the last quarter ("warm-up, stable, decay", Hu et al. 2024, arXiv 2404.06395).
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"  # begins every context and separates documents, as in GPT-NeoX
BOS = 0  # its id: the tokenizer is given it first
VOCAB_SIZE = 4096


@dataclass(frozen=True)
class PretrainConfig:
    """What decides the weights; everything else only decides how long they take."""

    steps: int
    seed: int = 0
    n_layers: int = 6
    d_model: int = 128
    n_heads: int = 4
    context_size: int = 128
    batch_size_sequences: int = 32
    lr: float = 3e-3
    muon_lr: float = 1e-2
    weight_decay: float = 0.1
    warm_up_steps: int = 200
    decay_fraction: float = 0.25
    domain_weights: dict[str, float] = field(default_factory=dict)
    late_from_step: int = 2500
    late_domain_weights: dict[str, float] = field(default_factory=dict)

    def weights_at(self, step: int) -> dict[str, float]:
        """Share of each domain at `step`: facts are learnt once language is, so they get more of the later steps."""
        return self.late_domain_weights if step >= self.late_from_step else self.domain_weights

    def lr_factor(self, step: int) -> float:
        """Share of the peak learning rate at `step`, counted from 0."""
        decay_steps = self.decay_fraction * self.steps
        return min(1.0, (step + 1) / self.warm_up_steps, (self.steps - step) / decay_steps)


def train_tokenizer(texts: Iterator[str], out: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of `VOCAB_SIZE` tokens, saved where `AutoTokenizer` finds it."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=VOCAB_SIZE, min_frequency=2, special_tokens=[END_OF_TEXT], show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, unk_token=END_OF_TEXT
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def tokenize_stream(tokenizer: PreTrainedTokenizerFast, documents: Sequence[str]) -> np.ndarray:
    """Documents as one row of token ids with the end-of-text token after each."""
    encoded = tokenizer(list(documents), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return np.concatenate([np.array([*ids, tokenizer.eos_token_id], dtype=np.uint16) for ids in encoded])


def draw_batch(streams: dict[str, np.ndarray], cfg: PretrainConfig, bos: int, step: int) -> torch.Tensor:
    """`(batch, pos)` token ids of step `step`: random windows of domains drawn by weight, each behind a BOS token."""
    rng = np.random.default_rng((cfg.seed, step))
    domains = list(cfg.weights_at(step))
    weights = np.array(list(cfg.weights_at(step).values()))
    rows = []
    for index in rng.choice(len(domains), cfg.batch_size_sequences, p=weights / weights.sum()):
        stream = streams[domains[index]]
        start = rng.integers(0, len(stream) - cfg.context_size + 1)
        rows.append(np.concatenate([[bos], stream[start : start + cfg.context_size - 1]]))
    return torch.from_numpy(np.stack(rows).astype(np.int64))


def build_model(cfg: PretrainConfig) -> GPTNeoXForCausalLM:
    """The model at its start."""
    torch.manual_seed(cfg.seed)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=cfg.d_model,
            num_hidden_layers=cfg.n_layers,
            num_attention_heads=cfg.n_heads,
            intermediate_size=4 * cfg.d_model,
            max_position_embeddings=cfg.context_size,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
            use_parallel_residual=True,
            tie_word_embeddings=False,
            bos_token_id=BOS,
            eos_token_id=BOS,
        )
    )


def build_optimizers(model: GPTNeoXForCausalLM, cfg: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    embeddings = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" in name]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [
        torch.optim.Muon(matrices, lr=cfg.muon_lr, weight_decay=cfg.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(
            [{"params": embeddings, "weight_decay": cfg.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=cfg.lr,
            betas=(0.9, 0.95),
        ),
    ]


class _Checkpoint:
    """Weights and optimizer state as one safetensors file, written whole or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(self, model: GPTNeoXForCausalLM, optimizers: list[torch.optim.Optimizer], step: int, seconds: float) -> None:
        tensors = {f"model.{name}": p.detach().clone() for name, p in model.named_parameters()}
        for number, optimizer in enumerate(optimizers):
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
        partial = self.path.with_suffix(".partial")
        save_file(tensors, partial, metadata={"step": str(step), "seconds": str(seconds)})
        partial.replace(self.path)

    def load(self, model: GPTNeoXForCausalLM, optimizers: list[torch.optim.Optimizer]) -> tuple[int, float]:
        with safe_open(self.path, framework="pt") as file:
            parameters = dict(model.named_parameters())
            states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
            for key in file.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                kind, _, rest = key.partition(".")
                if kind == "model":
                    parameters[rest].data.copy_(file.get_tensor(key))
                else:
                    number, index, name = rest.split(".")
                    states[int(number)].setdefault(int(index), {})[name] = file.get_tensor(key)
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
            return int(file.metadata()["step"]), float(file.metadata()["seconds"])


def pretrain(
    cfg: PretrainConfig,
    streams: dict[str, np.ndarray],
    out: Path,
    *,
    start: dict[str, torch.Tensor] | None = None,
    save_every_steps: int = 250,
) -> GPTNeoXForCausalLM:
    """Train to `cfg.steps`, continuing from `out/checkpoint.safetensors` if it is there; one log line every 50 steps.

    `start` are weights to begin with in place of random ones.
    """
    torch.set_float32_matmul_precision("high")
    model = build_model(cfg)
    if start is not None:
        model.load_state_dict(start)
    optimizers = build_optimizers(model, cfg)
    base_lrs = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = _Checkpoint(out / "checkpoint.safetensors")
    first_step, seconds_before = checkpoint.load(model, optimizers) if checkpoint.path.exists() else (0, 0.0)
    (out / "pretrain_config.json").write_text(json.dumps(asdict(cfg), indent=2))

    @torch.compile
    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        logits = model(tokens[:, :-1]).logits
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())

    started = time.monotonic()
    running: list[float] = []
    log_path = out / "log.jsonl"
    earlier = log_path.read_text().splitlines() if first_step else []
    with log_path.open("w") as log:
        log.writelines(f"{row}\n" for row in earlier if json.loads(row)["step"] <= first_step)
        for step in tqdm(range(first_step, cfg.steps), initial=first_step, total=cfg.steps, mininterval=10):
            tokens = draw_batch(streams, cfg, BOS, step)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = loss_of(tokens)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, lrs in zip(optimizers, base_lrs, strict=True):
                for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                    group["lr"] = lr * cfg.lr_factor(step)
                optimizer.step()
                optimizer.zero_grad()
            running.append(loss.item())
            done = step + 1
            seconds = seconds_before + time.monotonic() - started
            if done % 50 == 0 or done == cfg.steps:
                tokens_seen = done * cfg.batch_size_sequences * cfg.context_size
                row = {"step": done, "tokens": tokens_seen, "loss": sum(running) / len(running), "seconds": round(seconds, 1)}
                log.write(json.dumps(row) + "\n")
                log.flush()
                running.clear()
            if done % save_every_steps == 0 or done == cfg.steps:
                checkpoint.save(model, optimizers, done, seconds)
    return model
