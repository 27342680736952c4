"""Other families of networks in the place of xLSTM, as large, so that a claim can be a comparison."""

from typing import Any, Literal

import torch

from exlstm.models.backbone import Backbone
from exlstm.models.pattern import parse_pattern

Arch = Literal["xlstm", "lstm", "gru", "transformer"]
_LETTERS = {"lstm": "l", "gru": "g", "transformer": "a"}


def pattern_of(arch: Arch, pattern: str, width: int, heads: int = 4, **options: Any) -> str:
    """The blocks of a backbone of another family with about as many weights as that of `pattern`.

    Args:
        arch: "xlstm" leaves the pattern as it is; "lstm", "gru" and "transformer" (blocks of attention) repeat their
            block as often as brings the number of weights nearest, at least once.
        pattern, width, heads, options: of the `Backbone`.
    """
    if arch == "xlstm":
        return pattern
    if arch not in _LETTERS:
        raise ValueError(f"expected arch 'xlstm', 'lstm', 'gru' or 'transformer', received {arch!r}")
    letter = _LETTERS[arch]

    def weights(blocks: str) -> int:
        with torch.device("meta"):
            return sum(p.numel() for p in Backbone(blocks, width, heads, **options).blocks.parameters())

    return letter * max(1, round(weights(parse_pattern(pattern)) / weights(letter)))
