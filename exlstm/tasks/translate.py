"""The translation task: train on pairs of texts, score on held-out pairs, translate lines."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from exlstm.console import notes, print_table
from exlstm.tasks.options import EvaluateOptions, ModelOptions, PredictOptions, TrainOptions, command_line, restore
from exlstm.tasks.runs import Run
from exlstm.tasks.session import INTERRUPTED, begin, require_finished, resume_command, training

if TYPE_CHECKING:
    from exlstm.data.text import Pairs, Tokenizer, TokenPairs
    from exlstm.models import Seq2Seq

TASK = "translate"


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a translator on your pairs of texts, and score it on pairs held out.

    FILE has a row for each pair: a .tsv, .jsonl or .parquet file with columns `source` and `target`. A column
    `group`, if there is one, names pairs that belong together, such as those of one document. For pairs to
    try it on: exlstm data get descriptions-de.
    """

    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(needed)")] = None
    """Your pairs."""
    steps: int | None = 3000
    """Training steps; none: as many as --minutes allow."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="mm", width=256))
    encoder: Annotated[str, arg(metavar="PATTERN", help_behavior_hint="(default: the model's pattern)")] = ""
    """The blocks that read the source in both directions."""
    memory: Literal["hierarchical", "flat", "attention"] = "hierarchical"
    """What the source is stored in: a tree of matrix memories, one of them, or all of it for attention."""
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
    """Of the beam search by which texts are translated; 1 takes the likeliest token at every step."""
    columns: Annotated[tuple[str, str], arg(metavar="SOURCE TARGET")] = ("source", "target")
    """Columns of the two texts."""


@dataclass(frozen=True)
class Evaluate(EvaluateOptions):
    """Score a run's model again on the held-out pairs, and write its report anew."""


@dataclass(frozen=True)
class Predict(PredictOptions):
    """Translate a file line by line, or one line given by --text, with the model of a run."""

    input: Annotated[Positional[Path | None], arg(metavar="[FILE]")] = None
    """A text file with a text in every line."""
    text: Annotated[str | None, arg(metavar="TEXT")] = None
    """One text to translate."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: print)")] = None
    """File for the translations, one a line."""
    beams: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the run's)")] = None
    """Of the beam search; 1 takes the likeliest token at every step."""


def train(options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    from exlstm.models import seq2seq_training
    from exlstm.tasks import translate_data
    from exlstm.tasks.device import pick_device

    if options.data is None:
        raise ValueError(
            f"{prog} train {TASK} needs --data FILE with pairs of texts; "
            f"{prog} data get descriptions-de fetches some to try it on"
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
    pairs = translate_data.read(options)
    with begin(TASK, options, {"data_digest": translate_data.digest(options)}) as run, training(run, options, prog):
        tokenizer, tokens = translate_data.tokens(options, pairs)
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
        notes().print(f"trained: {size_of(model)}; translating the test part")
        cost = {"seconds": result.seconds, "peak_bytes": result.peak_bytes}
        _evaluate(run, pairs, model, tokenizer, cost, prog)
    return 0


def evaluate(options: Evaluate, prog: str) -> int:
    """Score the model of a run again; the exit code."""
    from exlstm.tasks import translate_data

    run = Run.open(options.run)
    model, tokenizer = load(run, options.device, prog)
    trained = restore(Train, run.options)
    pairs = translate_data.read(trained)
    if translate_data.digest(trained) != run.options["data_digest"]:
        notes().print(f"note: {trained.data} is not what it was when the model was trained")
    scores = run.read_scores()
    _evaluate(run, pairs, model, tokenizer, {name: scores[name] for name in ("seconds", "peak_bytes")}, prog)
    return 0


def predict(options: Predict, prog: str) -> int:
    """Translate; the exit code."""
    from exlstm.tasks.translate_evaluation import translate

    run = Run.open(options.run)
    if (options.input is None) == (options.text is None):
        raise ValueError(f"{prog} predict of a translator needs a text file, or a text by --text, and not both")
    beams = restore(Train, run.options).beams if options.beams is None else options.beams
    if beams < 1:
        raise ValueError(f"expected --beams of at least 1, got {beams}")
    model, tokenizer = load(run, options.device, prog)
    texts = [options.text] if options.text is not None else []
    if options.input is not None:
        texts = options.input.read_text(encoding="utf-8").splitlines()
    found = translate(model, tokenizer, texts, beams=beams)
    if options.out is None:
        print("\n".join(found))
    else:
        options.out.write_text("\n".join(found) + "\n", encoding="utf-8")
        print(f"{len(found):,} translations: {options.out}")
    return 0


def size_of(model: "Seq2Seq") -> str:
    """What the model is, in a few words."""
    config, weights = model.config, sum(parameter.numel() for parameter in model.parameters())
    return f"{config.encoder} to {config.decoder}, {config.memory} memory, {weights:,} weights"


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
    from exlstm.models import Seq2Seq
    from exlstm.models.arch import pattern_of
    from exlstm.train import derive_seed

    model = options.model
    encoder = options.encoder or model.pattern
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "network"))
        return Seq2Seq(
            vocabulary=tokenizer.vocabulary,
            bos=BOS,
            eos=EOS,
            encoder=pattern_of(model.arch, encoder, model.width, bidirectional=True),
            decoder=pattern_of(model.arch, model.pattern, model.width),
            width=model.width,
            dropout=options.dropout,
            memory=options.memory,
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
    run: Run, pairs: "Pairs", model: "Seq2Seq", tokenizer: "Tokenizer", cost: Mapping[str, Any], prog: str
) -> None:
    """Score the model, keep translations and scores, print the scores, and only then write the report."""
    from exlstm.tasks import translate_evaluation, translate_report
    from exlstm.tasks.report import write_report
    from exlstm.train import read_metrics

    options = restore(Train, run.options)
    evaluation = translate_evaluation.evaluate(model, tokenizer, pairs, beams=options.beams, longest=options.longest)
    evaluation.table.to_csv(run.path / "translations.tsv", sep="\t", index=False)
    run.write_scores(
        model=evaluation.scores,
        baselines=evaluation.baselines,
        data={name: len(getattr(pairs, name)) for name in ("train", "validation", "test")}
        | {"signatures": evaluation.signatures, "by_length": evaluation.by_length},
        **cost,
    )
    scores = run.read_scores()
    print_table(translate_report.COLUMNS, translate_report.score_rows(scores), numeric=translate_report.COLUMNS[1:])
    report = translate_report.make_report(
        evaluation,
        pairs,
        run=run,
        model=size_of(model),
        scores=scores,
        history=read_metrics(run.metrics),
        command=[*prog.split(), "train", TASK, *command_line(options, without={"out", "resume", "device"})],
    )
    write_report(run.report, report)
    print(f"report: {run.report}")
