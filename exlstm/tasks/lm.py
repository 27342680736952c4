"""The language modelling task: train on text, score on held-out text, write more of it."""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from exlstm.console import notes
from exlstm.tasks.options import (
    EvaluateOptions,
    GenerateOptions,
    ModelOptions,
    PredictOptions,
    TrainOptions,
    restore,
)
from exlstm.tasks.runs import Run
from exlstm.tasks.session import INTERRUPTED, begin, require_finished, resume_command, training

if TYPE_CHECKING:
    from exlstm.data.text import Tokenizer
    from exlstm.models import LanguageModel
    from exlstm.tasks.lm_data import Corpus

TASK = "lm"


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a language model on your text, and score it on a part held out.

    FILE is a text file, JSON lines or Parquet, or a folder of such files. Without --data it is a sample, a
    novel by Jane Austen.
    """

    steps: int | None = 500
    """Training steps; none: as many as --minutes allow."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="mmmmmh", width=256))
    style: Literal["paper", "large"] = "paper"
    """How blocks are built: as in the xLSTM paper, or as in xLSTM-7B."""
    tokenizer: Literal["bytes", "bpe", "unigram"] = "bytes"
    """What the model reads: bytes, or subwords learnt from the text."""
    vocabulary: int = 2048
    """Subwords to learn."""
    length: int = 256
    """Tokens of a training window."""
    batch: int = 16
    """Windows of a training step."""
    carry: bool = False
    """Begin each window with the memory left by the one before it (truncated backpropagation through time); h blocks
    then take longer."""
    lr: float = 2e-3
    """Peak learning rate."""
    dropout: float = 0.0
    """Probability with which what a block adds is dropped in training."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in training."""
    column: Annotated[str, arg(metavar="NAME")] = "text"
    """Where the text is in JSON lines and Parquet."""


@dataclass(frozen=True)
class Evaluate(EvaluateOptions):
    """Score a run's model again on the held-out part of its text, and write its report anew."""


@dataclass(frozen=True)
class Predict(PredictOptions):
    """Say how well a run's model predicts texts: bits per character and perplexity of each document."""

    input: Annotated[Positional[Path | None], arg(metavar="FILE")] = None
    """Text file, JSON lines or Parquet, or a folder of such files."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: print CSV)")] = None
    """File for the table, .csv."""


@dataclass(frozen=True)
class Generate(GenerateOptions):
    """Write text with the model of a run."""

    prompt: str = ""
    """What the text begins with."""
    length: int = 500
    """Tokens to write at most."""
    temperature: float = 0.8
    """0 always takes the likeliest token; higher is more varied."""
    top_k: Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: all)")] = None
    """Draw from the K likeliest tokens only."""
    top_p: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: all)")] = None
    """Draw from the likeliest tokens that reach P together only."""
    min_p: Annotated[float | None, arg(metavar="P", help_behavior_hint="(default: all)")] = None
    """Draw from tokens at least P times as likely as the likeliest only."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were written already less likely."""
    seed: int | None = None
    """Of drawing; the same seed gives the same text."""
    weights: Literal["full", "bfloat16", "int8"] = "full"
    """How weights are kept: less precise ones are read faster."""


