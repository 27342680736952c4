"""Models: the backbone built from a pattern, and what stands on it."""

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
