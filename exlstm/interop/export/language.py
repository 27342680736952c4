"""The graphs of a language model: one token, and a piece of a text of any length."""

from typing import Any

import torch
from torch import Tensor, nn

from exlstm.interop.export.graph import BATCH, Axis, Graph, Port
from exlstm.interop.export.states import leaves, restored
from exlstm.models import LanguageModel

TIME = Axis("time")


def language_graphs(model: LanguageModel) -> list[Graph]:
    """The graphs `step`: tokens [B] to logits [B, V]; and `chunk`: tokens [B, T] to logits [B, T, V]."""
    words = model.config.vocabulary
    with torch.no_grad():
        _, state = model(torch.zeros(1, 1, dtype=torch.int64))
    return [
        Graph(
            name="step",
            about="One token: its logits tell how likely each token is to come next.",
            module=_Continue(model, state, single=True),
            given=(Port("tokens", (BATCH,), torch.int64),),
            made=(Port("logits", (BATCH, words)),),
            state=state,
        ),
        Graph(
            name="chunk",
            about="The next tokens of a text, any number of them; work grows with the square of the number.",
            module=_Continue(model, state, single=False),
            given=(Port("tokens", (BATCH, TIME), torch.int64),),
            made=(Port("logits", (BATCH, TIME, words)),),
            state=state,
        ),
    ]


def language_facts(model: LanguageModel) -> dict[str, Any]:
    """What a consumer of the graphs needs to know besides."""
    from exlstm.data.text import BOS, EOS

    return {"vocabulary": model.config.vocabulary, "begin": BOS, "end": [BOS, EOS], "first_byte": EOS + 1}


class _Continue(nn.Module):
    """tokens and state to logits and state."""

    def __init__(self, model: LanguageModel, like: Any, *, single: bool) -> None:
        super().__init__()
        self.model, self.like, self.single = model, like, single

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        tokens, *before = inputs
        state = restored(self.like, before)
        logits, state = self.model(tokens[:, None] if self.single else tokens, state)
        return (logits[:, 0] if self.single else logits, *leaves(state))
