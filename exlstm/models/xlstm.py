"""A drop-in for torch.nn.LSTM."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from exlstm.layers.block import Style
from exlstm.layers.state import map_state
from exlstm.models.backbone import Backbone

XLSTMState = tuple[Any, ...]


class XLSTM(nn.Module):
    """Extended LSTM with the arguments, inputs and outputs of `torch.nn.LSTM`.

    `output, state = xlstm(input, state)` takes and gives [T, B, size], [B, T, size] with `batch_first`,
    [T, size] without a batch, or a PackedSequence. Every layer and direction is a linear map to `hidden_size`
    and a `Backbone`.

    Where it differs from `torch.nn.LSTM`: the state is not (h, c) but a tuple with one backbone state for
    every layer and direction, in the same order (layer 0 forward, layer 0 backward, ...), without a batch
    axis if the input has none. Given back it continues the sequence; `exlstm.layers.map_state` detaches it.

    Args:
        input_size: channels of the input.
        hidden_size: channels of the output, for each direction.
        num_layers: layers on top of each other.
        bias: whether the linear maps have one.
        batch_first: whether the batch comes before time.
        dropout: probability, on the output of every layer but the last.
        bidirectional: also read backwards; outputs are concatenated, forward first.
        proj_size: only 0: there is no separate projection of h.
        device: of the parameters.
        dtype: of the parameters.
        pattern: blocks of one layer (see `exlstm.models.parse_pattern`).
        heads: heads of every block; None takes 4, or as many of them as divide `hidden_size`.
        style: "paper" or "large", as in `Backbone`.
        levels: levels of hierarchical memories ("h").
        window: steps seen by attention ("a").

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        pattern: str = "m",
        heads: int | None = None,
        style: Style = "paper",
        levels: int = 12,
        window: int = 256,
    ) -> None:
        super().__init__()
        if input_size < 1 or hidden_size < 1 or num_layers < 1:
            raise ValueError(
                "input_size, hidden_size and num_layers must be at least 1, "
                f"got {input_size}, {hidden_size} and {num_layers}"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability between 0 and 1, got {dropout}")
        if proj_size:
            raise ValueError(
                f"proj_size is not supported, got {proj_size}; set hidden_size to the output size you want"
            )
        if dropout and num_layers == 1:
            warnings.warn("dropout acts between layers: with num_layers=1 it does nothing", stacklevel=2)
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, float(dropout)
        self.bidirectional, self.proj_size = bidirectional, proj_size
        directions = 2 if bidirectional else 1
        sizes = [input_size] * directions + [directions * hidden_size] * (directions * (num_layers - 1))
        self.inputs = nn.ModuleList(nn.Linear(size, hidden_size, bias=bias) for size in sizes)
        self.backbones = nn.ModuleList(
            Backbone(
                pattern,
                hidden_size,
                heads if heads is not None else math.gcd(hidden_size, 4),
                style=style,
                levels=levels,
                window=window,
            )
            for _ in sizes
        )
        self.to(device=device, dtype=dtype)

    def forward(
        self, input: Tensor | PackedSequence, hx: XLSTMState | None = None
    ) -> tuple[Tensor | PackedSequence, XLSTMState]:
        """Read a sequence or a piece of one.

        Args:
            input: [T, B, input_size], or as the class describes.
            hx: the state the piece before returned; None at the beginning.

        Returns:
            The output in the form of the input, `hidden_size` channels for each direction, and the state.

        Raises:
            ValueError: the input or the state does not fit.
        """
        if isinstance(input, PackedSequence):
            return self._packed(input, hx)
        if input.dim() not in (2, 3):
            raise ValueError(f"input must be [T, B, size] or, without a batch, [T, size], got {tuple(input.shape)}")
        if input.dim() == 2:
            hx = map_state(lambda s: s.unsqueeze(0), hx)
            y, state = self._layers(input.unsqueeze(0), hx, None)
            return y.squeeze(0), map_state(lambda s: s.squeeze(0), state)
        y, state = self._layers(input if self.batch_first else input.transpose(0, 1), hx, None)
        return (y if self.batch_first else y.transpose(0, 1)), state

    def flatten_parameters(self) -> None:
        """Do nothing: there is no weight buffer to flatten. For code written for `torch.nn.LSTM`."""

    def extra_repr(self) -> str:
        options = {
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0.0,
            "bidirectional": False,
        }
        changed = [f"{name}={getattr(self, name)}" for name, usual in options.items() if getattr(self, name) != usual]
        return ", ".join([str(self.input_size), str(self.hidden_size), *changed])

    def _packed(self, packed: PackedSequence, hx: XLSTMState | None) -> tuple[PackedSequence, XLSTMState]:
        x, lengths = pad_packed_sequence(packed, batch_first=True)
        mask = torch.arange(x.shape[1]) < lengths[:, None]
        y, state = self._layers(x, hx, None if mask.all() else mask.to(x.device))
        if packed.sorted_indices is not None:
            y, lengths = y[packed.sorted_indices], lengths[packed.sorted_indices.to(lengths.device)]
        data = pack_padded_sequence(y, lengths, batch_first=True).data
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices), state

    def _layers(self, x: Tensor, hx: XLSTMState | None, mask: Tensor | None) -> tuple[Tensor, XLSTMState]:
        """All layers on x [B, T, input_size], right-padded where mask [B, T] is False."""
        if x.shape[-1] != self.input_size:
            raise ValueError(f"input must have {self.input_size} channels (input_size), got {x.shape[-1]}")
        states = (None,) * len(self.backbones) if hx is None else hx
        if not isinstance(states, tuple) or len(states) != len(self.backbones):
            raise ValueError(
                f"hx must be the state an XLSTM like this returned, a tuple of {len(self.backbones)} "
                f"(torch.nn.LSTM's (h_0, c_0) does not fit), got {type(states).__name__}"
            )
        after = []
        directions = 2 if self.bidirectional else 1
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(directions):
                at = layer * directions + direction
                y, state = self._direction(at, x, states[at], mask, backwards=direction == 1)
                outputs.append(y)
                after.append(state)
            x = torch.cat(outputs, -1)
            if layer < self.num_layers - 1:
                x = nn.functional.dropout(x, self.dropout, self.training)
        return x, tuple(after)

    def _direction(self, at: int, x: Tensor, state: Any, mask: Tensor | None, *, backwards: bool) -> tuple[Tensor, Any]:
        x = self.inputs[at](x)
        if not backwards:
            return self.backbones[at](x, state, mask=mask)
        y, state = self.backbones[at](x.flip(1), state, mask=None if mask is None else mask.flip(1))
        return y.flip(1), state
