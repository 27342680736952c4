"""The graph of a classifier: sequences to log-probabilities. It reads both ways, so there is no state."""

from typing import Any

import torch
from torch import Tensor, nn

from exlstm.data.text.bags import Bags
from exlstm.interop.export.graph import BATCH, Axis, Graph, Port
from exlstm.models import Classifier

TIME, RUNS = Axis("time"), Axis("runs")


def classifier_graphs(model: Classifier) -> list[Graph]:
    """The graph `classify`: x [B, T] or [B, T, features] and where it is present to scores [B, classes]."""
    c = model.config
    x = Port("tokens", (BATCH, TIME), torch.int64) if c.features is None else Port("x", (BATCH, TIME, c.features))
    bags = (Port("buckets", (BATCH, RUNS), torch.int64), Port("counts", (BATCH, RUNS))) if c.buckets else ()
    return [
        Graph(
            name="classify",
            about="Whole sequences: logarithms of the classes' probabilities.",
            module=_Classify(model),
            given=(x, Port("mask", (BATCH, TIME), torch.bool), *bags),
            made=(Port("scores", (BATCH, len(c.labels))),),
        )
    ]


def classifier_facts(model: Classifier) -> dict[str, Any]:
    """What a consumer of the graph needs to know besides."""
    c = model.config
    return {"labels": c.labels, "vocabulary": c.vocabulary, "buckets": c.buckets, "grams": c.grams}


class _Classify(nn.Module):
    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        x, mask, *bags = inputs
        return (self.model(x, mask, bags=Bags(*bags) if bags else None),)
