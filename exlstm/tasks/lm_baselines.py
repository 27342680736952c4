"""An n-gram model with interpolated Witten-Bell smoothing, which a language model must beat."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def ngram_bits(train: np.ndarray, test: np.ndarray, vocabulary: int, order: int) -> float:
    """Bits per token of `test` after its first, by the counts of `train`, with contexts of up to order - 1 tokens.

        p(w | context) = (count(context w) + kinds(context) p(w | shorter context)) / (count(context) + kinds(context))

    where kinds(context) is how many different tokens followed it (Witten and Bell, 1991); a context never seen
    says what the shorter one says, and the shortest, of no token, is interpolated with the uniform distribution.
    Contexts of the first tokens are filled with token 0, which is to be none of the text.
    """
    base = np.uint64(vocabulary)
    if order * np.log2(vocabulary) >= 64:
        raise ValueError(f"an n-gram of {order} tokens of {vocabulary} does not fit into 64 bits; use a lower order")
    p = np.full(len(test) - 1, 1 / vocabulary)
    context_train = np.zeros(len(train) - 1, np.uint64)
    context_test = np.zeros(len(test) - 1, np.uint64)
    scale = np.uint64(1)
    for length in range(order):
        if length:  # one token further back; where there is none, none is added
            context_train[length - 1 :] += scale * train[: len(train) - length].astype(np.uint64)
            context_test[length - 1 :] += scale * test[: len(test) - length].astype(np.uint64)
            scale *= base
        pairs, counts = np.unique(context_train * base + train[1:].astype(np.uint64), return_counts=True)
        contexts, first, kinds = np.unique(pairs // base, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first)
        seen = _lookup(pairs, counts, context_test * base + test[1:].astype(np.uint64))
        total = _lookup(contexts, totals, context_test)
        kind = _lookup(contexts, kinds, context_test)
        p = np.where(total > 0, (seen + kind * p) / np.maximum(total + kind, 1), p)
    return float(-np.log2(p).mean())


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> Array:
    """The value of each wanted key, 0 where it is not among the sorted keys."""
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0).astype(np.float64)
