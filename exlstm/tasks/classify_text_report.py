"""The report of a classifier's run: what it says and shows, from its evaluation."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from exlstm.tasks.classify_text_evaluation import Evaluation
from exlstm.tasks.figures import Picture, axes, loss_curve, picture
from exlstm.tasks.report import Number, Report, Section, Table
from exlstm.tasks.report_facts import configuration, footer, plural
from exlstm.tasks.runs import Run

_SHOWN = 12  # mistakes
_LONGEST = 300  # characters of a text that are shown
_CLASSES = 20  # in the picture
_ALONE = {"networks": "its networks alone", "linear": "its linear member alone"}


def score_columns() -> list[str]:
    """The heads of `score_rows`."""
    return ["", "accuracy", "macro F1"]


def score_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The scores of the model, its parts and the baselines as rows of text; `scores` is as in `scores.json`."""
    alone = {_ALONE[name]: values for name, values in scores["data"]["alone"].items()}
    everyone = {"model": scores["model"], **alone, **scores["baselines"]}
    return [[name, f"{values['accuracy']:.1%}", f"{values['macro_f1']:.3f}"] for name, values in everyone.items()]


def make_report(
    evaluation: Evaluation,
    notes: Sequence[str],
    *,
    run: Run,
    model: str,
    scores: Mapping[str, Any],
    history: Sequence[dict[str, Any]],
    command: Sequence[str],
) -> Report:
    """The report on a run that was evaluated."""
    ours, data = evaluation.scores, scores["data"]
    others = ", ".join(f"{name}: {values['accuracy']:.1%}" for name, values in evaluation.baselines.items())
    folds = f", in {data['folds']} folds of which each was the test once" if data["folds"] else ""
    sizes = {name: plural(data[name], "text") for name in ("train", "validation", "test")}
    return Report(
        kicker="exlstm train classify-text",
        title="A classifier of texts",
        headline=(
            f"{ours['accuracy']:.1%} of {plural(data['test'], 'text')} that the model had not seen got the right "
            f"label{folds}; {others}."
        ),
        numbers=[
            Number(f"{ours['accuracy']:.1%}", "accuracy"),
            Number(f"{ours['macro_f1']:.3f}", "macro F1", "mean over the labels"),
            Number(f"{len(evaluation.labels)}", "labels"),
            Number(f"{data['train'] // (data['folds'] or 1):,}", "texts to learn from"),
        ],
        sections=[
            Section("Scores", table=_table(scores)),
            Section("What is taken for what, and how it learns", pictures=[confusion(evaluation), loss_curve(history)]),
            Section("Label by label", table=_by_class(evaluation)),
            Section("Its surest mistakes", notes=mistakes(evaluation)),
            Section("Data", notes=notes, facts={} if data["folds"] else sizes),
            Section("Configuration", facts={"model": model, **configuration(run)}, command=shlex.join(command)),
        ],
        footer=footer(run, scores),
    )


def _table(scores: Mapping[str, Any]) -> Table:
    rows = score_rows(scores)
    best = {(max(range(len(rows)), key=lambda row: float(rows[row][n].rstrip("%"))), n) for n in (1, 2)}
    return Table(score_columns(), rows, frozenset(best), "Higher is better.")


def _by_class(evaluation: Evaluation) -> Table:
    rows = [
        [str(x.label), f"{x.texts:,}", f"{x.precision:.1%}", f"{x.recall:.1%}", f"{x.f1:.3f}"]
        for x in evaluation.classes.sort_values(["texts", "label"], ascending=[False, True]).itertuples()
    ]
    note = "Precision: how many that got the label have it. Recall: how many that have it got it."
    return Table(["label", "texts", "precision", "recall", "F1"], rows, note=note)


def mistakes(evaluation: Evaluation) -> list[str]:
    """The wrong labels that the model was surest of."""
    table = evaluation.table
    wrong = table[table["label"] != table["predicted"]].sort_values("probability", ascending=False, kind="stable")
    return [
        f"{_short(str(x.text))} → {x.predicted} ({x.probability:.1%}); it is {x.label}"
        for x in wrong.head(_SHOWN).itertuples()
    ]


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


def confusion(evaluation: Evaluation) -> Picture:
    """What share of the texts of each label got each label, of the most frequent labels."""
    counts = [sum(row) for row in evaluation.confusion]
    order = sorted(range(len(counts)), key=lambda n: -counts[n])[:_CLASSES]
    shares = [[evaluation.confusion[a][b] / max(counts[a], 1) for b in order] for a in order]
    names = [evaluation.labels[n].replace("$", r"\$") for n in order]
    some = "" if len(counts) <= _CLASSES else f" The {_CLASSES} most frequent labels."
    with axes(wide=len(order) > 10, height=max(2.7, 0.8 + 0.25 * len(order))) as drawn:
        drawn.imshow(shares, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        drawn.set_xticks(range(len(names)), names, rotation=45, ha="right")
        drawn.set_yticks(range(len(names)), names)
        drawn.tick_params(labelsize=8)
        drawn.grid(False)
        drawn.set_xlabel("label given")
        drawn.set_ylabel("true label")
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                if share >= 0.005:
                    text = f"{100 * share:.0f}"
                    drawn.text(
                        x, y, text, ha="center", va="center", fontsize=7, color="white" if share > 0.5 else "black"
                    )
        diagonal = ", ".join(f"{name} {shares[n][n]:.0%}" for n, name in enumerate(names))
        return picture(
            drawn,
            f"What share of the texts of a label (down) got each label (across), in per cent.{some}",
            description=f"Heat map of confusions; right are: {diagonal}",
            wide=len(order) > 10,
        )
