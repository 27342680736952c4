"""The report of a language modelling run: what it says and shows, from its evaluation."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from exlstm.tasks.figures import MODEL, Picture, axes, loss_curve, picture
from exlstm.tasks.lm_data import Corpus
from exlstm.tasks.lm_evaluation import Evaluation
from exlstm.tasks.report import Number, Report, Section, Table
from exlstm.tasks.report_facts import configuration, footer, plural
from exlstm.tasks.runs import Run

_COLUMNS = {"bits_per_character": "bits per character", "perplexity": "perplexity"}


def score_columns() -> list[str]:
    """The header of `score_rows`."""
    return ["", *_COLUMNS.values()]


def score_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """The model's and the baselines' scores as rows of text; `scores` is as in `scores.json`."""
    everyone = {"model": scores["model"], **scores["baselines"]}
    return [
        [name, *(f"{values[metric]:.3f}" if metric in values else "–" for metric in _COLUMNS)]
        for name, values in everyone.items()
    ]


def make_report(
    evaluation: Evaluation,
    corpus: Corpus,
    *,
    run: Run,
    model: str,
    scores: Mapping[str, Any],
    history: Sequence[dict[str, Any]],
    command: Sequence[str],
) -> Report:
    """The report on a run that was evaluated on the test part of `corpus`."""
    ours, theirs = evaluation.scores, evaluation.baselines
    best = min(theirs, key=lambda name: theirs[name]["bits_per_character"])
    difference = 1 - ours["bits_per_character"] / theirs[best]["bits_per_character"]
    compared = f"{abs(difference):.0%} {'below' if difference > 0 else 'above'} {best}"
    test = corpus.test.about
    return Report(
        kicker="exlstm train lm",
        title=f"A language model of {corpus.source}",
        headline=(
            f"{ours['bits_per_character']:.3f} bits per character on {test.characters:,} characters "
            f"that the model had not seen, {compared}."
        ),
        numbers=[
            Number(f"{ours['bits_per_character']:.3f}", "bits per character", compared),
            Number(f"{ours['perplexity']:.3f}", "perplexity", "per token"),
            Number(f"{len(corpus.train):,}", "tokens to learn from", plural(corpus.train.about.documents, "document")),
        ],
        sections=[
            Section(
                "Scores",
                table=Table(
                    score_columns(),
                    score_rows(scores),
                    frozenset({(min(range(3), key=lambda row: float(score_rows(scores)[row][1])), 1)}),
                    "Lower is better. Perplexity is per token: compare it between models of one tokenizer only. "
                    "bzip2 compresses the test part by itself; the n-gram model learnt from the training part.",
                ),
            ),
            Section("Learning, and what context is worth", pictures=[loss_curve(history), context(evaluation)]),
            Section("What the model writes", text=evaluation.sample),
            Section("Data", notes=corpus.notes, facts=_data_facts(corpus)),
            Section("Configuration", facts={"model": model, **configuration(run)}, command=shlex.join(command)),
        ],
        footer=footer(run, scores),
    )


def context(evaluation: Evaluation) -> Picture:
    """Bits per token over how many tokens were read before."""
    places, bits = zip(*evaluation.by_context, strict=True)
    with axes() as drawn:
        drawn.plot([max(place, 0.5) for place in places], bits, "-o", color=MODEL, markersize=3)
        drawn.set_xscale("log", base=2)
        drawn.xaxis.set_major_formatter(lambda place, _: "0" if place < 1 else f"{place:g}")
        drawn.set_xlabel("tokens read before")
        drawn.set_ylabel("bits per token")
        return picture(
            drawn,
            "How well the next token is predicted after how much context, from an empty memory.",
            description=f"Line chart: {bits[0]:.2f} bits per token without context, {bits[-1]:.2f} with the longest.",
        )


def _data_facts(corpus: Corpus) -> dict[str, str]:
    facts = {"source": corpus.source, "tokenizer": f"{corpus.tokenizer.kind}, {corpus.tokenizer.vocabulary:,} tokens"}
    for name in ("train", "validation", "test"):
        about = getattr(corpus, name).about
        facts[name] = f"{about.characters:,} characters in {plural(about.documents, 'document')}"
    return facts
