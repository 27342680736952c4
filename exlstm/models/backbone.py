"""The stack of blocks every model stands on."""

from typing import Any, Literal

from torch import Tensor, nn

from exlstm.layers.block import AS_STYLED, Block, BlockOptions, Style
from exlstm.layers.norm import LayerNorm, RMSNorm
from exlstm.models.pattern import parse_pattern
from exlstm.ops.checks import check_float, check_shape, check_steps, check_time

BackboneState = tuple[Any, ...]
FinalNorm = Literal["plain", "biased", "none"]


class Backbone(nn.Module):
    """Residual blocks after a pattern, and a norm.

    `y, state = backbone(x, state, mask=, reset=)` with x, y [B, T, width]. The state, a tuple with one entry
    a block, continues the sequence: pieces of any size, single steps too, give what the whole gives.

    Args:
        pattern: the blocks, such as "mmmsh" or "(mmms)x6" (see `parse_pattern`).
        width: of inputs, outputs and the stream between the blocks.
        heads: heads of every block.
        style: "paper" (arXiv 2405.04517) or "large" (arXiv 2503.13427).
        dropout: probability, on what every block adds to the stream.
        levels: levels of hierarchical memories ("h").
        window: steps seen by attention ("a").
        bidirectional: every block mixes both directions; the state is then None, and none can be given.
        options: in what the blocks differ from those of the style; its `eps` is that of the norm after them too.
        final_norm: the norm after the blocks: "plain", "biased" or "none".
    """

    def __init__(
        self,
        pattern: str,
        width: int,
        heads: int = 4,
        *,
        style: Style = "paper",
        dropout: float = 0.0,
        levels: int = 12,
        window: int = 256,
        bidirectional: bool = False,
        options: BlockOptions = AS_STYLED,
        final_norm: FinalNorm = "plain",
    ) -> None:
        super().__init__()
        self.pattern, self.width, self.bidirectional = parse_pattern(pattern), width, bidirectional
        self.blocks = nn.ModuleList(
            Block(
                width,
                heads,
                kind=kind,
                style=style,
                dropout=dropout,
                levels=levels,
                window=window,
                bidirectional=bidirectional,
                index=index,
                depth=len(self.pattern),
                options=options,
            )
            for index, kind in enumerate(self.pattern)
        )
        if final_norm not in ("plain", "biased", "none"):
            raise ValueError(f"final_norm must be 'plain', 'biased' or 'none', got {final_norm!r}")
        norm, eps = (LayerNorm, 1e-5) if style == "paper" else (RMSNorm, 1e-6)
        self.norm: nn.Module = nn.Identity()
        if final_norm != "none":
            self.norm = norm(width, eps=options.eps or eps, bias=final_norm == "biased")

    def forward(
        self,
        x: Tensor,
        state: BackboneState | None = None,
        *,
        mask: Tensor | None = None,
        reset: Tensor | None = None,
        return_state: bool = True,
    ) -> tuple[Tensor, BackboneState | None]:
        """Run the blocks over a piece of a sequence.

        Args:
            x: float [B, T, width].
            state: what the call for the piece before returned; None at the beginning.
            mask: bool [B, T]; False steps count as absent and output 0, whatever x holds there.
            reset: bool [B, T]; a new document begins at a True step, masked or not.
            return_state: False where nothing goes on from the last step, as in most training: a hierarchical memory's
                state is larger than a sequence of a thousand steps.

        Returns:
            y [B, T, width] and the state after the last step (None if bidirectional, or not wanted).

        Raises:
            ValueError: shapes or dtypes do not fit, or the state is not one of this backbone.
        """
        check_shape("x", x, (None, None, self.width), "[B, T, width]")
        check_float(x=x)
        check_time(x.shape[1])
        check_steps("mask", mask, *x.shape[:2])
        check_steps("reset", reset, *x.shape[:2])
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        after = []
        for block, before in zip(self.blocks, self._states(state), strict=True):
            x, block_state = block(x, before, mask=mask, reset=reset, return_state=return_state)
            after.append(block_state)
        y = self.norm(x)
        if mask is not None:
            y = y.masked_fill(~mask[..., None], 0)
        return y, tuple(after) if return_state and not self.bidirectional else None

    def _states(self, state: BackboneState | None) -> BackboneState:
        if state is None:
            return (None,) * len(self.blocks)
        if self.bidirectional:
            raise ValueError("a bidirectional backbone carries no state: give it whole sequences and state=None")
        if not isinstance(state, tuple) or len(state) != len(self.blocks):
            size = f"{len(state)} entries" if isinstance(state, tuple) else type(state).__name__
            raise ValueError(f"state must be the tuple of {len(self.blocks)} this backbone returned, got {size}")
        return state
