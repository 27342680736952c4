"""The state of a model as a flat list of tensors with names.

A state is nested tuples (`exlstm.layers.state`); a graph has a flat list of inputs. The path to a tensor is its name:
`state.0.cell.C` is the matrix memory of the first block, and `next.0.cell.C` what it is after the graph has run.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from exlstm.layers.state import map_state


def names(state: Any, path: str) -> list[str]:
    """The name of every tensor of a state, below `path`, in the order of `leaves`."""
    if isinstance(state, Tensor):
        return [path]
    parts = getattr(state, "_fields", range(len(state or ())))
    return [name for place, part in zip(parts, state or (), strict=True) for name in names(part, f"{path}.{place}")]


def leaves(state: Any) -> list[Tensor]:
    """The tensors of a state."""
    return [*_leaves(state)]


def restored(like: Any, tensors: Sequence[Tensor]) -> Any:
    """A state of the structure of `like`, made of these tensors; what `leaves` took apart."""
    remaining = iter(tensors)
    state = map_state(lambda _: next(remaining), like)
    assert next(remaining, None) is None, "more tensors than the state has"
    return state


def _leaves(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    else:
        for part in state or ():
            yield from _leaves(part)
