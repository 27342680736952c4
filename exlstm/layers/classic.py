"""The classic recurrent layers, LSTM and GRU, with the masks, resets and states of the others: what xLSTM is
compared with."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exlstm.layers.state import check_state
from exlstm.ops.checks import check_shape

Cell = Literal["lstm", "gru"]


class ClassicState(NamedTuple):
    """The state of an LSTM or a GRU, each [B, width]."""

    h: Tensor
    c: Tensor | None  # None in a GRU


class Classic(nn.Module):
    """torch's LSTM or GRU, one layer: `y, state = layer(x, state, mask=, reset=)` with x, y [B, T, width].

    Masked steps count as absent and output 0; a reset empties the state before its step.

    Args:
        width: of inputs and outputs.
        cell: "lstm" or "gru".
    """

    def __init__(self, width: int, cell: Cell = "lstm") -> None:
        super().__init__()
        if cell not in ("lstm", "gru"):
            raise ValueError(f"cell must be 'lstm' or 'gru', got {cell!r}")
        self.rnn: nn.LSTM | nn.GRU = (nn.LSTM if cell == "lstm" else nn.GRU)(width, width, batch_first=True)

    def forward(
        self,
        x: Tensor,
        state: ClassicState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, ClassicState | None]:
        batch, width = x.shape[0], x.shape[2]
        if state is None:
            nothing = x.new_zeros(batch, width)
            state = ClassicState(nothing, nothing if isinstance(self.rnn, nn.LSTM) else None)
        else:
            check_state(state, ClassicState)
            check_shape("state.h", state.h, (batch, width), "[B, width]")
        if mask is None and reset is None:
            y, final = self.rnn(x, self._as_torch(state))
            return y, self._as_state(final) if return_state else None
        y, after = self._documents(x, state, mask, reset)
        return y, after if return_state else None

    def _documents(
        self, x: Tensor, state: ClassicState, mask: Tensor | None, reset: Tensor | None
    ) -> tuple[Tensor, ClassicState]:
        """Every document as a sequence of its own, made of its present steps."""
        batch, time, width = x.shape
        present = torch.ones(batch, time, dtype=torch.bool, device=x.device) if mask is None else mask
        document = torch.zeros_like(present, dtype=torch.int64) if reset is None else reset.cumsum(1)
        steps = present.flatten().nonzero()[:, 0]
        row, number = steps // time, document.flatten()[steps]
        emptied = document[:, -1] > 0
        if len(steps) == 0:
            return torch.zeros_like(x), _emptied(state, emptied)
        key, sequence, lengths = torch.unique_consecutive(
            torch.stack([row, number], 1), dim=0, return_inverse=True, return_counts=True
        )
        begins = lengths.cumsum(0) - lengths
        place = torch.arange(len(steps), device=x.device) - begins[sequence]
        padded = x.new_zeros(len(lengths), int(lengths.max()), width)
        padded = padded.index_put((sequence, place), x.flatten(0, 1)[steps])
        continues = (key[:, 1] == 0)[:, None]
        before = ClassicState(
            state.h[key[:, 0]].where(continues, 0), None if state.c is None else state.c[key[:, 0]].where(continues, 0)
        )
        rows, final = self._sequences(padded, lengths, before)
        y = x.new_zeros(batch * time, width).to(rows.dtype).index_put((steps,), rows[sequence, place])

        # The state of a row is that of its last document: computed here, as it came, or empty.
        of_last = (key[:, 1] == document[key[:, 0], -1]).nonzero()[:, 0]
        old, new, rows_of = _emptied(state, emptied), final, key[of_last, 0]

        def after(before: Tensor, computed: Tensor) -> Tensor:
            return before.index_put((rows_of,), computed[of_last].to(before.dtype))

        c = None if old.c is None or new.c is None else after(old.c, new.c)
        return y.unflatten(0, (batch, time)), ClassicState(after(old.h, new.h), c)

    def _sequences(self, x: Tensor, lengths: Tensor, state: ClassicState) -> tuple[Tensor, ClassicState]:
        """Outputs [N, T, width] of the first steps of `x` [N, T, width], `lengths` [N] of them, and the states after.

        From the end of one sequence to that of the next, all that are still going on run together. torch does the same
        for a `PackedSequence`, but step by step, and on a CPU several times slower.
        """
        order = lengths.argsort(descending=True, stable=True)
        x, state = x[order], _rows(state, order)
        ends, count = lengths.unique(return_counts=True)  # ascending
        going, begin = len(x), 0
        outputs, finals = [], []
        for end, ending in zip(ends.tolist(), count.tolist(), strict=True):
            y, after = self.rnn(x[:going, begin:end], self._as_torch(state))
            outputs.append(F.pad(y, (0, 0, 0, 0, 0, len(x) - going)))
            after, going, begin = self._as_state(after), going - ending, end
            finals.append(_rows(after, slice(going, None)))
            state = _rows(after, slice(going))
        back = order.argsort()
        finals.reverse()  # the longest first, as in `order`
        c = None if state.c is None else torch.cat([part.c for part in finals if part.c is not None])
        final = ClassicState(torch.cat([part.h for part in finals]), c)
        return torch.cat(outputs, 1)[back], _rows(final, back)

    def _as_torch(self, state: ClassicState) -> Tensor | tuple[Tensor, Tensor]:
        return state.h[None] if state.c is None else (state.h[None], state.c[None])

    @staticmethod
    def _as_state(final: Tensor | tuple[Tensor, Tensor]) -> ClassicState:
        return ClassicState(final[0], None) if isinstance(final, Tensor) else ClassicState(final[0][0], final[1][0])


def _rows(state: ClassicState, which: Tensor | slice) -> ClassicState:
    return ClassicState(state.h[which], None if state.c is None else state.c[which])


def _emptied(state: ClassicState, rows: Tensor) -> ClassicState:
    """The state with nothing in the rows where `rows` [B] is True."""
    h, c = state
    return ClassicState(h.masked_fill(rows[:, None], 0), None if c is None else c.masked_fill(rows[:, None], 0))
