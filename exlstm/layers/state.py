"""States: what a recurrent layer carries from one piece of a sequence to the next."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from torch import Tensor

from exlstm.ops import HMLSTMState, MLSTMState

MemoryState = MLSTMState | HMLSTMState
Cell = TypeVar("Cell")
State = TypeVar("State")


class LayerState(NamedTuple, Generic[Cell]):
    """State of a layer with a causal convolution before its cell."""

    conv: Tensor | None  # [B, kernel - 1, channels], its last inputs; None in a layer without one
    cell: Cell


def check_state(state: State, kind: type) -> State:
    """Return `state`; raise ValueError if it is not one of `kind`."""
    if not isinstance(state, kind):
        raise ValueError(f"state must be the {kind.__name__} this layer returned, got {type(state).__name__}")
    return state


def map_state(function: Callable[[Tensor], Tensor], state: Any) -> Any:
    """`state` with `function` applied to each of its tensors.

    Any nesting of tuples, NamedTuples and None is kept, so it serves the state of a layer, a backbone or a
    model: `map_state(Tensor.detach, state)` for truncated backpropagation through time,
    `map_state(lambda s: s[rows], state)` to choose rows of the batch, the first axis of every state tensor.

    Raises:
        ValueError: the state contains something else.
    """
    if isinstance(state, Tensor):
        return function(state)
    if state is None:
        return None
    if isinstance(state, tuple):
        parts = [map_state(function, part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    raise ValueError(f"a state is made of tensors, tuples and None, got {type(state).__name__}")
