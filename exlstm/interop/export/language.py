"""The graphs of a language model: one token, and a piece of a text of any length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exlstm.data.text.tokenizer import BOS, EOS, FILE, Tokenizer
from exlstm.interop.export.graph import BATCH, Axis, Graph, Port
from exlstm.interop.export.states import leaves, restored
from exlstm.models import LanguageModel
from exlstm.models.weight_files import read_json

TIME = Axis("time")
GENERATION = "generation_config.json"
"""What other people's models say of their tokens, besides a tokenizer of theirs."""


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


def language_facts(model: LanguageModel, files: Sequence[Path] = ()) -> dict[str, Any]:
    """What a consumer of the graphs needs to know besides; of tokens no more than files beside the model tell.

    Raises:
        ValueError: a generation_config.json is damaged.
    """
    words, named = model.config.vocabulary, {file.name: file for file in files}
    told = _by_tokenizer(named[FILE]) if FILE in named else {}
    if not told and GENERATION in named:
        told = _by_generation(named[GENERATION], words)
    return {"vocabulary": words} | told


def _by_tokenizer(file: Path) -> dict[str, Any]:
    """What a tokenizer of ours means: the next text's beginning ends one, too. Nothing if it is none of ours."""
    try:
        tokenizer = Tokenizer.load(file.parent)
    except (ValueError, RecursionError):  # of others, or the package that reads it is not installed
        return {}
    first = {"first_byte": EOS + 1} if tokenizer.kind == "bytes" else {}
    return {"begin": BOS, "end": [BOS, EOS]} | first


def _by_generation(file: Path, words: int) -> dict[str, Any]:
    values = read_json(file)
    values = values if isinstance(values, dict) else {}

    def tokens(name: str) -> list[int]:
        found = values.get(name)
        found = found if isinstance(found, list) else [found]
        return [token for token in found if type(token) is int and 0 <= token < words]

    begin, end = tokens("bos_token_id"), tokens("eos_token_id")
    return ({"begin": begin[0]} if begin else {}) | ({"end": end} if end else {})


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
