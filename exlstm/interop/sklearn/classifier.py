"""`SequenceClassifier`: an extended LSTM as a scikit-learn classifier."""

from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import ClassifierMixin
from sklearn.utils import assert_all_finite, check_consistent_length, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from exlstm.data.text.batching import LengthSampler, batches_by_length
from exlstm.interop.sklearn.estimator import AT_ONCE, NetworkEstimator
from exlstm.interop.sklearn.sequences import FloatArray, SequenceBatch, Sequences, centre_and_spread, read_sequences
from exlstm.models.classifier import Classifier, ClassifierConfig
from exlstm.models.classifier_training import RECIPE
from exlstm.train import derive_seed


class SequenceClassifier(ClassifierMixin, NetworkEstimator):
    """Classes of sequences of numbers, by a bidirectional extended LSTM (`exlstm.models.Classifier`), on the CPU.

    X is a list of arrays [T, features], or [T] for one number a step, of any lengths; or an array [n, T, features];
    or an array [n, T], in which a row is a sequence of T steps of one number. After `fit` with a 2-D X, `predict`
    refuses a 2-D X with other columns, as all of scikit-learn does; lists and 3-D arrays may have any lengths.
    Features are standardised with the mean and standard deviation of all training steps.

    The handwritten digits of scikit-learn as 8 steps of 8 pixels, 30% held out: accuracy 98.5%, logistic regression
    97.2% (docs/sklearn.md has the lines that give both).

    Args:
        pattern: the blocks (see `exlstm.models.parse_pattern`).
        width: of the network, a multiple of `heads`.
        heads: heads of every block.
        dropout: probability with which numbers inside the network are dropped in training.
        max_iter: training steps.
        learning_rate: the highest; it rises to this and then falls.
        batch_size: sequences in a training step.
        random_state: seed of all that is random, for the same result again; None: another at every fit.
        verbose: whether to show progress on the standard output.

    Attributes:
        classes_: the labels [classes].
        n_features_in_: the columns of a 2-D X, else the features of a step.
        mean_, scale_: what features are standardised with [features].
        model_: the `Classifier`, of standardised sequences.
        n_iter_: training steps done.
    """

    def __init__(
        self,
        pattern: str = "m",
        *,
        width: int = 64,
        heads: int = 4,
        dropout: float = 0.1,
        max_iter: int = 300,
        learning_rate: float = 3e-3,
        batch_size: int = 64,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.pattern = pattern
        self.width = width
        self.heads = heads
        self.dropout = dropout
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train anew.

        Args:
            X: n sequences, see above.
            y: their labels [n], of at least 2 classes.
            sample_weight: how much each counts in the loss [n], at least 0; None: all alike.

        Raises:
            ValueError, TypeError: X, y, weights or parameters are not as above.
        """
        sequences = read_sequences(self, X, reset=True)
        labels = self._read_labels(y, len(sequences))
        weights = _check_sample_weight(sample_weight, labels, dtype=np.float64, ensure_non_negative=True)
        used = np.flatnonzero(weights)
        if not len(used):
            raise ValueError("Sample weights must contain at least one non-zero number.")
        sequences, labels, weights = [sequences[n] for n in used], labels[used], weights[used]
        self.mean_, self.scale_ = (found[0] for found in centre_and_spread(np.concatenate(sequences), axis=0))
        data = Sequences(self._standardised(sequences, torch.float32), labels, weights / weights.mean())
        config = ClassifierConfig(
            labels=tuple(map(str, self.classes_)),
            features=len(self.mean_),
            pattern=self.pattern,
            width=self.width,
            heads=self.heads,
            dropout=self.dropout,
            step_dropout=0.0,
        )
        return self._train(
            lambda: Classifier(config),
            _loss,
            lambda seed: LengthSampler(data, batch=self.batch_size, seed=derive_seed(seed, "sequences")),
            RECIPE,
        )

    @torch.no_grad()
    def predict_proba(self, X: Any) -> FloatArray:
        """The probabilities of the classes [n, classes], in the order of `classes_`. Raises as `fit`."""
        check_is_fitted(self)
        data = Sequences(self._standardised(read_sequences(self, X, reset=False), torch.float64))
        model = self._exact()
        found = np.empty((len(data), len(self.classes_)))
        for numbers in batches_by_length(data, AT_ONCE):
            batch = data.batch(numbers)
            found[numbers] = model(batch.x, batch.mask).softmax(-1).numpy()
        return found

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The most probable classes [n]. Raises as `fit`."""
        probable = self.predict_proba(X)
        return self.classes_[probable.argmax(1)]

    def _read_labels(self, y: Any, n: int) -> npt.NDArray[np.int64]:
        """The places of the labels in `classes_`, which is set."""
        if y is None:
            raise ValueError(f"{type(self).__name__} requires y to be passed, but the target y is None")
        y = column_or_1d(y, warn=True)
        check_consistent_length(range(n), y)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"expected y of at least 2 classes, received 1 class, {self.classes_[0]!r}")
        return labels

    def _standardised(self, sequences: list[FloatArray], dtype: torch.dtype) -> list[Tensor]:
        return [torch.from_numpy((x - self.mean_) / self.scale_).to(dtype) for x in sequences]


def _loss(model: nn.Module, batch: SequenceBatch) -> tuple[Tensor, dict[str, float]]:
    each = cross_entropy(model(batch.x, batch.mask), batch.labels, reduction="none")
    return (batch.weights * each).mean(), {}
