"""What `generate` of transformers carries from token to token: the state of a model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor
from transformers.generation.utils import ALL_CACHE_NAMES

from exlstm.models.generation import Reader

CACHE = ALL_CACHE_NAMES[0]
"""What a cache is called among the outputs of a model: "cache", before transformers 5.24 "past_key_values"."""

_running: ContextVar[object | None] = ContextVar("running", default=None)


@contextmanager
def generating() -> Iterator[None]:
    """Weights do not change in here, so that what was compiled from them may be used."""
    token = _running.set(object())
    try:
        yield
    finally:
        _running.reset(token)


def is_generating() -> bool:
    return _running.get() is not None


class ExlstmCache:
    """The state of a model after the tokens it has read, of any size, for every row of a batch.

    In place of the cache of keys and values that attention has: `model.generate(..., cache=ExlstmCache())` fills it,
    and a later call with all tokens so far goes on from it. It cannot be cropped.
    """

    is_compileable = False
    is_croppable = False
    is_linear = (False,)  # as with keys and values, `generate` gives only those tokens that were not read yet

    def __init__(self) -> None:
        self._state: Any = None
        self._reader: Reader | None = None
        self._run: object | None = None
        self._length = 0

    @property
    def state(self) -> Any:
        """The state as our models return it; None at the beginning."""
        return self._state if self._reader is None else self._reader.steps.state()

    @property
    def reader(self) -> Reader | None:
        """What holds the state in the running `generate`, if anything does."""
        return self._reader if self._run is _running.get() else None

    def set(self, state: Any, tokens: int) -> None:
        """Take the state after `tokens` more."""
        self._state, self._reader, self._run = state, None, None
        self._length += tokens

    def read_by(self, reader: Reader, tokens: int) -> None:
        """Leave the state with a reader, which has read `tokens` more, as long as this `generate` runs."""
        self._state, self._reader, self._run = None, reader, _running.get()
        self._length += tokens

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """How many tokens of each row were read, padding included."""
        return self._length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Give row b the state of row `beam_idx[b]`."""
        rows = beam_idx.long()
        if self._reader is not None:
            self._reader.steps.select(rows)
        else:
            self._state = map_tensors(lambda part: part[rows.to(part.device)], self._state)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, the copies side by side."""
        self.set(map_tensors(lambda part: part.repeat_interleave(repeats, 0), self.state), 0)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`."""
        self.set(map_tensors(lambda part: part[indices], self.state), 0)

    def crop(self, max_length: int) -> None:
        """Refused: a state does not tell its tokens apart."""
        raise ValueError("an ExlstmCache holds a state, from which tokens cannot be taken back; begin with a new one")


def given_cache(cache: Any, past_key_values: Any) -> ExlstmCache | None:
    """The cache that a model was given under either name."""
    cache = past_key_values if cache is None else cache
    if cache is not None and not isinstance(cache, ExlstmCache):
        raise ValueError(
            f"expected an ExlstmCache as cache, received {type(cache).__name__}; leave it out to begin anew"
        )
    return cache


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A nesting of tuples with `function` applied to its tensors; all else is left as it is."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value
