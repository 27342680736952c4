"""The task of classifying texts: train on texts and labels, score on held-out ones, label new texts."""

from collections.abc import Mapping, Sequence
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
    from exlstm.data.text import LabelledTexts, Tokenizer
    from exlstm.models import Classifier
    from exlstm.tasks.classify_text_data import Part
    from exlstm.train import TrainResult

TASK = "classify-text"


@dataclass(frozen=True)
class Train(TrainOptions):
    """Train a classifier of texts, such as of sentiment or topic, and score it on texts held out.

    FILE has a row for each text: a .tsv, .jsonl or .parquet file with columns `text` and `label`, or a folder of
    such files. A column `group`, if there is one, names texts that belong together, such as those of one author; a
    column `split` says what is for train, validation and test. For texts to try it on: exlstm data get movie-reviews.
    """

    data: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(needed)")] = None
    """Your labelled texts."""
    steps: int | None = 600
    """Training steps; none: as many as --minutes allow."""
    model: ModelOptions = field(default_factory=lambda: ModelOptions(pattern="s", width=64))
    members: int = 1
    """Networks side by side, whose opinions are averaged."""
    grams: int = 2
    """Longest run of words that a linear member knows beside the networks; 0: no such member."""
    folds: Annotated[int | None, arg(metavar="K", help_behavior_hint="(default: one part is the test)")] = None
    """Cross-validation: train K times, on all parts but one, which is the test; --minutes are for all together."""
    tokenizer: Literal["bpe", "unigram", "bytes"] = "bpe"
    """What the networks read: subwords learnt from the texts, or bytes."""
    vocabulary: int = 8000
    """Subwords to learn."""
    longest: int = 256
    """Tokens of a text that the networks read at most."""
    batch: int = 64
    """Texts of a training step."""
    lr: float = 3e-3
    """Peak learning rate."""
    dropout: float = 0.4
    """Probability with which numbers inside the model are dropped in training."""
    balanced: bool = False
    """Let rare classes count as much as frequent ones in training."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of matrix products in training."""
    columns: Annotated[tuple[str, str], arg(metavar="TEXT LABEL")] = ("text", "label")
    """Columns of the texts and their labels."""


@dataclass(frozen=True)
class Evaluate(EvaluateOptions):
    """Score a run's model again on the held-out texts, and write its report anew."""


@dataclass(frozen=True)
class Predict(PredictOptions):
    """Label texts with the model of a run: a file's, or one given by --text. The result is CSV."""

    input: Annotated[Positional[Path | None], arg(metavar="[FILE]")] = None
    """A text file with a text in every line, or a .tsv, .jsonl or .parquet file with the run's column of texts."""
    text: Annotated[str | None, arg(metavar="TEXT")] = None
    """One text."""
    out: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: print)")] = None
    """File for labels and probabilities, .csv."""


def train(options: Train, prog: str) -> int:
    """Train in a run folder, evaluate and report; the exit code."""
    from exlstm.tasks import classify_text_data
    from exlstm.tasks.device import pick_device

    if options.data is None:
        raise ValueError(
            f"{prog} train {TASK} needs --data FILE with labelled texts; "
            f"{prog} data get movie-reviews fetches some to try it on"
        )
    if options.grams < 0:
        raise ValueError(f"expected --grams of at least 0, got {options.grams}")
    pick_device(options.device)
    options = replace(options, data=options.data.absolute())
    data = classify_text_data.read(options)
    parts = classify_text_data.parts(options, data)
    more = {"data_digest": classify_text_data.digest(options)}
    with begin(TASK, options, more) as run, training(run, options, prog):
        _introduce(run, data, parts)
        results = []
        for part in parts:
            results.append(_train_part(run, part, data.labels, options, prog))
            if results[-1].interrupted:
                return INTERRUPTED
        cost = {"seconds": sum(x.seconds for x in results), "peak_bytes": max(x.peak_bytes for x in results)}
        _evaluate(run, data, parts, cost, options.device, prog)
    return 0


def evaluate(options: Evaluate, prog: str) -> int:
    """Score the models of a run again; the exit code."""
    from exlstm.tasks import classify_text_data

    run = Run.open(options.run)
    require_finished(run, prog)
    trained = restore(Train, run.options)
    data = classify_text_data.read(trained)
    if classify_text_data.digest(trained) != run.options["data_digest"]:
        notes().print(f"note: {trained.data} is not what it was when the model was trained")
    scores = run.read_scores()
    cost = {name: scores[name] for name in ("seconds", "peak_bytes")}
    _evaluate(run, data, classify_text_data.parts(trained, data), cost, options.device, prog)
    return 0


def predict(options: Predict, prog: str) -> int:
    """Label new texts; the exit code."""
    from exlstm.tasks.classify_text_data import parts_of, read_texts
    from exlstm.tasks.classify_text_evaluation import label_texts

    run = Run.open(options.run)
    if (options.input is None) == (options.text is None):
        raise ValueError(f"{prog} predict of {TASK} needs a file of texts, or a text by --text, and not both")
    require_finished(run, prog)
    trained = restore(Train, run.options)
    texts = [options.text] if options.text is not None else []
    if options.input is not None:
        texts = read_texts(options.input, trained.columns[0])
    model, tokenizer = load(run.path / parts_of(trained)[0], options.device)
    table = label_texts(trained, model, tokenizer, texts)
    if options.out is None:
        print(table.to_csv(index=False), end="")
    else:
        table.to_csv(options.out, index=False)
        print(f"labels of {len(table):,} texts: {options.out}")
    return 0


