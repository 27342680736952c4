"""Where models to be exported come from, and the data that their graphs are tried on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from exlstm.console import notes
from exlstm.data.series import Batch, evaluation_windows
from exlstm.data.text.tokenizer import FILE, Tokenizer
from exlstm.interop.export import trials
from exlstm.interop.export.check import Difference
from exlstm.interop.export.language import GENERATION
from exlstm.interop.export.writing import Exported
from exlstm.models import Forecaster, LanguageModel, Pretrained, read_config
from exlstm.tasks import classify_text, classify_text_data, forecast, forecast_data, lm_data
from exlstm.tasks.options import restore
from exlstm.tasks.runs import Run
from exlstm.tasks.session import require_finished
from exlstm.train.files import read_json

ROWS = 3
"""The batch that graphs are tried with, besides a single row."""


@dataclass(frozen=True)
class Source:
    """A model, and how to try what it was written as."""

    model: Pretrained
    compare: Callable[[Exported], Mapping[str, Difference]]
    copy: list[Path] = field(default_factory=list)
    """Files that a consumer needs besides."""


def source_of(folder: Path, steps: int, prog: str) -> Source:
    """The model of a run, to be tried over so many steps of the run's data; or a language model, on random tokens.

    Raises:
        ValueError: there is none, or it is of a task whose models cannot be exported.
    """
    config = folder / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        return _model(folder, steps)
    run = Run.open(folder)
    match run.task:
        case "lm":
            require_finished(run, prog)
            return _language(run, steps)
        case "forecast":
            require_finished(run, prog)
            return _forecaster(run, steps)
        case "classify-text":
            require_finished(run, prog)
            return _classifier(run)
    raise ValueError(f"models of the tasks lm, forecast and classify-text can be exported; {folder} is of {run.task}")


def _model(folder: Path, steps: int) -> Source:
    read_config(folder, LanguageModel.model_type)
    model = LanguageModel.from_pretrained(folder)
    if others := sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()} - {"float32"}):
        notes().print(f"note: weights in {', '.join(others)} are exported in float32")
    model = model.float()

    def compare(exported: Exported) -> Mapping[str, Difference]:
        notes().print("note: there is no text with a model alone; compared on random tokens")
        tokens = torch.randint(model.config.vocabulary, (ROWS, steps), generator=torch.Generator().manual_seed(0))
        return trials.try_language(exported, tokens)

    return Source(model, compare, [folder / name for name in (FILE, GENERATION) if (folder / name).is_file()])


def _language(run: Run, steps: int) -> Source:
    model, tokenizer = LanguageModel.from_pretrained(run.model), Tokenizer.load(run.model)

    def compare(exported: Exported) -> Mapping[str, Difference]:
        corpus = lm_data.reopen(run.path, tokenizer)
        longest = max((corpus.test, corpus.validation, corpus.train), key=len)
        data = (corpus.test if len(corpus.test) >= ROWS * steps else longest).data
        length = min(steps, len(data) // ROWS)
        tokens = torch.from_numpy(data[: ROWS * length].astype("int64")).view(ROWS, length)
        return trials.try_language(exported, tokens)

    return Source(model, compare, [run.model / FILE])


def _forecaster(run: Run, steps: int) -> Source:
    forecaster = Forecaster.from_pretrained(run.model)
    trained, kind = restore(forecast.Train, run.options), forecaster.series

    def compare(exported: Exported) -> Mapping[str, Difference]:
        data = forecast_data.read(trained, trained.data).with_categories(dict(kind.categories))
        windows = evaluation_windows(data, kind.history, kind.horizon, ROWS, kind.horizon, cycles=kind.cycles)
        return trials.try_forecaster(exported, forecaster, Batch(*(x[-ROWS:] for x in windows)), steps)

    return Source(forecaster, compare)


def _classifier(run: Run) -> Source:
    trained = restore(classify_text.Train, run.options)
    part = run.path / classify_text_data.parts_of(trained)[0]
    model, tokenizer = classify_text.load(part, "cpu")

    def compare(exported: Exported) -> Mapping[str, Difference]:
        first, *_ = classify_text_data.parts(trained, classify_text_data.read(trained))
        texts = first.splits.test[:ROWS]
        batch = classify_text_data.tokens(trained, model, tokenizer, texts).batch(range(len(texts)))
        return trials.try_classifier(exported, [batch.tokens, batch.mask, *(batch.bags or ())])

    return Source(model, compare, [part / "model" / FILE])
