"""Residual blocks, one for each letter of a pattern."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor, nn

from exlstm.layers.attention import SlidingWindowAttention
from exlstm.layers.bidirectional import Bidirectional
from exlstm.layers.classic import Classic
from exlstm.layers.linear import round_up
from exlstm.layers.mlp import Activation, GatedMLP
from exlstm.layers.mlstm import MLSTM, MLSTMLarge
from exlstm.layers.norm import LayerNorm, RMSNorm
from exlstm.layers.slstm import SLSTM

Style = Literal["paper", "large"]
ADDED = {"added": True}
"""Metadata of a config's field that files written by earlier versions lack; its default is what they meant."""


@dataclass(frozen=True)
class BlockOptions:
    """In what a model's blocks differ from those of their style; published weights need some of it."""

    bias: bool = False
    """The linear maps of mLSTM layers have biases."""
    mlp_bias: bool = False
    """The linear maps of feed-forward parts have biases."""
    norm_bias: bool = False
    """The norms have biases, those of the reads of mLSTM layers included."""
    eps: float | None = None
    """Of all norms; None: 1e-5 in style "paper", 1e-6 in "large"."""
    hidden: int | None = None
    """Channels of the feed-forward parts, 0 for none; None: as the style has them."""
    activation: Activation | None = None
    """Of the feed-forward parts; None: "gelu" in style "paper", "silu" in "large"."""
    slstm_heads: int | None = None
    """Heads of sLSTM layers; None: as many as the others have."""
    slstm_kernel: int | None = None
    """Steps that the convolution of sLSTM layers spans, 0 for none; None: 4 in style "paper", 0 in "large"."""
    slstm_dense: bool = field(default=False, metadata=ADDED)
    """The gates of sLSTM layers see all channels; else those of their head."""
    slstm_hidden: int | None = field(default=None, metadata=ADDED)
    """Channels of the feed-forward parts behind sLSTM layers, 0 for none; None: as of all others."""
    slstm_eps: float | None = None
    """Of the norms of sLSTM layers; None: as of all norms."""
    forget_cap: float | None = None
    """Bound of the forget gates' pre-activations of sLSTM layers from above; None: there is none."""
    kernel: int | None = None
    """Steps that the convolution of mLSTM layers spans, in style "paper"; None: 4."""
    inner: int | None = None
    """Inner width of mLSTM layers, in style "paper"; None: twice the width, rounded up."""
    qkv_block: int | None = None
    """Channels that the maps to queries, keys and values mix, in style "paper"; None: 4."""
    keys: int | None = None
    """Width of the queries and keys of mLSTM layers, in style "large"; None: half the width, rounded up."""
    values: int | None = None
    """Width of their values, in style "large"; None: the width."""
    gate_soft_cap: float | None = None
    """Bound of their gate pre-activations, in style "large"; None: 15."""

    def __post_init__(self) -> None:
        least = {"hidden": 0, "slstm_kernel": 0, "slstm_hidden": 0}
        for each in fields(self):
            value = getattr(self, each.name)
            if type(value) is int and value < least.get(each.name, 1):
                raise ValueError(f"expected {each.name} of at least {least.get(each.name, 1)}, received {value}")
            if type(value) is float and not value > 0:
                raise ValueError(f"expected {each.name} above 0, received {value}")
        if self.activation not in (None, "silu", "gelu"):
            raise ValueError(f"expected activation 'silu', 'gelu' or None, received {self.activation!r}")

    def of_mlstm(self, style: Style) -> dict[str, Any]:
        """The arguments of the mLSTM layer of a style.

        Raises:
            ValueError: an option is set that only the other style has.
        """
        for name in _MLSTM_ARGUMENTS["large" if style == "paper" else "paper"]:
            if getattr(self, name) is not None:
                raise ValueError(f"blocks of style {style!r} have no {name}; expected None, got {getattr(self, name)}")
        own = {argument: getattr(self, name) for name, argument in _MLSTM_ARGUMENTS[style].items()}
        arguments = {"bias": self.bias, "norm_bias": self.norm_bias, "eps": self.eps} | own
        return {name: value for name, value in arguments.items() if value is not None}


AS_STYLED = BlockOptions()
_MLSTM_ARGUMENTS = {
    "paper": {"inner": "inner", "kernel": "kernel", "qkv_block": "block"},
    "large": {"keys": "keys", "values": "values", "gate_soft_cap": "soft_cap"},
}
"""Option and argument of what only the mLSTM layer of one style has."""


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
        options: in what it differs from the style's.
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
        options: BlockOptions = AS_STYLED,
    ) -> None:
        super().__init__()
        if style not in ("paper", "large"):
            raise ValueError(f"style must be 'paper' or 'large', got {style!r}")
        if kind == "h" and levels < 1:
            raise ValueError(f"levels of a hierarchical memory must be at least 1, got {levels}")

        paper, mlstm_options = style == "paper", options.of_mlstm(style)
        eps = options.eps or (1e-5 if paper else 1e-6)

        def mixer() -> nn.Module:
            match kind:
                case "m" | "h":
                    layer = MLSTM if paper else MLSTMLarge
                    return layer(width, heads, levels=levels if kind == "h" else 0, depth=depth, **mlstm_options)
                case "s":
                    kernel = (4 if paper else 0) if options.slstm_kernel is None else options.slstm_kernel
                    groups = options.slstm_heads or heads
                    return SLSTM(
                        width,
                        groups,
                        kernel=kernel,
                        dense=options.slstm_dense,
                        forget_cap=options.forget_cap,
                        index=index,
                        depth=depth,
                        eps=options.slstm_eps or eps,
                    )
                case "a":
                    return SlidingWindowAttention(width, heads, window=window, depth=depth, causal=not bidirectional)
                case "l" | "g":
                    return Classic(width, "lstm" if kind == "l" else "gru")
            raise ValueError(f"kind must be 'm', 's', 'h', 'a', 'l' or 'g', got {kind!r}")

        norm = LayerNorm if paper else RMSNorm
        self.mixer_norm = norm(width, eps=eps, bias=options.norm_bias)
        # Attention sees both sides by itself.
        self.mixer = Bidirectional(mixer(), mixer()) if bidirectional and kind != "a" else mixer()
        self.mlp: GatedMLP | None = None
        hidden = options.slstm_hidden if kind == "s" and options.slstm_hidden is not None else options.hidden
        if hidden is None:
            hidden = round_up((1.3 if paper else 2.667) * width, 64)
        if hidden and (not paper or kind in ("s", "a")):
            activation = options.activation or ("gelu" if paper else "silu")
            self.mlp = GatedMLP(width, hidden, activation=activation, bias=options.mlp_bias, depth=depth)
        self.mlp_norm = None if self.mlp is None else norm(width, eps=eps, bias=options.norm_bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.mixer_norm(x), state, mask=mask, reset=reset, return_state=return_state)
        x = x + self.dropout(y)
        if self.mlp is not None and self.mlp_norm is not None:
            x = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return x, state
