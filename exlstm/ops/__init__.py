"""Pure functions on tensors: the maths of extended LSTMs, with interchangeable backends."""

from exlstm.ops.backends import register
from exlstm.ops.chunkwise import hmlstm as _chunkwise_hmlstm
from exlstm.ops.chunkwise import mlstm as _chunkwise_mlstm
from exlstm.ops.chunkwise import slstm as _chunkwise_slstm
from exlstm.ops.cpu import hmlstm as _cpu_hmlstm
from exlstm.ops.cpu import mlstm as _cpu_mlstm
from exlstm.ops.cpu import slstm as _cpu_slstm
from exlstm.ops.hmlstm import HMLSTMState, hmlstm
from exlstm.ops.mlstm import MLSTMState, mlstm
from exlstm.ops.reference import hmlstm as _reference_hmlstm
from exlstm.ops.reference import mlstm as _reference_mlstm
from exlstm.ops.reference import slstm as _reference_slstm
from exlstm.ops.slstm import SLSTMState, slstm

register("mlstm", "cpu", _cpu_mlstm.mlstm, _cpu_mlstm.obstacle)
register("mlstm", "torch", _chunkwise_mlstm.mlstm)
register("mlstm", "reference", _reference_mlstm.mlstm)
register("hmlstm", "cpu", _cpu_hmlstm.hmlstm, _cpu_hmlstm.obstacle)
register("hmlstm", "torch", _chunkwise_hmlstm.hmlstm)
register("hmlstm", "reference", _reference_hmlstm.hmlstm)
register("slstm", "cpu", _cpu_slstm.slstm, _cpu_slstm.obstacle)
register("slstm", "torch", _chunkwise_slstm.slstm)
register("slstm", "reference", _reference_slstm.slstm)

__all__ = ["HMLSTMState", "MLSTMState", "SLSTMState", "hmlstm", "mlstm", "slstm"]
