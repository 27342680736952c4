"""Residual blocks, one for each letter of a pattern."""

from typing import Any, Literal

from torch import Tensor, nn

from exlstm.layers.attention import SlidingWindowAttention
from exlstm.layers.bidirectional import Bidirectional
from exlstm.layers.classic import Classic
from exlstm.layers.linear import round_up
from exlstm.layers.mlp import GatedMLP
from exlstm.layers.mlstm import MLSTM, MLSTMLarge
from exlstm.layers.norm import LayerNorm, RMSNorm
from exlstm.layers.slstm import SLSTM

Style = Literal["paper", "large"]


class Block(nn.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)): pre-norm residual block.

    In style "paper" (arXiv 2405.04517) the mLSTM blocks have no feed-forward part, for their memory already
    lies between an up- and a down-projection; sLSTM and attention have a GELU-gated one of 1.3 times the width,
    LSTM and GRU none. In
    style "large" (arXiv 2503.13427) all have a SwiGLU of 2.667 times the width, RMS norms, no convolutions.

    `x, state = block(x, state, mask=, reset=)` with x [B, T, width]. Masked steps change no other step and no
    state; their own outputs mean nothing.

    Args:
        width: of the residual stream.
        heads: heads of the mixer.
        kind: "m" mLSTM, "s" sLSTM, "h" hierarchical mLSTM, "a" sliding-window attention; "l" LSTM, "g" GRU.
        style: "paper" or "large".
        dropout: probability, on what is added to the stream.
        levels: levels of a hierarchical memory ("h").
        window: steps seen by attention ("a").
        bidirectional: mix forwards and backwards; no state then.
        index: which of the model's blocks this is.
        depth: how many blocks the model has.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        kind: str = "m",
        style: Style = "paper",
        dropout: float = 0.0,
        levels: int = 12,
        window: int = 256,
        bidirectional: bool = False,
        index: int = 0,
        depth: int = 1,
    ) -> None:
        super().__init__()
        if style not in ("paper", "large"):
            raise ValueError(f"style must be 'paper' or 'large', got {style!r}")
        if kind == "h" and levels < 1:
            raise ValueError(f"levels of a hierarchical memory must be at least 1, got {levels}")

        def mixer() -> nn.Module:
            match kind:
                case "m" | "h":
                    layer = MLSTM if style == "paper" else MLSTMLarge
                    return layer(width, heads, levels=levels if kind == "h" else 0, depth=depth)
                case "s":
                    if style == "paper":
                        return SLSTM(width, heads, index=index, depth=depth)
                    return SLSTM(width, heads, kernel=0, index=index, depth=depth, eps=1e-6)
                case "a":
                    return SlidingWindowAttention(width, heads, window=window, depth=depth, causal=not bidirectional)
                case "l" | "g":
                    return Classic(width, "lstm" if kind == "l" else "gru")
            raise ValueError(f"kind must be 'm', 's', 'h', 'a', 'l' or 'g', got {kind!r}")

        norm = LayerNorm if style == "paper" else RMSNorm
        self.mixer_norm = norm(width)
        # Attention sees both sides by itself.
        self.mixer = Bidirectional(mixer(), mixer()) if bidirectional and kind != "a" else mixer()
        self.mlp: GatedMLP | None = None
        if style == "large":
            self.mlp = GatedMLP(width, round_up(2.667 * width, 64), activation="silu", depth=depth)
        elif kind in ("s", "a"):
            self.mlp = GatedMLP(width, round_up(1.3 * width, 64), activation="gelu", depth=depth)
        self.mlp_norm = None if self.mlp is None else norm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, state: Any = None, *, mask: Tensor | None = None, reset: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.mixer_norm(x), state, mask=mask, reset=reset)
        x = x + self.dropout(y)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x, state
