"""The summarisation task: train on texts and their summaries, score on held-out ones, summarise lines."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from exlstm.tasks import pairs
from exlstm.tasks.options import EvaluateOptions, ModelOptions
from exlstm.tasks.pair_metrics import rouge

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Train(pairs.Train):
    """Train a writer of summaries on your texts, and score it on texts held out.

    FILE has a row for each text: a .tsv, .jsonl or .parquet file with columns `source` and `target`. A column
    `group`, if there is one, names texts that belong together, such as those of one author; a column `split` says
    what is for train, validation and test. For texts to try it on: exlstm data get description-summaries.
    """

    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(needed)")] = None
    """Your texts."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="ss", width=192))
    longest: int = 160
    """Tokens of a text at most; what is over is cut in training."""


@dataclass(frozen=True)
class Evaluate(EvaluateOptions):
    """Score a run's model again on the held-out texts, and write its report anew."""


@dataclass(frozen=True)
class Predict(pairs.Predict):
    """Summarise a file line by line, or one line given by --text, with the model of a run."""


def first_sentence(text: str) -> str:
    """What comes before the first end of a sentence."""
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


KIND = pairs.Kind(
    task="summarize",
    title="A writer of summaries",
    result="summary",
    results="summaries",
    metric=rouge,
    shown=("ROUGE-1", "ROUGE-2", "ROUGE-L"),
    baseline="first sentence",
    without_model=first_sentence,
    room=0.5,
    lengths=(25, 50, 100, 200),
    example="description-summaries",
    train=Train,
)


def train(options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    return pairs.train(KIND, options, prog)


def evaluate(options: Evaluate, prog: str) -> int:
    """Score the model of a run again; the exit code."""
    return pairs.evaluate(KIND, options, prog)


def predict(options: Predict, prog: str) -> int:
    """Summarise; the exit code."""
    return pairs.predict(KIND, options, prog)
