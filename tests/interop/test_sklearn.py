import pickle
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

pytest.importorskip("sklearn")
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from exlstm.interop.sklearn import ForecastRegressor, SequenceClassifier
from exlstm.interop.sklearn.sequences import Sequences

SMALL: dict[str, Any] = {"pattern": "m", "width": 16, "heads": 2, "learning_rate": 0.01, "random_state": 0}
Array = npt.NDArray[Any]


def classifier(**parameters: Any) -> SequenceClassifier:
    return SequenceClassifier(**{**SMALL, "max_iter": 3, **parameters})


def regressor(**parameters: Any) -> ForecastRegressor:
    return ForecastRegressor(**{**SMALL, "max_iter": 3, **parameters})


def marked(
    n: int, *, features: int = 1, shortest: int = 6, longest: int = 20, seed: int = 0
) -> tuple[list[Array], Array]:
    """Sequences of noise in which a high step comes before a low one ("falls") or after it ("rises")."""
    random = np.random.default_rng(seed)
    sequences, labels = [], random.choice(["falls", "rises"], n)
    for label in labels:
        x = random.normal(size=(random.integers(shortest, longest + 1), features))
        first, second = sorted(random.choice(len(x), 2, replace=False))
        x[[first, second], 0] = (6, -6) if label == "falls" else (-6, 6)
        sequences.append(x)
    return sequences, labels


def weekly(n: int, seed: int = 0) -> Array:
    """A series that repeats itself after 7 steps, with noise."""
    random = np.random.default_rng(seed)
    return 50 + 10 * np.resize(random.normal(size=7), n) + random.normal(size=n)


def windows(series: Array, history: int, horizon: int) -> tuple[Array, Array]:
    rows = np.lib.stride_tricks.sliding_window_view(series, history + horizon)
    return rows[:, :history], rows[:, history:]


def test_order_in_sequences_of_mixed_lengths_is_learned() -> None:
    model = classifier(max_iter=120, dropout=0.0).fit(*marked(300, features=2))
    assert model.score(*marked(200, features=2, longest=40, seed=1)) > 0.95
    assert model.classes_.tolist() == ["falls", "rises"]
    assert model.n_features_in_ == 2


def test_the_same_sequences_may_come_as_lists_or_arrays() -> None:
    sequences, y = marked(12, shortest=8, longest=8)
    array = np.stack(sequences)
    expected = classifier().fit(array, y).predict_proba(array)
    for X in (array[:, :, 0], sequences, tuple(sequences), [x[:, 0].tolist() for x in sequences], array.tolist()):
        assert np.array_equal(classifier().fit(X, y).predict_proba(X), expected)


def test_what_else_is_predicted_does_not_matter() -> None:
    sequences, y = marked(30)
    model = classifier().fit(sequences, y)
    alone = np.concatenate([model.predict_proba([x]) for x in sequences])
    np.testing.assert_allclose(model.predict_proba(sequences), alone, rtol=1e-12)
    np.testing.assert_allclose(model.predict_proba(np.array(sequences, dtype=object)), alone, rtol=1e-12)


def test_after_an_array_of_rows_sequences_of_other_lengths_can_be_predicted_as_lists() -> None:
    sequences, y = marked(10, shortest=8, longest=8)
    model = classifier().fit(np.stack(sequences)[:, :, 0], y)
    assert model.predict_proba([x[:5, 0] for x in sequences[:3]] + [sequences[3]]).shape == (4, 2)
    with pytest.raises(ValueError, match="X has 5 features, but SequenceClassifier is expecting 8 features"):
        model.predict(np.stack(sequences)[:, :5, 0])


def test_a_weight_of_zero_leaves_a_sequence_out() -> None:
    X, y = marked(20)
    used = np.arange(20) < 14
    weighted = classifier().fit(X, y, sample_weight=np.where(used, 2.0, 0.0))
    left_out = classifier().fit(X[:14], y[:14])
    assert np.array_equal(weighted.predict_proba(X), left_out.predict_proba(X))


