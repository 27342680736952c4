"""The mLSTM layer with hierarchical memories."""

from typing import Any

from exlstm.layers.mlstm import MLSTM


class HMLSTM(MLSTM):
    """`MLSTM` with hierarchical memories: recent steps are recalled finely, distant ones in larger blocks.

    Every step and head weighs its levels by a linear map of the input, 0 at first: it begins as an `MLSTM`.

    Args:
        width: of inputs and outputs.
        heads: memories side by side.
        levels: levels told apart; the last serves all older steps, so 12 tell apart the last 2,048 steps.
        options: as in `MLSTM`.
    """

    def __init__(self, width: int, heads: int, *, levels: int = 12, **options: Any) -> None:
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}; for a flat memory use MLSTM")
        super().__init__(width, heads, levels=levels, **options)
