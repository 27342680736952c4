"""The language models that are trained and decoded: ours, and what is the same for all."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.work import Work
from exlstm.layers.block import Style

if TYPE_CHECKING:  # models need packages that operators do not
    from exlstm.models import LanguageModel

WIDTH, BLOCKS, HEADS, VOCABULARY = 256, 6, 4, 2048
DECODED = 16  # tokens in one call
PIECE = 1024  # tokens read at once before decoding


def language_model(pattern: str, style: Style) -> "LanguageModel":
    """Ours."""
    from exlstm.models import LanguageModel

    return LanguageModel(vocabulary=VOCABULARY, pattern=pattern, width=WIDTH, heads=HEADS, style=style)


def parameters(model: nn.Module) -> int:
    """How many numbers a model learns."""
    return sum(p.numel() for p in model.parameters())


def training_work(
    model: nn.Module, logits: Callable[[Tensor], Tensor], *, batch: int, time: int, precision: str
) -> Work:
    """One step of AdamW on random tokens; `logits` maps int64 [B, T] to [B, T, VOCABULARY]."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def step() -> None:
        tokens = torch.randint(VOCABULARY, (batch, time + 1))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            predicted = logits(tokens[:, :-1])
        cross_entropy(predicted.flatten(0, 1).float(), tokens[:, 1:].flatten()).backward()
        optimizer.step()

    return Work(step, {"parameters": parameters(model)})


def decoding_work(
    model: nn.Module, run: Callable[[Tensor, Any], tuple[Tensor, Any]], *, position: int, piece: int = PIECE
) -> Work:
    """Steps of one token at B=1 from `position` on; `run` maps tokens [1, T] and a state to logits and the next state.

    The first `position` tokens are read in pieces.
    """
    model.eval()
    state: Any = None
    with torch.no_grad():
        for begin in range(0, position, piece):
            _, state = run(torch.randint(VOCABULARY, (1, min(piece, position - begin))), state)
    tokens = torch.randint(VOCABULARY, (DECODED, 1, 1))

    @torch.no_grad()
    def decode() -> None:
        after = copy_state(state)  # some models write into the state they are given
        for token in tokens:
            _, after = run(token, after)

    return Work(decode, {"parameters": parameters(model), "state_bytes": state_bytes(state)}, DECODED)


def copy_state(state: Any) -> Any:
    """A copy of nested dicts and tuples of tensors."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copy_state(part) for key, part in state.items()}
    if isinstance(state, tuple | list):
        parts = [copy_state(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def state_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dicts and tuples."""
    if isinstance(state, Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, tuple | list) else ()
    return sum(map(state_bytes, parts))
