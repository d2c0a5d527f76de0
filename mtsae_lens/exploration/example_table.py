"""Write `examples.parquet`: one row per example, the strongest of each feature before the sampled ones, in row groups of whole features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mtsae_lens.data.packing import Spans
from mtsae_lens.exploration.columns import TokenTexts, make_lists, make_numbers, make_table
from mtsae_lens.exploration.example_lists import ExampleList
from mtsae_lens.exploration.survey import KINDS, Survey
from mtsae_lens.facts.records import Example, parquet_schema
from mtsae_lens.files import write_whole_file
from mtsae_lens.machine_paths import shorten_name
from mtsae_lens.progress import track

FEATURES_PER_GROUP = 64


@dataclass(frozen=True, eq=False)
class HeldContexts:
    """The contexts that hold examples, by number."""

    numbers: Int[Tensor, " context"]  # increasing
    tokens: Int[Tensor, "context pos"]
    spans: tuple[Spans, ...]

    @classmethod
    def from_survey(cls, survey: Survey) -> HeldContexts:
        """Return the contexts that a pass has kept.

        Args:
            survey: the finished pass.
        """
        held = sorted(survey.held.items())
        size = survey.lm.cutter.context_size
        tokens = torch.stack([tokens for _, (_, tokens) in held]) if held else torch.empty(0, size, dtype=torch.int32)
        spans = tuple(spans for _, (spans, _) in held)
        return cls(torch.tensor([number for number, _ in held], dtype=torch.long), tokens.long(), spans)

    def find(self, contexts: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        """Return the rows of contexts in `tokens`.

        Args:
            contexts: numbers of the contexts.
        """
        return torch.searchsorted(self.numbers, contexts)

    def documents_at(self, rows: Int[Tensor, " row"], positions: Int[Tensor, " row"]) -> list[str]:
        """Return the document of the token at each position.

        Args:
            rows: the row of each token's context.
            positions: the token's position in it.
        """
        places = zip(rows.tolist(), positions.tolist(), strict=True)
        return [shorten_name([name for name, begin in self.spans[row] if begin <= position][-1]) for row, position in places]


@dataclass(frozen=True, eq=False)
class ExampleRows:
    """Examples of some features, in the order of the table. `fields` are those of `ExampleList`."""

    feature: Int[Tensor, " row"]
    kind: Int[Tensor, " row"]
    rank: Int[Tensor, " row"]
    fields: dict[str, Tensor]


def collect_example_rows(survey: Survey, features: Int[Tensor, " feature"]) -> ExampleRows:
    """Collect examples, ordered by feature, then kind, then falling activation; empty slots are left out.

    Args:
        survey: the finished pass.
        features: the features whose examples are collected.
    """
    parts = [_listed(examples, kind, features, survey.plan.before) for kind, examples in enumerate(survey.lists.values())]
    fields = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = fields["place"].argsort(stable=True)
    fields = {name: tensor[order] for name, tensor in fields.items()}
    return ExampleRows(features[fields.pop("place")], fields.pop("kind"), fields.pop("rank"), fields)


def _listed(examples: ExampleList, kind: int, features: Int[Tensor, " feature"], before: int) -> dict[str, Tensor]:
    """Collect the examples of one list, feature by feature; `place` is the index of the feature in `features`."""
    order = examples.order(before, features)
    place, rank = (examples.key[features].gather(1, order) > -torch.inf).nonzero().unbind(dim=1)
    found = examples.at(features[place], order[place, rank])
    return {"place": place, "kind": torch.full_like(place, kind), "rank": rank} | found


def write_examples(
    path: Path,
    survey: Survey,
    texts: TokenTexts,
    attributions: Float[Tensor, "d_sae n_attributed window"],
    bias: Float[Tensor, " d_sae"],
) -> None:
    """Write the table, some features at a time.

    Args:
        path: the file to write.
        survey: the finished pass.
        texts: text of every token.
        attributions: attribution of the tokens of the strongest examples through the language model.
        bias: encoder biases; NaN if there are none.
    """
    held, d_sae = HeldContexts.from_survey(survey), survey.lm.sae.cfg.d_sae
    with write_whole_file(path) as partial, pq.ParquetWriter(partial, parquet_schema(Example), compression="zstd") as writer:
        for features in track(torch.arange(d_sae).split(FEATURES_PER_GROUP), "writing examples", "group"):
            rows = collect_example_rows(survey, features)
            writer.write_table(_table(rows, survey, held, texts, attributions, bias), row_group_size=1 << 30)


def make_example_table(
    survey: Survey, features: Int[Tensor, " feature"], texts: TokenTexts, bias: Float[Tensor, " d_sae"]
) -> pa.Table:
    """Make the table of some features, without attribution through the language model.

    Args:
        survey: the finished pass.
        features: the features whose examples are in the table.
        texts: text of every token.
        bias: encoder biases; NaN if there are none.
    """
    nothing = torch.empty(len(bias), 0, survey.plan.window)
    return _table(collect_example_rows(survey, features), survey, HeldContexts.from_survey(survey), texts, nothing, bias)


def _table(
    rows: ExampleRows, survey: Survey, held: HeldContexts, texts: TokenTexts, attributions: Tensor, bias: Tensor
) -> pa.Table:
    fields, before = rows.fields, survey.plan.before
    where = fields["position"].long().unsqueeze(1) + torch.arange(-before, survey.plan.after + 1)
    shown = (where >= 0) & (where < held.tokens.shape[1])
    context = held.find(fields["context"].long())
    tokens = held.tokens[context].gather(1, where.clamp(0, held.tokens.shape[1] - 1))
    attribution, attributed = _attribution_of(rows, attributions)
    everything = {name: torch.ones_like(fields[name], dtype=torch.bool) for name in ("scales", "offsets")}
    columns = {
        "feature": make_numbers(rows.feature, pa.int32()),
        "kind": pa.array(KINDS, pa.string()).take(pa.array(rows.kind.numpy())),
        "rank": make_numbers(rows.rank, pa.int32()),
        "corpus": make_numbers(fields["corpus"], pa.int32()),
        "document": pa.array(held.documents_at(context, fields["position"]), pa.string()),
        "position": make_numbers(fields["position"], pa.int32()),
        "tokens": texts.make_lists(tokens, shown),
        "activations": make_lists(fields["activations"], shown, pa.float32()),
        "peak": make_numbers(shown[:, :before].sum(dim=1), pa.int32()),
        "bias": make_numbers(bias[rows.feature], pa.float32()),
        "hidden_pre": make_numbers(fields["hidden_pre"], pa.float32()),
        "scale_contributions": make_lists(fields["scales"], everything["scales"], pa.float32()),
        "offset_contributions": make_lists(fields["offsets"], everything["offsets"], pa.float32()),
        "token_scale_contributions": make_lists(
            fields["token_scales"], shown.unsqueeze(-1).expand(fields["token_scales"].shape), pa.float32()
        ),
        "model_attribution": make_lists(attribution, shown & attributed.unsqueeze(1), pa.float32()),
    }
    return make_table(columns, Example)


def get_encoder_biases(sae: SAE[Any]) -> Float[Tensor, " d_sae"]:
    """Return `b_enc`, or NaN if the architecture has none.

    Args:
        sae: the SAE.
    """
    b_enc = getattr(sae, "b_enc", None)
    return torch.full((sae.cfg.d_sae,), torch.nan) if b_enc is None else b_enc.detach().float().cpu()


def _attribution_of(rows: ExampleRows, attributions: Tensor) -> tuple[Float[Tensor, "row window"], Bool[Tensor, " row"]]:
    n = attributions.shape[1]
    attributed = (rows.kind == 0) & (rows.rank < n)
    if not n:
        return torch.zeros(len(rows.feature), attributions.shape[2]), attributed
    return attributions[rows.feature, rows.rank.clamp(max=n - 1)], attributed