def test_of_two_labels_of_one_sequence_the_heavier_is_predicted() -> None:
    X, y = np.ones((40, 5)), np.arange(40) % 2
    for heavier in (0, 1):
        model = classifier(max_iter=60).fit(X, y, sample_weight=np.where(y == heavier, 3.0, 1.0))
        assert model.predict_proba(X)[0, heavier] == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_estimators_are_reproducible_and_survive_pickling_and_cloning(kind: str) -> None:
    model, X, y = fitted(kind)
    expected = model.predict(X[:5]) if kind == "regressor" else model.predict_proba(X[:5])

    def predicted(other: Any) -> Array:
        return other.predict(X[:5]) if kind == "regressor" else other.predict_proba(X[:5])

    assert np.array_equal(predicted(clone(model).fit(X, y)), expected)
    assert not np.array_equal(predicted(clone(model).set_params(random_state=1).fit(X, y)), expected)
    data = pickle.dumps(model)
    assert b"torch" not in data.replace(b"torch_", b"")  # weights are plain arrays
    assert np.array_equal(predicted(pickle.loads(data)), expected)
    with pytest.raises(NotFittedError):
        pickle.loads(pickle.dumps(clone(model))).predict(X)


def fitted(kind: str) -> tuple[Any, Any, Array]:
    if kind == "classifier":
        X, y = marked(20)
        return classifier().fit(X, y), X, y
    history, y = windows(weekly(60), 21, 7)
    return regressor().fit(history, y), history, y


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_nothing_is_printed_written_or_drawn_from_the_callers_random_numbers(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the caller's generator
    model, X, y = fitted(kind)
    pickle.loads(pickle.dumps(model)).predict(X)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpys)  # noqa: NPY002
    assert not any(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    model.set_params(verbose=True).fit(X, y)
    assert "step 3/3" in capfd.readouterr().out


def test_an_interrupted_fit_raises_so_that_a_search_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = marked(10)
    batch = Sequences.batch

    def interrupted(self: Sequences, numbers: Sequence[int]) -> Any:
        signal.raise_signal(signal.SIGINT)
        return batch(self, numbers)

    monkeypatch.setattr(Sequences, "batch", interrupted)
    model = classifier()
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    assert not hasattr(model, "model_")


def test_searches_pipelines_and_cross_validation_work() -> None:
    X, y = marked(24)
    search = GridSearchCV(classifier(), {"width": [8, 16]}, cv=2).fit(X, y)
    assert search.best_params_["width"] in (8, 16)
    assert len(search.predict(X)) == 24

    history, y = windows(weekly(100), 21, 7)
    pipeline = make_pipeline(StandardScaler(), regressor())
    scores = cross_val_score(pipeline, history, y, cv=TimeSeriesSplit(3, gap=7), scoring="neg_mean_absolute_error")
    assert np.isfinite(scores).all()
    search = GridSearchCV(regressor(), {"max_iter": [2, 4]}, cv=TimeSeriesSplit(2, gap=7)).fit(history, y)
    assert search.predict(history).shape == y.shape


BAD = [
    ([np.ones((3, 2)), np.ones((4, 3))], "0", "expected sequences with 2 features in a step"),
    ([np.ones((3, 2)), np.ones((0, 2))], "0", r"of at least one step, received one of shape \(0, 2\) at place 1"),
    ([[1.0, 2.0], []], "0", "at place 1 of X"),
    ([np.ones((3, 2)), np.full((3, 2), np.nan)], "0", "X contains NaN"),
    (np.ones((2, 3, 4, 5)), "0", "expected sequences"),
    (np.ones((2, 3)), None, "requires y to be passed"),
    (np.ones((2, 3)), "01", "inconsistent numbers of samples"),
    (np.ones((2, 3)), "1", "at least 2 classes, received 1 class"),
]


@pytest.mark.parametrize(("X", "more", "message"), BAD)
def test_bad_sequences_raise_an_error_that_says_why(X: Any, more: str | None, message: str) -> None:
    y = None if more is None else ["1", *more]
    with pytest.raises(ValueError, match=message):
        classifier().fit(X, y)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"max_iter": 0}, "max_iter == 0, must be >= 1"),
        ({"learning_rate": 0.0}, "learning_rate == 0.0, must be > 0"),
        ({"batch_size": -1}, "batch_size == -1"),
        ({"pattern": "x"}, "pattern"),
        ({"heads": 5}, "multiple of heads, received width 16 and heads 5"),
        ({"dropout": 1.0}, "dropout == 1.0, must be < 1"),
    ],
)
@pytest.mark.parametrize("make", [classifier, regressor])
def test_parameters_out_of_range_raise(make: Any, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**parameters).fit(np.ones((4, 6)) * np.arange(6), np.arange(4) % 2)