def size_of(model: "Classifier") -> str:
    """What the model is, in a few words."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    many = f"{len(model.members)} times " if len(model.members) > 1 else ""
    found = f"{many}{model.config.pattern}, {weights:,} weights"
    if model.linear is None:
        return found
    known = int((model.linear.rarity > 0).sum())
    return f"{found}, with a share of {float(model.share):.0%} beside {known:,} runs of words"


def load(folder: Path, device: str) -> "tuple[Classifier, Tokenizer]":
    """The model of a part of a finished run, and its tokenizer."""
    from exlstm.data.text import Tokenizer
    from exlstm.models import Classifier
    from exlstm.tasks.device import pick_device

    model = Classifier.from_pretrained(folder / "model", device=pick_device(device))
    return model, Tokenizer.load(folder / "model")


def _train_part(run: Run, part: "Part", labels: tuple[str, ...], options: Train, prog: str) -> "TrainResult":
    """Train one model and keep it, or what was trained of it before."""
    from exlstm.models import classifier_training
    from exlstm.tasks import classify_text_data
    from exlstm.tasks.device import pick_device

    say = notes().print
    if part.name:
        say(f"{part.name}: {len(part.splits.train):,} texts to learn from, {len(part.splits.test):,} for the test")
    recipe = replace(
        classifier_training.RECIPE,
        steps=options.steps,
        minutes=None if options.minutes is None else options.minutes / (options.folds or 1),
        seed=options.seed,
        lr=options.lr,
        precision=options.precision,
    )
    tokenizer = classify_text_data.learn_tokenizer(options, part.splits.train)
    model = _make(options, tokenizer, labels).to(pick_device(options.device))
    tokens, validation = (
        classify_text_data.tokens(options, model, tokenizer, texts)
        for texts in (part.splits.train, classify_text_data.some(part.splits.validation))
    )
    if tokens.cut:
        say(f"note: of {tokens.cut:,} training texts the networks read {options.longest} tokens only; see --longest")
    folder = run.path / part.name
    result = classifier_training.fit(
        model,
        tokens,
        validation,
        batch=options.batch,
        balanced=options.balanced,
        train=recipe,
        out=folder,
        resume=options.resume,
        resume_hint=resume_command(run, prog),
        console=notes(),
    )
    if not result.interrupted:
        model.save_pretrained(folder / "model")
        tokenizer.save(folder / "model")
    return result


def _make(options: Train, tokenizer: "Tokenizer", labels: tuple[str, ...]) -> "Classifier":
    import torch

    from exlstm.models import Classifier
    from exlstm.models.arch import pattern_of
    from exlstm.tasks.classify_text_data import BUCKETS
    from exlstm.train import derive_seed

    model = options.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "network"))
        return Classifier(
            labels=labels,
            vocabulary=tokenizer.vocabulary,
            pattern=pattern_of(model.arch, model.pattern, model.width, bidirectional=True),
            width=model.width,
            dropout=options.dropout,
            members=options.members,
            buckets=BUCKETS if options.grams else 0,
            grams=max(1, options.grams),
        )


def _introduce(run: Run, data: "LabelledTexts", parts: Sequence["Part"]) -> None:
    """Say in a few lines what is about to happen."""
    say = notes().print
    if len(parts) > 1:
        say(f"texts: {len(data.texts):,}, of {len(data.labels)} labels, in {len(parts)} folds")
    else:
        splits = parts[0].splits
        sizes = ", ".join(f"{len(getattr(splits, name)):,} {name}" for name in ("train", "validation", "test"))
        say(f"texts: {sizes}, of {len(data.labels)} labels")
    for note in [*data.notes, *parts[0].splits.notes]:
        say(f"note: {note}")
    say(f"run folder: {run.path}")


def _evaluate(
    run: Run, data: "LabelledTexts", parts: Sequence["Part"], cost: Mapping[str, Any], device: str, prog: str
) -> None:
    """Score the models, keep what they found and the scores, and conclude."""
    from exlstm.tasks import classify_text_evaluation, classify_text_report
    from exlstm.tasks.conclusion import conclude

    options = restore(Train, run.options)
    models = [(part, *load(run.path / part.name, device)) for part in parts]
    about = size_of(models[0][1])
    notes().print(f"model: {about}; scoring it and the baselines on the test part")
    evaluation = classify_text_evaluation.evaluate(options, models)
    if classify_text_evaluation.LINEAR not in evaluation.baselines:
        notes().print("note: the linear baseline is left out, for it needs scikit-learn: pip install 'exlstm[text]'")
    evaluation.table.to_csv(run.path / "predictions.csv", index=False)
    run.write_scores(
        model=evaluation.scores,
        baselines=evaluation.baselines,
        data={name: sum(len(getattr(part.splits, name)) for part in parts) for name in ("train", "validation", "test")}
        | {"folds": options.folds, "alone": evaluation.alone}
        | {"labels": evaluation.labels, "confusion": evaluation.confusion},
        **cost,
    )
    conclude(
        run,
        options,
        prog,
        columns=classify_text_report.score_columns(),
        rows=classify_text_report.score_rows,
        report=partial(
            classify_text_report.make_report, evaluation, [*data.notes, *parts[0].splits.notes], model=about
        ),
        metrics=run.path / parts[0].name / run.metrics.name,
    )
