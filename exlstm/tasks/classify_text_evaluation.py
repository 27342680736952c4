"""How well a classifier labels held-out texts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import nll_loss

from exlstm.data.text import Labelled, Tokenizer
from exlstm.data.text.labelled_tokens import UNKNOWN
from exlstm.models.classifier import Classifier
from exlstm.models.classifier_training import opinions
from exlstm.tasks.classify_text_data import Part, tokens

if TYPE_CHECKING:
    from exlstm.tasks.classify_text import Train

MAJORITY, LINEAR = "most frequent label", "TF-IDF and logistic regression"


@dataclass(frozen=True)
class Evaluation:
    """What came of labelling the test parts, those of all folds together."""

    scores: dict[str, float]
    alone: dict[str, dict[str, float]]
    """The scores of the networks and of the linear member by themselves, where the model has both."""
    baselines: dict[str, dict[str, float]]
    labels: list[str]
    confusion: list[list[int]]
    """How many texts of each label, in rows, got each label, in columns."""
    classes: pd.DataFrame
    """A row a label: label, texts, precision, recall, f1."""
    table: pd.DataFrame
    """A row a text: text, label, predicted, and the probability of what was predicted; the fold if there are some."""


def evaluate(options: "Train", models: Sequence[tuple[Part, Classifier, Tokenizer]]) -> Evaluation:
    """Label the test texts of each part by its model, and score all of them together."""
    truths: list[str] = []
    found: dict[str, list[Tensor]] = {"model": [], "networks": [], "linear": []}
    rows = []
    for part, model, tokenizer in models:
        logits = opinions(model, tokens(options, model, tokenizer, part.splits.test))
        sure = model.combine(logits).log_softmax(-1)
        found["model"].append(sure)
        if model.linear is not None:
            found["networks"].append(logits[:, :-1].log_softmax(-1).mean(1).log_softmax(-1))
            found["linear"].append(logits[:, -1].log_softmax(-1))
        truths += [x.label for x in part.splits.test]
        for x, each in zip(part.splits.test, sure, strict=True):
            best = int(each.argmax())
            row = {"text": x.text, "label": x.label, "predicted": model.config.labels[best]}
            rows.append(row | {"probability": float(each[best].exp())} | ({"fold": part.name} if part.name else {}))
    labels = list(models[0][1].config.labels)
    everyone = sorted({*labels, *truths})
    table = pd.DataFrame(rows)
    scored = {name: _scores(torch.cat(parts), labels, truths) for name, parts in found.items() if parts}
    return Evaluation(
        scores=scored.pop("model"),
        alone=scored,
        baselines=baselines([part for part, _, _ in models]),
        labels=everyone,
        confusion=pd.crosstab(table["label"], table["predicted"])
        .reindex(index=everyone, columns=everyone, fill_value=0)
        .to_numpy()
        .tolist(),
        classes=by_class(truths, list(table["predicted"])),
        table=table,
    )


def label_texts(options: "Train", model: Classifier, tokenizer: Tokenizer, texts: Sequence[str]) -> pd.DataFrame:
    """A row for each text: text, label, and the probability of every label in a column P(label)."""
    rows = [Labelled(" ".join(text.split()), "", "") for text in texts]
    columns = ["text", "label", *(f"P({label})" for label in model.config.labels)]
    if not rows:
        return pd.DataFrame(columns=columns)
    sure = model.combine(opinions(model, tokens(options, model, tokenizer, rows))).softmax(-1)
    best = [model.config.labels[n] for n in sure.argmax(-1).tolist()]
    cells = [[text, label, *each] for text, label, each in zip(texts, best, sure.tolist(), strict=True)]
    return pd.DataFrame(cells, columns=columns)


def baselines(parts: Sequence[Part]) -> dict[str, dict[str, float]]:
    """The scores of the most frequent training label and, where scikit-learn is there, of a linear model of TF-IDF."""
    truths = [x.label for part in parts for x in part.splits.test]
    common = [Counter(x.label for x in part.splits.train).most_common(1)[0][0] for part in parts]
    majority = [label for part, label in zip(parts, common, strict=True) for _ in part.splits.test]
    found = {MAJORITY: label_scores(truths, majority)}
    linear = [label for part in parts for label in _linear(part)]
    return found | ({LINEAR: label_scores(truths, linear)} if linear else {})


def _linear(part: Part) -> list[str]:
    """The labels of the test texts after a linear model of words and pairs of words; none without scikit-learn."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        return []
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
        LogisticRegression(C=10, max_iter=1000),
    )
    model.fit([x.text for x in part.splits.train], [x.label for x in part.splits.train])
    return list(model.predict([x.text for x in part.splits.test]))


def label_scores(truths: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """Accuracy and macro F1: the mean, over the labels that are there or were given, of their F1."""
    right = sum(a == b for a, b in zip(truths, found, strict=True))
    return {"accuracy": right / len(truths), "macro_f1": float(by_class(truths, found)["f1"].mean())}


def by_class(truths: Sequence[str], found: Sequence[str]) -> pd.DataFrame:
    """Texts, precision, recall and F1 of every label that is there or was given; 0 where there is nothing to divide."""
    there, given = Counter(truths), Counter(found)
    right = Counter(a for a, b in zip(truths, found, strict=True) if a == b)
    rows: list[Mapping[str, Any]] = []
    for label in sorted({*there, *given}):
        precision, recall = right[label] / max(given[label], 1), right[label] / max(there[label], 1)
        f1 = 2 * right[label] / (there[label] + given[label])
        rows.append({"label": label, "texts": there[label], "precision": precision, "recall": recall, "f1": f1})
    return pd.DataFrame(rows)


def _scores(sure: Tensor, labels: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    number = {label: n for n, label in enumerate(labels)}
    target = torch.tensor([number.get(label, UNKNOWN) for label in truths])
    loss = float(nll_loss(sure, target, ignore_index=UNKNOWN))
    return label_scores(truths, [labels[n] for n in sure.argmax(-1).tolist()]) | {"loss": loss}