def test_weights_that_are_negative_or_all_zero_raise() -> None:
    X, y = marked(4)
    with pytest.raises(ValueError, match=r"[Nn]egative"):
        classifier().fit(X, y, sample_weight=[-1, 1, 1, 1])
    with pytest.raises(ValueError, match="at least one non-zero"):
        classifier().fit(X, y, sample_weight=np.zeros(4))


def test_other_features_than_in_fit_raise() -> None:
    X, y = marked(6, features=2)
    model = classifier().fit(X, y)
    with pytest.raises(ValueError, match="X has 1 features in a step, but SequenceClassifier is expecting 2"):
        model.predict(np.ones((3, 5)))
    history, y = windows(weekly(60), 21, 7)
    with pytest.raises(ValueError, match="X has 2 features in a step, but ForecastRegressor is expecting 1"):
        regressor().fit(history, y).predict(np.ones((2, 21, 2)))


def test_a_season_is_found_and_repeated() -> None:
    history, y = windows(weekly(300), 28, 7)
    model = regressor(max_iter=100).fit(history[:200], y[:200])
    assert model.model_.series.lags == (7, 1)
    error = np.abs(model.predict(history[230:]) - y[230:]).mean()
    assert error < np.abs(history[230:, -7:] - y[230:]).mean()


def test_forecasts_move_with_level_and_size_of_the_history() -> None:
    model, history, _ = fitted("regressor")
    np.testing.assert_allclose(model.predict(1e-3 * history - 1e6), 1e-3 * model.predict(history) - 1e6, atol=1e-8)


def test_quantiles_are_ordered_around_the_median() -> None:
    model, history, _ = fitted("regressor")
    found = model.predict_quantiles(history[:4])
    assert found.shape == (4, 7, 9)
    assert (np.diff(found) >= 0).all()
    assert np.array_equal(found[..., 4], model.predict(history[:4]))
    between = model.predict_quantiles(history[:4], [0.25, 0.9])
    np.testing.assert_allclose(between, np.stack([found[..., 1:3].mean(-1), found[..., 8]], -1))
    with pytest.raises(ValueError, match=r"expected quantiles between 0\.1 and 0\.9"):
        model.predict_quantiles(history, [0.5, 0.95])


def test_a_single_target_gives_a_single_prediction() -> None:
    history, y = windows(weekly(60), 21, 1)
    model = regressor().fit(history, y[:, 0])
    assert model.predict(history).shape == (len(y),)
    assert model.predict_quantiles(history, [0.5]).shape == (len(y), 1)
    assert np.array_equal(model.predict(history)[:, None], regressor().fit(history, y).predict(history))


def test_missing_values_are_taken_as_missing() -> None:
    model, history, _ = fitted("regressor")
    gaps = history.copy()
    gaps[:, 3] = np.nan
    assert np.isfinite(model.predict(gaps)).all()
    assert not np.array_equal(model.predict(gaps), model.predict(np.nan_to_num(gaps)))
    gaps[2] = np.nan
    with pytest.raises(ValueError, match="received only NaN in row 2 of X"):
        model.predict(gaps)


def test_features_beside_the_series_are_used() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 12, 2))
    y = X[:, -1:, 0] + 2 * X[:, -1:, 1]  # the second feature tells how the series goes on
    model = regressor(max_iter=100, dropout=0.0).fit(X[:300], y[:300])
    without = regressor(max_iter=100, dropout=0.0).fit(X[:300, :, 0], y[:300])
    assert (
        np.abs(model.predict(X[300:]) - y[300:]).mean() < 0.5 * np.abs(without.predict(X[300:, :, 0]) - y[300:]).mean()
    )


def test_without_scikit_learn_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("exlstm.interop.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'exlstm\[sklearn\]'"):
        import exlstm.interop.sklearn  # noqa: F401
