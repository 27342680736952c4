"""The translation task: train on pairs of texts, score on held-out pairs, translate lines."""

from dataclasses import dataclass

from exlstm.tasks import pairs
from exlstm.tasks.options import EvaluateOptions
from exlstm.tasks.pair_metrics import bleu_and_chrf


@dataclass(frozen=True)
class Train(pairs.Train):
    """Train a translator on your pairs of texts, and score it on pairs held out.

    FILE has a row for each pair: a .tsv, .jsonl or .parquet file with columns `source` and `target`. A column
    `group`, if there is one, names pairs that belong together, such as those of one document; a column `split` says
    what is for train, validation and test. For pairs to try it on: exlstm data get descriptions-de.
    """

    dropout: float = 0.2
    """Probability with which what a block adds is dropped in training: pairs are few, and with less it overfits."""


@dataclass(frozen=True)
class Evaluate(EvaluateOptions):
    """Score a run's model again on the held-out pairs, and write its report anew."""


@dataclass(frozen=True)
class Predict(pairs.Predict):
    """Translate a file line by line, or one line given by --text, with the model of a run."""


KIND = pairs.Kind(
    task="translate",
    title="A translator",
    result="translation",
    results="translations",
    metric=bleu_and_chrf,
    shown=("BLEU", "chrF"),
    baseline="source copied",
    without_model=str,
    room=2.0,
    lengths=(5, 10, 20, 30),
    example="descriptions-de",
    train=Train,
)


def train(options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    return pairs.train(KIND, options, prog)


def evaluate(options: Evaluate, prog: str) -> int:
    """Score the model of a run again; the exit code."""
    return pairs.evaluate(KIND, options, prog)


def predict(options: Predict, prog: str) -> int:
    """Translate; the exit code."""
    return pairs.predict(KIND, options, prog)
