"""Extended LSTMs as scikit-learn estimators. Needs scikit-learn: `pip install 'exlstm[sklearn]'`."""

from importlib.util import find_spec

if find_spec("sklearn") is None:
    raise ModuleNotFoundError("exlstm.interop.sklearn needs the package scikit-learn: pip install 'exlstm[sklearn]'")

from exlstm.interop.sklearn.classifier import SequenceClassifier
from exlstm.interop.sklearn.forecaster import ForecastRegressor

__all__ = ["ForecastRegressor", "SequenceClassifier"]
