"""Pure functions on tensors: the maths of extended LSTMs, with interchangeable backends."""

from exlstm.ops.hmlstm import HMLSTMState, hmlstm
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.ops.slstm import SLSTMState, slstm

__all__ = ["HMLSTMState", "MLSTMState", "SLSTMState", "hmlstm", "mlstm", "slstm"]
