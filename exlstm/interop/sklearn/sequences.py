"""Sequences of numbers as scikit-learn's users have them: read, checked, and put together in batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

FloatArray = npt.NDArray[np.float64]


def read_sequences(estimator: Any, X: Any, *, reset: bool) -> list[FloatArray]:
    """The sequences [T, features] in X: a list of arrays [T, features] or [T], or an array [n, T, features] or [n, T].

    `reset` sets what later X are compared with: `n_features_in_`, which is the columns of a 2-D X as everywhere in
    scikit-learn, else the features of a step; and `_fixed_length`, whether X was 2-D, so that the columns must stay.

    Raises:
        ValueError: X has another shape, a sequence without steps, numbers that are not finite, or other features.
        TypeError: X is sparse.
    """
    options = {"dtype": np.float64, "estimator": estimator}
    listed = _is_list_of_sequences(X)
    table = not listed and getattr(X, "ndim", 2) < 3
    if table and (reset or estimator._fixed_length):
        X = validate_data(estimator, X, reset=reset, **options)
    elif listed:
        X = [check_array(item, ensure_2d=False, ensure_min_samples=0, input_name="X", **options) for item in X]
    else:
        X = check_array(X, allow_nd=True, input_name="X", **options)
    sequences = [item[:, None] if item.ndim == 1 else item for item in X]

    features = _features(sequences)
    if reset:
        estimator._fixed_length = table
        if not table:
            estimator.n_features_in_ = features
            vars(estimator).pop("feature_names_in_", None)
    elif features != (expected := 1 if estimator._fixed_length else estimator.n_features_in_):
        name = type(estimator).__name__
        raise ValueError(f"X has {features} features in a step, but {name} is expecting {expected}, as in fit")
    return sequences


def _is_list_of_sequences(X: Any) -> bool:
    """Whether X is a list that is not an array [n, T] written as lists."""
    if not isinstance(X, list | tuple) and not (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
        return False
    shapes = {np.shape(item) for item in X}
    return any(len(shape) == 2 for shape in shapes) or (len(shapes) > 1 and any(shapes))


def _features(sequences: Sequence[FloatArray]) -> int:
    """The features that all have. Raises ValueError if they are no sequences, or have different ones."""
    for number, item in enumerate(sequences):
        if item.ndim != 2 or item.size == 0:
            raise ValueError(
                "expected sequences [T, features] or [T] of at least one step, received one of shape "
                f"{item.shape} at place {number} of X"
            )
        if item.shape[1] != sequences[0].shape[1]:
            raise ValueError(
                f"expected sequences with {sequences[0].shape[1]} features in a step, as the first has, received one "
                f"with {item.shape[1]} at place {number} of X"
            )
    return sequences[0].shape[1]


def centre_and_spread(values: FloatArray, axis: int) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation along an axis, which stays, without NaN; of what is constant, its size (or 1)."""
    size = np.nanmax(np.abs(values), axis=axis, keepdims=True)
    size = np.where(size > 0, size, 1.0)
    share = values / size  # no square overflows
    spread = np.nanstd(share, axis=axis, keepdims=True)
    constant = spread < 1e-12  # up to rounding
    return size * np.nanmean(share, axis=axis, keepdims=True), size * np.where(constant, 1.0, spread)


class SequenceBatch(NamedTuple):
    """Sequences of numbers, each at the beginning of its row."""

    x: Tensor
    """float [B, T, features], 0 where there is no step."""
    mask: Tensor | None
    """bool [B, T], where there is one; None: everywhere."""
    labels: Tensor
    """int64 [B]"""
    weights: Tensor
    """float32 [B]"""


class Sequences:
    """Sequences of numbers that can be put together by their places, with labels and weights where these are known."""

    def __init__(self, sequences: Sequence[Tensor], labels: Any = None, weights: Any = None) -> None:
        n = len(sequences)
        self._sequences = sequences
        self._labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.tensor(labels)
        self._weights = torch.ones(n) if weights is None else torch.tensor(weights, dtype=torch.float32)

    def __len__(self) -> int:
        return len(self._sequences)

    def size(self, number: int) -> tuple[int]:
        """The length of a sequence, by which batches are sorted."""
        return (len(self._sequences[number]),)

    def batch(self, numbers: Sequence[int]) -> SequenceBatch:
        """The sequences of some numbers."""
        chosen = [self._sequences[n] for n in numbers]
        lengths = torch.tensor([len(x) for x in chosen])
        mask = None
        if lengths.min() < lengths.max():  # without a mask less is to be done
            mask = torch.arange(int(lengths.max())) < lengths[:, None]
        which = torch.tensor([*numbers])
        return SequenceBatch(pad_sequence(chosen, batch_first=True), mask, self._labels[which], self._weights[which])