def train(options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    from exlstm.models import language_training
    from exlstm.tasks import lm_data
    from exlstm.tasks.device import pick_device

    device = pick_device(options.device)
    options = replace(options, data=options.data.absolute() if options.data else None)
    recipe = replace(
        language_training.RECIPE,
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        lr=options.lr,
        precision=options.precision,
    )
    with begin(TASK, options) as run, training(run, options, prog):
        corpus = lm_data.prepare(options, run.path)
        _introduce(run, corpus)
        model = _make(options, corpus.tokenizer).to(device)
        result = language_training.fit(
            model,
            corpus.train,
            corpus.validation,
            batch=options.batch,
            time=options.length,
            carry=options.carry,
            train=recipe,
            out=run.path,
            resume=options.resume,
            resume_hint=resume_command(run, prog),
            console=notes(),
        )
        if result.interrupted:
            return INTERRUPTED
        model.save_pretrained(run.model)
        corpus.tokenizer.save(run.model)
        notes().print(f"trained: {size_of(model)}; evaluating")
        _evaluate(run, corpus, model, {"seconds": result.seconds, "peak_bytes": result.peak_bytes}, prog)
    return 0


def evaluate(options: Evaluate, prog: str) -> int:
    """Score the model of a run again; the exit code."""
    from exlstm.tasks import lm_data

    run = Run.open(options.run)
    model, tokenizer = load(run, options.device, prog)
    corpus = lm_data.reopen(run.path, tokenizer)
    scores = run.read_scores()
    _evaluate(run, corpus, model, {name: scores[name] for name in ("seconds", "peak_bytes")}, prog)
    return 0


def predict(options: Predict, prog: str) -> int:
    """Give the scores of the documents in a file; the exit code."""
    from exlstm.tasks import lm_data, lm_evaluation

    run = Run.open(options.run)
    if options.input is None:
        raise ValueError(
            f"{prog} predict of a language model needs a text file to score; "
            f"{prog} generate {shlex.quote(str(options.run))} writes text"
        )
    model, tokenizer = load(run, options.device, prog)
    documents, remarks = lm_data.read(options.input, restore(Train, run.options).column)
    for remark in remarks:
        notes().print(f"note: {remark}")
    table = lm_evaluation.document_scores(model, tokenizer, documents)
    if options.out is None:
        print(table.to_csv(index=False), end="")
    else:
        table.to_csv(options.out, index=False)
        print(f"scores of {len(table)} documents: {options.out}")
    return 0


def generate(options: Generate, prog: str) -> int:
    """Write text, as it comes; the exit code."""
    from exlstm.data.text import BOS, EOS
    from exlstm.models import Sampling

    run = Run.open(options.run)
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.min_p, options.repetition_penalty)
    if options.length < 1:
        raise ValueError(f"expected --length of at least 1, got {options.length}")
    model, tokenizer = load(run, options.device, prog)
    prompt = [BOS, *tokenizer.encode(options.prompt)]
    print(options.prompt, end="", flush=True)
    stream = model.stream(
        prompt, most=options.length, sampling=sampling, stop=[BOS, EOS], seed=options.seed, weights=options.weights
    )
    for text in tokenizer.decode_stream(stream):
        print(text, end="", flush=True)
    print()
    return 0


def size_of(model: "LanguageModel") -> str:
    """What the model is, in a few words."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    return f"{model.backbone.pattern}, {weights:,} weights"


def load(run: Run, device: str, prog: str) -> "tuple[LanguageModel, Tokenizer]":
    """The model of a finished run, and its tokenizer."""
    from exlstm.data.text import Tokenizer
    from exlstm.models import LanguageModel
    from exlstm.tasks.device import pick_device

    require_finished(run, prog)
    return LanguageModel.from_pretrained(run.model, device=pick_device(device)), Tokenizer.load(run.model)


def _make(options: Train, tokenizer: "Tokenizer") -> "LanguageModel":
    import torch

    from exlstm.models import LanguageModel
    from exlstm.models.arch import pattern_of
    from exlstm.train import derive_seed

    model = options.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "network"))
        return LanguageModel(
            vocabulary=tokenizer.vocabulary,
            pattern=pattern_of(model.arch, model.pattern, model.width, style=options.style),
            width=model.width,
            style=options.style,
            dropout=options.dropout,
        )


def _introduce(run: Run, corpus: "Corpus") -> None:
    """Say in a few lines what is about to happen."""
    say = notes().print
    for name in ("train", "validation", "test"):
        about = getattr(corpus, name).about
        say(f"{name}: {about.characters:,} characters, {about.tokens:,} tokens, {about.documents:,} documents")
    for note in corpus.notes:
        say(f"note: {note}")
    say(f"run folder: {run.path}")


def _evaluate(run: Run, corpus: "Corpus", model: "LanguageModel", cost: Mapping[str, Any], prog: str) -> None:
    """Score the model, keep the scores, and conclude."""
    from exlstm.tasks import lm_evaluation, lm_report
    from exlstm.tasks.conclusion import conclude

    evaluation = lm_evaluation.evaluate(model, corpus)
    run.write_scores(
        model=evaluation.scores,
        baselines=evaluation.baselines,
        data={name: asdict(getattr(corpus, name).about) for name in ("train", "validation", "test")},
        **cost,
    )
    conclude(
        run,
        restore(Train, run.options),
        prog,
        columns=lm_report.score_columns(),
        rows=lm_report.score_rows,
        report=partial(lm_report.make_report, evaluation, corpus, model=size_of(model)),
    )
