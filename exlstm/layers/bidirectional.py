"""Reading a sequence in both directions."""

from typing import Any

from torch import Tensor, nn

from exlstm.layers.steps import reversed_reset


class Bidirectional(nn.Module):
    """The sum of one layer over the sequence and another over its reverse, each document by itself.

    `y, None = layer(x, mask=, reset=)`: the future is part of every output, so no state can be carried.
    """

    def __init__(self, forth: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.forth, self.back = forth, back

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = False,
    ) -> tuple[Tensor, None]:
        if state is not None:
            raise ValueError("a bidirectional layer carries no state: give it whole sequences and state=None")
        y, _ = self.forth(x, mask=mask, reset=reset, return_state=False)
        y_back, _ = self.back(
            x.flip(1),
            mask=None if mask is None else mask.flip(1),
            reset=None if reset is None else reversed_reset(reset),
            return_state=False,
        )
        return y + y_back.flip(1), None
