"""Patterns: which blocks a backbone is made of, in one line."""

import re

MAX_BLOCKS = 4096
_TOKEN = re.compile(r"[mshalg]|\(|\)x([1-9][0-9]{0,3})")


def parse_pattern(pattern: str) -> str:
    """Write out a pattern: "(mmms)x2h" is "mmmsmmmsh"; groups may be nested.

    Letters: "m" mLSTM, "s" sLSTM, "h" hierarchical mLSTM, "a" sliding-window attention,
    "l" LSTM, "g" GRU.

    Raises:
        ValueError: the pattern is empty, has anything else in it, or stands for more than 4096 blocks.
    """
    groups, at = [""], 0
    while at < len(pattern):
        token = _TOKEN.match(pattern, at)
        if token is None:
            raise _error(pattern, f"{pattern[at]!r} at position {at} does not fit")
        if token[0] == "(":
            groups.append("")
        elif token[1] is None:
            groups[-1] += token[0]
        else:
            group, times = groups.pop(), int(token[1])
            if not groups or not group:
                raise _error(pattern, f"')' at position {at} closes nothing")
            if len(group) * times > MAX_BLOCKS:
                raise _error(pattern, f"it stands for more than {MAX_BLOCKS} blocks")
            groups[-1] += group * times
        at = token.end()
    if len(groups) > 1:
        raise _error(pattern, "a '(' is not closed")
    if not groups[0] or len(groups[0]) > MAX_BLOCKS:
        raise _error(pattern, f"it must stand for 1 to {MAX_BLOCKS} blocks, not {len(groups[0])}")
    return groups[0]


def _error(pattern: str, what: str) -> ValueError:
    return ValueError(f"pattern must be letters m, s, h, a, l, g and groups like (mmms)x6, got {pattern!r}: {what}")
