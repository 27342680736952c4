"""Forecasts as tables of utilsforecast, which neuralforecast and statsforecast share; it need not be installed."""

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def to_utilsforecast(table: "pd.DataFrame", model: str = "exlstm") -> "pd.DataFrame":
    """A table of `predict` or `cross_validation` with intervals in place of quantiles.

    `q0.5` becomes the column `model`, and each pair of quantiles around it an interval: `q0.1` and `q0.9` are
    `{model}-lo-80` and `{model}-hi-80`. The other columns stay as they are, so that
    `utilsforecast.evaluation.evaluate(table, metrics, level=[80])` takes the result.

    Raises:
        ValueError: the median or one quantile of a pair is missing.
    """
    names = [str(name) for name in table.columns]
    quantiles = {float(name[1:]): name for name in names if re.fullmatch(r"q0?\.\d+", name)}
    if not quantiles:
        raise ValueError(f"expected a table with quantiles such as q0.5, received the columns {', '.join(names)}")
    columns = {}
    for level, name in quantiles.items():
        opposite = next((other for other in quantiles if abs(level + other - 1) < 1e-9), None)
        if opposite is None:
            raise ValueError(f"quantile {level:g} has no {1 - level:g} beside it to make an interval; ask for both")
        side = "lo" if level < 0.5 else "hi"
        columns[name] = model if level == opposite else f"{model}-{side}-{round(100 * abs(level - opposite), 6):g}"
    if model not in columns.values():
        raise ValueError("expected the quantile 0.5 among the others, as the forecast itself; ask for it too")
    ordered = sorted(columns, key=lambda name: (columns[name] != model, float(name[1:])))
    others = [name for name in names if name not in columns]
    return table[others + ordered].rename(columns=columns)
