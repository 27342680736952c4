"""What translation and summarisation share: train on pairs of texts, score on held-out pairs, write for new texts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from exlstm.console import notes
from exlstm.tasks.options import EvaluateOptions, ModelOptions, PredictOptions, TrainOptions, restore
from exlstm.tasks.runs import Run
from exlstm.tasks.session import INTERRUPTED, begin, require_finished, resume_command, training

if TYPE_CHECKING:
    from exlstm.data.text import Pairs, Tokenizer, TokenPairs
    from exlstm.models import Seq2Seq
    from exlstm.tasks.pair_metrics import Metric


@dataclass(frozen=True)
class Kind:
    """What is particular to a task on pairs."""

    task: str
    title: str
    """Of a report."""
    result: str
    """What a text that the model wrote is called, in the singular."""
    results: str
    """The same in the plural; also the name of the file of them in a run."""
    metric: "Metric"
    shown: Sequence[str]
    """The scores that are shown, the one that decides first."""
    baseline: str
    """What `without_model` does, in two words."""
    without_model: Callable[[str], str]
    """Makes a target of a source by itself."""
    room: float
    """Tokens that a target may have at most, for each of its source's; some more for short ones."""
    lengths: Sequence[int]
    """Words of a source, at which the scores by length are parted."""
    example: str
    """A data set to try it on."""
    train: "type[Train]"
    """The options."""


@dataclass(frozen=True)
class Train(TrainOptions):
    """What the tasks on pairs of texts can be told."""

    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(needed)")] = None
    """Your pairs."""
    steps: int | None = 3000
    """Training steps; none: as many as --minutes allow."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="ss", width=256))
    encoder: Annotated[str, arg(metavar="PATTERN")] = "s"
    """The blocks that read the source in both directions."""
    memory: Literal["hierarchical", "flat", "attention"] = "hierarchical"
    """What the source is stored in: a tree of matrix memories, one of them, or all of it for attention."""
    no_copy: bool = False
    """Write from the vocabulary alone, and copy no word of the source as it stands."""
    tokenizer: Literal["bpe", "unigram", "bytes"] = "bpe"
    """What the model reads and writes: subwords learnt from the texts, or bytes."""
    vocabulary: int = 8000
    """Subwords to learn."""
    longest: int = 128
    """Tokens of a text at most; what is over is cut in training."""
    batch: int = 64
    """Pairs of a training step."""
    lr: float = 2e-3
    """Peak learning rate."""
    dropout: float = 0.1
    """Probability with which what a block adds is dropped in training."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in training."""
    beams: int = 4
    """Of the beam search by which texts are written; 1 takes the likeliest token at every step."""
    columns: Annotated[tuple[str, str], arg(metavar="SOURCE TARGET")] = ("source", "target")
    """Columns of the two texts."""


