"""What a training hands on from step to step beside its weights."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Carry(Protocol):
    """Something of the loss function's own that later steps depend on, such as the memory a recurrent model goes on
    from: settled after every step, saved in every checkpoint, no part of the model."""

    def settle(self, healthy: bool) -> None:
        """A step is done; if not `healthy`, its loss or gradient was not finite and it changed no weight."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All of it, as it is between two steps."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Become what gave these `tensors`, which are on the CPU. Raises KeyError when one is missing."""
