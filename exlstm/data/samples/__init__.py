"""Small real data sets that travel with the package; README.md beside them names sources and licences."""

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    import pandas as pd

SAMPLES = ("electricity",)
TEXTS = ("northanger_abbey",)


def sample(name: str) -> "pd.DataFrame":
    """One shipped data set as a table `unique_id, ds, y`.

    `"electricity"`: half-hourly demand in England and Wales, 5 June to 27 August 2000, in megawatts, 4,032
    rows, local time without a zone (Taylor, 2003, Journal of the Operational Research Society 54, 799-805).

    Raises ValueError for a name that is not shipped.
    """
    import pandas as pd

    if name not in SAMPLES:
        raise ValueError(f"expected one of the samples {', '.join(SAMPLES)}, received {name!r}")
    with resources.as_file(resources.files(__name__) / f"{name}.csv.gz") as path:
        return pd.read_csv(path, parse_dates=["ds"], dtype={"unique_id": "str", "y": "float64"})


def text_sample(name: str) -> "Traversable":
    """One shipped text, a gzipped text file.

    `"northanger_abbey"`: the novel by Jane Austen (1817), 432,978 characters, in the public domain.

    Raises ValueError for a name that is not shipped.
    """
    if name not in TEXTS:
        raise ValueError(f"expected one of the texts {', '.join(TEXTS)}, received {name!r}")
    return resources.files(__name__) / f"{name}.txt.gz"
