"""The report of a run on pairs of texts: what it says and shows, from its evaluation."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from exlstm.data.text import Pairs
from exlstm.tasks.figures import MODEL, Picture, axes, loss_curve, picture
from exlstm.tasks.pairs import Kind
from exlstm.tasks.pairs_evaluation import Evaluation, Reads
from exlstm.tasks.report import Number, Report, Section, Table
from exlstm.tasks.report_facts import configuration, footer, plural
from exlstm.tasks.runs import Run

_SHOWN = 12


def score_rows(kind: Kind, scores: Mapping[str, Any]) -> list[list[str]]:
    """The model's and the baselines' scores as rows of text; `scores` is as in `scores.json`."""
    everyone = {"model": scores["model"], **scores["baselines"]}
    return [[name, *(f"{values[metric]:.1f}" for metric in kind.shown)] for name, values in everyone.items()]


def make_report(
    kind: Kind,
    evaluation: Evaluation,
    pairs: Pairs,
    *,
    run: Run,
    model: str,
    scores: Mapping[str, Any],
    history: Sequence[dict[str, Any]],
    command: Sequence[str],
) -> Report:
    """The report on a run that was evaluated on the test part of `pairs`."""
    ours, first = evaluation.scores, kind.shown[0]
    examples = evaluation.table.sample(min(_SHOWN, len(evaluation.table)), random_state=0).sort_index()
    pictures = [by_length(kind, evaluation), loss_curve(history)]
    if evaluation.reads is not None:
        pictures.append(read_map(evaluation.reads))
    return Report(
        kicker=f"exlstm train {kind.task}",
        title=kind.title,
        headline=(
            f"{' and '.join(f'{name} {ours[name]:.1f}' for name in kind.shown[:2])} on "
            f"{plural(len(pairs.test), 'text')} that the model had not seen; {kind.baseline} scores "
            f"{evaluation.baselines[kind.baseline][first]:.1f} in {first}."
        ),
        numbers=[
            *(Number(f"{ours[name]:.1f}", name) for name in kind.shown),
            Number(f"{len(pairs.train):,}", "pairs to learn from"),
        ],
        sections=[
            Section(
                "Scores",
                table=_table(kind, scores),
                facts=evaluation.signatures,
            ),
            Section("How it learns, and where it is good", pictures=pictures),
            Section(
                f"Some {kind.results}, chosen at random",
                notes=[
                    f"{source} → {found or '(nothing)'}{'' if found == target else f' (as it should be: {target})'}"
                    for source, target, found in examples.astype(str).to_numpy().tolist()
                ],
            ),
            Section("Data", notes=pairs.notes, facts={n: f"{len(getattr(pairs, n)):,} pairs" for n in _SPLITS}),
            Section("Configuration", facts={"model": model, **configuration(run)}, command=shlex.join(command)),
        ],
        footer=footer(run, scores),
    )


_SPLITS = ("train", "validation", "test")


def _table(kind: Kind, scores: Mapping[str, Any]) -> Table:
    rows = score_rows(kind, scores)
    best = {(max(range(len(rows)), key=lambda row: float(rows[row][n])), n) for n in range(1, len(rows[0]))}
    return Table(["", *kind.shown], rows, frozenset(best), "Higher is better.")


def by_length(kind: Kind, evaluation: Evaluation) -> Picture:
    """The score that decides, over the length of the source."""
    parts, name_of_score = evaluation.by_length, kind.shown[0]
    names = [f"{part['from']}–{part['to']}" for part in parts]
    with axes() as drawn:
        bars = drawn.bar(names, [part[name_of_score] for part in parts], color=MODEL, width=0.7)
        drawn.bar_label(bars, [f"{part['pairs']:,} texts" for part in parts], fontsize=8, padding=2)
        drawn.set_xlabel("words of the source")
        drawn.set_ylabel(name_of_score)
        drawn.grid(False, axis="x")
        return picture(
            drawn,
            f"{name_of_score} by the length of the source.",
            description="Bar chart: "
            + ", ".join(f"{part[name_of_score]:.1f} at {name} words" for part, name in zip(parts, names, strict=True)),
        )


def read_map(reads: Reads) -> Picture:
    """What was read of the source for every token written."""
    with axes(wide=True, height=1.4 + 0.16 * len(reads.written)) as drawn:
        drawn.imshow(reads.weights.numpy(), aspect="auto", cmap="Greys", vmin=0, interpolation="nearest")
        drawn.set_xticks(range(len(reads.source)), [_visible(x) for x in reads.source], rotation=60, ha="right")
        drawn.set_yticks(range(len(reads.written)), [_visible(x) for x in reads.written])
        drawn.tick_params(labelsize=7)
        drawn.grid(False)
        return picture(
            drawn,
            "What the last block attends to in the source (across) while it writes (down), the mean over heads; a tree "
            "has steps to attend to only in the leaves that it is led to.",
            description="Heat map of what is read of the source for each token written.",
            wide=True,
        )


def _visible(piece: str) -> str:
    """A token as a label: spaces are seen, and what cannot be printed is replaced."""
    shown = "".join(x if x.isprintable() else "\ufffd" for x in piece)
    return shown.replace(" ", "·").replace("$", r"\$") or "·"
