"""What the reports of all tasks say about a run: its options, and where and when it was made."""

from collections.abc import Mapping
from typing import Any

from exlstm.tasks.runs import Run
from exlstm.train.progress import format_seconds

_NOT_SHOWN = ("data_digest",)


def configuration(run: Run) -> dict[str, str]:
    """The options of a run."""
    return flat({name: value for name, value in run.options.items() if name not in _NOT_SHOWN})


def flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested options as lines of a name and a text; what is not given is left out."""
    facts: dict[str, str] = {}
    for name, value in options.items():
        if isinstance(value, Mapping):
            facts |= flat(value, f"{prefix}{name}.")
        elif value not in (None, [], "") and value is not False:
            facts[prefix + name.replace("_", " ")] = _as_text(value)
    return facts


def _as_text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if type(value) is int else str(value)


def footer(run: Run, scores: Mapping[str, Any]) -> str:
    """With what, when and how long a model was trained."""
    where = run.config["environment"]
    threads = plural(where["threads"], "thread")
    return (
        f"exlstm {where['exlstm']}, torch {where['torch']}, {threads}, {where['platform']}. "
        f"Begun {run.config['started'][:16].replace('T', ' ')}, trained for {format_seconds(scores['seconds'])}, "
        f"at most {scores['peak_bytes'] / 2**20:,.0f} MiB of memory."
    )


def plural(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
