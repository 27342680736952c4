"""Models: the backbone built from a pattern, and what stands on it."""

from exlstm.models.backbone import Backbone, BackboneState
from exlstm.models.pattern import parse_pattern
from exlstm.models.saving import Pretrained, read_config
from exlstm.models.xlstm import XLSTM, XLSTMState

__all__ = ["XLSTM", "Backbone", "BackboneState", "Pretrained", "XLSTMState", "parse_pattern", "read_config"]
