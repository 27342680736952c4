"""Models: the backbone built from a pattern, and what stands on it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exlstm.models.backbone import Backbone, BackboneState
    from exlstm.models.classifier import Classifier, ClassifierConfig
    from exlstm.models.decoder import Decoder
    from exlstm.models.forecaster import Forecaster, ForecasterConfig
    from exlstm.models.generation import Sampling
    from exlstm.models.language import LanguageModel, LanguageModelConfig
    from exlstm.models.pattern import parse_pattern
    from exlstm.models.saving import Pretrained, read_config
    from exlstm.models.seq2seq import Seq2Seq, Seq2SeqConfig
    from exlstm.models.tirex import TirexConfig, TirexForecaster
    from exlstm.models.xlstm import XLSTM, XLSTMState

__all__ = [
    "XLSTM",
    "Backbone",
    "BackboneState",
    "Classifier",
    "ClassifierConfig",
    "Decoder",
    "Forecaster",
    "ForecasterConfig",
    "LanguageModel",
    "LanguageModelConfig",
    "Pretrained",
    "Sampling",
    "Seq2Seq",
    "Seq2SeqConfig",
    "TirexConfig",
    "TirexForecaster",
    "XLSTMState",
    "parse_pattern",
    "read_config",
]
_MODULES = (
    ("backbone", ("Backbone", "BackboneState")),
    ("classifier", ("Classifier", "ClassifierConfig")),
    ("decoder", ("Decoder",)),
    ("forecaster", ("Forecaster", "ForecasterConfig")),
    ("generation", ("Sampling",)),
    ("language", ("LanguageModel", "LanguageModelConfig")),
    ("pattern", ("parse_pattern",)),
    ("saving", ("Pretrained", "read_config")),
    ("seq2seq", ("Seq2Seq", "Seq2SeqConfig")),
    ("tirex", ("TirexConfig", "TirexForecaster")),
    ("xlstm", ("XLSTM", "XLSTMState")),
)
_HOME = {name: module for module, names in _MODULES for name in names}


def __getattr__(name: str) -> Any:
    """A model is imported when it is first named: a backbone needs neither tables nor tokenizers."""
    if name in _HOME:
        return getattr(import_module(f"exlstm.models.{_HOME[name]}"), name)
    raise AttributeError(f"module 'exlstm.models' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