@dataclass(frozen=True)
class Predict(PredictOptions):
    """Use a run's model on a file line by line, or on one line given by --text."""

    input: Annotated[Positional[Path | None], arg(metavar="[FILE]")] = None
    """A text file with a text in every line."""
    text: Annotated[str | None, arg(metavar="TEXT")] = None
    """One text."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: print)")] = None
    """File for what is written, a line for each."""
    beams: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the run's)")] = None
    """Of the beam search; 1 takes the likeliest token at every step."""


def train(kind: Kind, options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    from exlstm.models import seq2seq_training
    from exlstm.tasks import pairs_data
    from exlstm.tasks.device import pick_device

    if options.data is None:
        raise ValueError(
            f"{prog} train {kind.task} needs --data FILE with pairs of texts; "
            f"{prog} data get {kind.example} fetches some to try it on"
        )
    device = pick_device(options.device)
    options = replace(options, data=options.data.absolute())
    recipe = replace(
        seq2seq_training.RECIPE,
        steps=options.steps,
        minutes=options.minutes,
        seed=options.seed,
        lr=options.lr,
        precision=options.precision,
    )
    pairs = pairs_data.read(options)
    with begin(kind.task, options, {"data_digest": pairs_data.digest(options)}) as run, training(run, options, prog):
        tokenizer, tokens = pairs_data.tokens(options, pairs)
        _introduce(run, pairs, tokens)
        model = _make(options, tokenizer).to(device)
        result = seq2seq_training.fit(
            model,
            tokens["train"],
            tokens["validation"],
            batch=options.batch,
            train=recipe,
            out=run.path,
            resume=options.resume,
            resume_hint=resume_command(run, prog),
            console=notes(),
        )
        if result.interrupted:
            return INTERRUPTED
        model.save_pretrained(run.model)
        tokenizer.save(run.model)
        notes().print(f"trained: {size_of(model)}; writing {kind.results} of the test part")
        cost = {"seconds": result.seconds, "peak_bytes": result.peak_bytes}
        _evaluate(kind, run, pairs, model, tokenizer, cost, prog)
    return 0


def evaluate(kind: Kind, options: EvaluateOptions, prog: str) -> int:
    """Score the model of a run again; the exit code."""
    from exlstm.tasks import pairs_data

    run = Run.open(options.run)
    model, tokenizer = load(run, options.device, prog)
    trained = restore(kind.train, run.options)
    pairs = pairs_data.read(trained)
    if pairs_data.digest(trained) != run.options["data_digest"]:
        notes().print(f"note: {trained.data} is not what it was when the model was trained")
    scores = run.read_scores()
    _evaluate(kind, run, pairs, model, tokenizer, {name: scores[name] for name in ("seconds", "peak_bytes")}, prog)
    return 0


def predict(kind: Kind, options: Predict, prog: str) -> int:
    """Write for new texts; the exit code."""
    from exlstm.tasks.pairs_evaluation import write

    run = Run.open(options.run)
    if (options.input is None) == (options.text is None):
        raise ValueError(f"{prog} predict of {kind.task} needs a text file, or a text by --text, and not both")
    beams = restore(kind.train, run.options).beams if options.beams is None else options.beams
    if beams < 1:
        raise ValueError(f"expected --beams of at least 1, got {beams}")
    model, tokenizer = load(run, options.device, prog)
    texts = [options.text] if options.text is not None else []
    if options.input is not None:
        texts = options.input.read_text(encoding="utf-8").splitlines()
    found = write(model, tokenizer, texts, beams=beams, room=kind.room)
    if options.out is None:
        print("\n".join(found))
    else:
        options.out.write_text("\n".join(found) + "\n", encoding="utf-8")
        print(f"{len(found):,} {kind.results}: {options.out}")
    return 0


def size_of(model: "Seq2Seq") -> str:
    """What the model is, in a few words."""
    config, weights = model.config, sum(parameter.numel() for parameter in model.parameters())
    copying = "" if model.copying is None else ", copying"
    return f"{config.encoder} to {config.decoder}, {config.memory} memory{copying}, {weights:,} weights"


def load(run: Run, device: str, prog: str) -> "tuple[Seq2Seq, Tokenizer]":
    """The model of a finished run, and its tokenizer."""
    from exlstm.data.text import Tokenizer
    from exlstm.models import Seq2Seq
    from exlstm.tasks.device import pick_device

    require_finished(run, prog)
    return Seq2Seq.from_pretrained(run.model, device=pick_device(device)), Tokenizer.load(run.model)


def _make(options: Train, tokenizer: "Tokenizer") -> "Seq2Seq":
    import torch

    from exlstm.data.text import BOS, EOS
    from exlstm.models import Seq2Seq, Seq2SeqConfig
    from exlstm.models.arch import pattern_of
    from exlstm.train import derive_seed

    model, blocks = options.model, Seq2SeqConfig.options
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "network"))
        return Seq2Seq(
            vocabulary=tokenizer.vocabulary,
            bos=BOS,
            eos=EOS,
            encoder=pattern_of(model.arch, options.encoder, model.width, bidirectional=True, options=blocks),
            decoder=pattern_of(model.arch, model.pattern, model.width, options=blocks),
            width=model.width,
            dropout=options.dropout,
            memory=options.memory,
            copy=not options.no_copy,
        )


def _introduce(run: Run, pairs: "Pairs", tokens: "Mapping[str, TokenPairs]") -> None:
    """Say in a few lines what is about to happen."""
    say = notes().print
    sizes = ", ".join(f"{len(getattr(pairs, name)):,} {name}" for name in ("train", "validation", "test"))
    say(f"pairs: {sizes}")
    for note in pairs.notes:
        say(f"note: {note}")
    if cut := tokens["train"].cut:
        say(f"note: {cut:,} training pairs cut to --longest")
    say(f"run folder: {run.path}")


def _evaluate(
    kind: Kind, run: Run, pairs: "Pairs", model: "Seq2Seq", tokenizer: "Tokenizer", cost: Mapping[str, Any], prog: str
) -> None:
    """Score the model, keep what it wrote and the scores, and conclude."""
    from exlstm.tasks import pairs_evaluation, pairs_report
    from exlstm.tasks.conclusion import conclude

    options = restore(kind.train, run.options)
    evaluation = pairs_evaluation.evaluate(kind, model, tokenizer, pairs, beams=options.beams, longest=options.longest)
    evaluation.table.to_csv(run.path / f"{kind.results}.tsv", sep="\t", index=False)
    run.write_scores(
        model=evaluation.scores,
        baselines=evaluation.baselines,
        data={name: len(getattr(pairs, name)) for name in ("train", "validation", "test")}
        | {"signatures": evaluation.signatures, "by_length": evaluation.by_length},
        **cost,
    )
    conclude(
        run,
        options,
        prog,
        columns=["", *kind.shown],
        rows=partial(pairs_report.score_rows, kind),
        report=partial(pairs_report.make_report, kind, evaluation, pairs, model=size_of(model)),
    )
