"""How well texts that a model wrote match those it should have written."""

from collections.abc import Callable, Sequence

Scores = tuple[dict[str, float], dict[str, str]]
"""Scores of a whole set, 100 at best, and how each was computed."""
Metric = Callable[[Sequence[str], Sequence[str]], Scores]
"""Of the texts found and those wanted."""


def bleu_and_chrf(found: Sequence[str], targets: Sequence[str]) -> Scores:
    """BLEU and chrF of translations, as sacrebleu computes them (arXiv 1804.08771), with its signatures.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from sacrebleu.metrics import BLEU, CHRF
    except ImportError:
        raise ValueError("scoring translations needs the package sacrebleu: pip install 'exlstm[text]'") from None
    scores, signatures = {}, {}
    for name, metric in (("BLEU", BLEU()), ("chrF", CHRF())):
        scores[name] = float(metric.corpus_score([*found], [[*targets]]).score)
        signatures[name] = str(metric.get_signature())
    return scores, signatures


def rouge(found: Sequence[str], targets: Sequence[str]) -> Scores:
    """ROUGE-1, ROUGE-2 and ROUGE-L of summaries (Lin 2004): the mean over texts of their F1, words not stemmed.

    Raises:
        ValueError: the package rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise ValueError("scoring summaries needs the package rouge-score: pip install 'exlstm[text]'") from None
    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    scorer = RougeScorer([*names])
    sums = dict.fromkeys(names.values(), 0.0)
    for text, target in zip(found, targets, strict=True):
        for kind, score in scorer.score(target, text).items():
            sums[names[kind]] += score.fmeasure
    how = "mean F1 over texts, rouge-score without stemming"
    return {n: 100 * total / max(len(found), 1) for n, total in sums.items()}, dict.fromkeys(sums, how)
